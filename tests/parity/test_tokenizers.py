"""Other people's tokenizers give the ids that transformers gives, on hard strings."""

import json
import pathlib

from etils import epath
import pytest

from llm.data import foreign
from llm.data.tokenizer import Tokenizer
from tests.parity import references

STRINGS = json.loads((pathlib.Path(__file__).parents[1] / 'data/hard_strings.json').read_text())


@pytest.mark.parametrize('name', references.names('tokenizers'))
def test_encoding_is_that_of_transformers(name):
    folder = references.FOLDER / 'tokenizers' / name
    tokenizer = Tokenizer.from_files(foreign.gather(epath.Path(folder)), str(folder))
    expected = json.loads((folder / 'expected.json').read_text())
    control = set(expected['control'])
    for text, ids, decoded in zip(STRINGS, expected['ids'], expected['decoded'], strict=True):
        found = tokenizer.encode(text)
        assert not control & set(found), repr(text)
        if not control & set(ids):  # a text that transformers itself does not take for a control token
            assert found == ids, repr(text)
            assert tokenizer.decode(found) == decoded, repr(text)

"""Our tokenizer in other people's files says the same of every text."""

import random

from hypothesis import example, given, settings, strategies as st
import pytest

from llm.data import shared, tokenizer
from llm.data.tokenizer import Tokenizer
from tests import tiny


@pytest.fixture(scope='module')
def both(tmp_path_factory):
    """(ours, the one that reads what we share)."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp('own') / 'tokenizer.model'
    texts = [' '.join(draw.choices(tiny.WORDS, k=12)) + ', aaaa  12 é.\n' for _ in range(200)]
    tokenizer.train(texts, 330, 100_000, str(path))
    ours = Tokenizer.from_file(str(path))
    return ours, Tokenizer.from_files(shared.files(path.read_bytes(), ours.special_ids), 'shared')


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from('aehilnot \u2581\n1é漢🙂<|eos>') | st.characters(codec='utf-8'), max_size=40))
@example('aaaaaaa')
@example('  the   film \u2581\u2581 is<|eos|>\n\n 2024 漢字 👩\u200d👩\u200d👧')
def test_every_text_has_the_same_ids(both, text):
    ours, read = both
    assert read.encode(text) == ours.encode(text)
    assert read.decode(ours.encode(text)) == ours.decode(ours.encode(text)) == text


def test_chats_and_documents_have_the_same_ids(both):
    ours, read = both
    chat = [{'role': 'system', 'content': 'the plot'}, {'role': 'user', 'content': 'good film'},
            {'role': 'assistant', 'content': 'bad music'}]
    assert read.encode_chat(chat) == ours.encode_chat(chat)
    assert read.encode_prompt(chat[:2]) == ours.encode_prompt(chat[:2])
    assert read.encode_document('the end') == ours.encode_document('the end')
    assert read.chat_template == ours.chat_template
    assert {name: read.special_ids[name] for name in ('pad', 'bos', 'eos', 'unk')} == {
        name: ours.special_ids[name] for name in ('pad', 'bos', 'eos', 'unk')}

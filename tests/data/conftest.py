"""What the data tests share: one small tokenizer, and configs of sources made as the stages make them."""

import pathlib
import random

import pytest

from configs import base
from llm.config import CleanConfig, DataConfig, SourceConfig
from llm.data import tokenizer as tokenizers
from llm.door import from_dict

WORDS = ('the a of to and in is was film plot king queen love death night day good bad great dull bright '
         'actor story scene music begins ends never always with without laughter tears').split()


def prose(number: int, words: int) -> str:
    """Some words, the same for the same number."""
    return ' '.join(random.Random(number).choices(WORDS, k=words))


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture(scope='session')
def tokenizer(tmp_path_factory) -> tokenizers.Tokenizer:
    path = str(tmp_path_factory.mktemp('tokenizer') / 'tokenizer.model')
    tokenizers.train((prose(number, 40) + '.\n\n' for number in range(200)), 360, 10**6, path)
    return tokenizers.Tokenizer.from_file(path)


@pytest.fixture(scope='session')
def data_dir() -> str:
    """Where the configs keep downloads and TFDS sets: filled by the first run on a machine."""
    return str(pathlib.Path(base.data().data_dir).expanduser())


@pytest.fixture
def source():
    """source(jsonl=..., ...) -> SourceConfig."""
    return lambda **keys: from_dict(SourceConfig, base.source(**keys).to_dict())


@pytest.fixture
def data(tmp_path):
    """data(**changes) -> DataConfig whose own folder is the test's; it cleans nothing away unless told to."""
    return lambda max_bad_percent=1.0, data_dir=str(tmp_path / 'data'), sources={}, **clean: DataConfig(
        sources=sources, data_dir=data_dir, max_bad_percent=max_bad_percent, clean=CleanConfig(**clean))


@pytest.fixture
def prepared(tmp_path, data, tokenizer):
    """prepared(prepare, source, seq_len=..., split='train', ...) -> rows."""
    def call(prepare, source, *, seq_len, split='train', max_bad_percent=1.0, config=None, **more):
        return prepare('mine', source, split, tokenizer, seq_len=seq_len, data=config or data(max_bad_percent),
                       cache_dir=str(tmp_path / 'cache'), progress=silent, **more)
    return call

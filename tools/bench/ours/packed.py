"""Texts of random tokens as the SFT stage gets them: prepared, packed without contamination, read from disk.

In: a job with lengths. Out: rows by position, and how many tokens of them are of a text.
Left out: training on them (`training.py`).
"""

from collections.abc import Callable
import json
import pathlib
import tempfile
from typing import Any

import numpy as np

from configs import base
from llm.config import DataConfig
from llm.data.order import Mixture
from llm.data.prepare import prepare_chats
from llm.door import from_dict
from llm.run import Run
from tools.bench import draws

TEXTS = 2000


class Numbers:
    """Stands for a tokenizer: a text is its token ids, written as numbers."""

    sha256 = 'numbers'
    special_ids = {'pad': 0, 'bos': 1, 'eos': 2}

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def encode_chat(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        ids = [int(number) for number in messages[-1]['content'].split()]
        return ids, [1] * len(ids)


def texts(run: Run, job: dict[str, Any]) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]],
                                                  Callable[[dict], float]]:
    """Rows of the stage's own packing; of a batch, the tokens that are no padding."""
    with tempfile.TemporaryDirectory(prefix='bench-') as folder:
        found = prepared(pathlib.Path(folder), run.config.seq_len, run.model_config.vocab_size, job)
    return found.rows, lambda batch: int(np.count_nonzero(batch['segments_BT']))


def prepared(folder: pathlib.Path, seq_len: int, vocab_size: int, job: dict[str, Any]) -> Mixture:
    """The job's texts, as an endless stream of packed rows. They are mapped, so the folder may go at once."""
    ids = draws.tokens(draws.lengths(TEXTS, *job['lengths'], job['seed']), vocab_size, job['seed'])
    with (folder / 'texts.jsonl').open('w') as file:
        for text in ids:
            said = {'role': 'assistant', 'content': ' '.join(map(str, text))}
            file.write(json.dumps({'messages': [{'role': 'user', 'content': '-'}, said]}) + '\n')
    data = base.data(texts=base.source(jsonl=str(folder / 'texts.jsonl'), holdout_percent=0.0))
    data.clean = {'min_chars': 1}  # numbers are no language
    checked = from_dict(DataConfig, data.to_dict())
    rows = prepare_chats('texts', checked.sources['texts'], 'train', Numbers(vocab_size), seq_len=seq_len,
                         data=checked, cache_dir=str(folder), progress=lambda what, done, total: None)
    return Mixture.from_config({'texts': rows}, checked, job['seed'], 1)



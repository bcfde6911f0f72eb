"""Data before the step: tokenising on one core, preparing a corpus, reading its rows.

In: a job: `text_bytes` of generated words, which a tokenizer of `model.vocab_size` pieces is trained on.
Out: MB of text a second through the tokenizer and through `prepare` (cleaning included), tokens a second from rows.
Left out: waiting times of a real run, which its metrics have.
"""

import json
import pathlib
import random
import tempfile
import time
from typing import Any

import numpy as np

from configs import base
from llm.config import DataConfig
from llm.data import tokenizer as tokenizers
from llm.data.order import Mixture
from llm.data.prepare import prepare_text
from llm.door import from_dict
from tools.bench.serve import serve, Work

_DOCUMENT_WORDS = 300
_ROWS, _BATCH = 2048, 8  # that are read a turn


def make(job: dict[str, Any]) -> Work:
    folder = tempfile.TemporaryDirectory(prefix='bench-')
    path = pathlib.Path(folder.name)
    texts = documents(job['text_bytes'], job['seed'])
    write(path / 'texts.jsonl', texts)
    tokenizers.train(texts, job['model']['vocab_size'], job['text_bytes'], str(path / tokenizers.OWN))
    tokenizer = tokenizers.Tokenizer.from_folder(path)
    data = from_dict(DataConfig, base.data(words=base.source(
        jsonl=str(path / 'texts.jsonl'), holdout_percent=0.0)).to_dict())
    megabytes = sum(len(text.encode()) for text in texts) / 1e6

    def turn() -> dict[str, float]:
        began = time.perf_counter()
        for text in texts:
            tokenizer.encode_document(text)
        tokenised = time.perf_counter() - began
        with tempfile.TemporaryDirectory(dir=folder.name) as cache:
            began = time.perf_counter()
            rows = prepare_text('words', data.sources['words'], 'train', tokenizer, data=data, cache_dir=cache,
                                seq_len=job['config']['seq_len'], progress=lambda what, done, total: None)
            prepared = time.perf_counter() - began
            stream = Mixture.from_config({'words': rows}, data, job['seed'], _BATCH)
            began = time.perf_counter()
            for first in range(0, _ROWS, _BATCH):
                stream.rows(np.arange(first, first + _BATCH))
            read = time.perf_counter() - began
        return {'tokenised MB/s': megabytes / tokenised, 'prepared MB/s': megabytes / prepared,
                'rows, tokens/s': _ROWS * job['config']['seq_len'] / read}
    return Work(turn)


def documents(size: int, seed: int) -> list[str]:
    """Generated prose of about that many bytes: words by Zipf's law, with commas and full stops."""
    draw, letters = random.Random(seed), 'etaoinshrdlcumwfgypbvk'
    words = [''.join(draw.choices(letters, weights=range(len(letters), 0, -1), k=draw.randint(2, 10)))
             for _ in range(20_000)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    found: list[str] = []
    while sum(map(len, found)) < size:
        chosen = draw.choices(words, weights, k=_DOCUMENT_WORDS)
        found.append(' '.join(word + draw.choices(('', ',', '.'), (12, 2, 1))[0] for word in chosen))
    return found


def write(path: pathlib.Path, texts: list[str]) -> None:
    path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))


if __name__ == '__main__':
    serve(make, ('sentencepiece', 'grain', 'numpy'))

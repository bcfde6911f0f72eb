"""What a finished stage is measured by, beside yardsticks: the parts that stages share, and a language model's bits.

In: a `Run`, the chosen parameters, the documents of its data. Out: plain JSON, for `figures.json`.
Left out: the yardsticks themselves (`yardsticks`, `ngrams`); figures of one stage (in that stage).
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from llm.config import DataConfig
from llm.data import corpus, sources
from llm.data.prepare import prepare_text
from llm.data.records import check_kind
from llm.envs.preference import whole_rows
from llm.errors import UserError
from llm.evaluate import spread
from llm.model.transformer import Transformer
from llm.ngrams import KneserNey
from llm.objectives.log_probs import token_log_probs
from llm.run import Run
from llm.sharding import global_batch
from llm.yardsticks import gzip_bits_per_byte

Ids = tuple[list[int], list[int]]  # token ids, and 1 beside each that counts

_MOST_WORKS = 16  # titled documents of a source that are measured one by one; of more, only all together
_LEAST_WORK_BYTES = 4096  # shorter titled documents are no works: all would be cut to the length of the shortest
_WIDTH = 32  # rows are a multiple of it, in tokens: each width is compiled once
_BYTES_PER_TOKEN = 4  # about; turns `figures.rows` into bytes of text


def records(run: Run, data: DataConfig, name: str, split: str, kind: str) -> list[dict[str, Any]]:
    """All records of a source's split that can be used as `kind` (`check_kind`), cleaned as rows are, but for train's.

    Those only yardsticks read, which may well see what was left out for the model, and cleaning them again takes time.
    Raises UserError where a split to measure on has none.
    """
    source, bad = data.sources[name], sources.BadRows(data.max_bad_percent)
    check = functools.partial(check_kind, kind=kind, source=name)
    with run.phases.during('data'):
        if split == 'train':
            every = sources.records(source, split, data.data_dir, bad, similarity=data.clean.duplicate_similarity)
            found = list(corpus.checked(every, bad, check))
        else:
            read, account = corpus.read(source, split, data, bad, check=check)
            found = list(read)
            run.account(data, name, split, dataclasses.asdict(account))
    bad.check()
    if not found and split != 'train':
        raise UserError(f'source {name} has nothing to measure on in {split} ({bad.seen} rows before cleaning); give '
                        f'it at least one record, or set figures.rows=0')
    return found


def test_splits(data: DataConfig) -> dict[str, str]:
    """By source, the split that figures are of."""
    return {name: sources.test_split(source, data.data_dir) for name, source in data.sources.items()}


# Models, over rows that no stage trains on.

def over_rows(run: Run, score: Callable[[Any, dict[str, jax.Array]], jax.Array]) -> Callable[..., np.ndarray]:
    """Returns each(params, rows) -> score(params, batch) of all rows [rows], compiled once, in batches of one shape."""
    # Replicated, so that every process has all of them.
    score = jax.jit(score, out_shardings=NamedSharding(run.mesh, PartitionSpec()))
    size = run.config.batch_size

    def each(params: Any, rows: dict[str, np.ndarray]) -> np.ndarray:
        count = len(next(iter(rows.values())))
        filled = [np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)]
        made = [np.asarray(score(params, global_batch(
            lambda places: {name: field[indices[places]] for name, field in rows.items()},
            np.arange(size), run.rows_sharding))) for indices in filled]
        return np.concatenate(made)[:count] if made else np.zeros(0)
    return each


def reader(run: Run) -> Callable[[Any, list[Ids]], np.ndarray]:
    """Returns read(params, sequences) -> [sequences] float64: -log p of the tokens that count in each of them.

    A sequence is read in windows of `seq_len` tokens, as training rows are: a token is predicted from those before it
    in its window, 1 to `seq_len` of them.
    """
    model = Transformer(run.model_config, run.config.exec)
    pad = run.tokenizer.special_ids['pad']

    def row_nats(params, batch):
        tokens_BT, variables = batch['tokens_BT'], {'params': params}
        x_BTD = model.apply(variables, tokens_BT, *whole_rows(tokens_BT), method='hidden')
        found = token_log_probs(x_BTD, model.apply(variables, method='unembedding'), batch['targets_BT'],
                                **model.log_probs_options())
        return -jnp.sum(found.logp_BT * batch['mask_BT'], axis=1)
    each = over_rows(run, row_nats)

    def read(params: Any, sequences: list[Ids]) -> np.ndarray:
        longest = max([1, *(len(ids) - 1 for ids, _ in sequences)])
        width = min(run.config.seq_len, -(-longest // _WIDTH) * _WIDTH)  # short ones in short rows, of few widths
        cuts = [(number, start) for number, (ids, _) in enumerate(sequences) for start in range(0, len(ids) - 1, width)]
        rows = {'tokens_BT': np.full((len(cuts), width), pad, np.int32),
                'targets_BT': np.full((len(cuts), width), pad, np.int32),
                'mask_BT': np.zeros((len(cuts), width), np.float32)}
        for row, (number, start) in enumerate(cuts):
            ids, learn = (part[start:start + width + 1] for part in sequences[number])
            for name, part in zip(rows, (ids[:-1], ids[1:], learn[1:])):
                rows[name][row, :len(part)] = part
        return np.bincount(np.array([number for number, _ in cuts], np.int64), each(params, rows), len(sequences))
    return read


# A language model's bits per byte.

def test_documents(run: Run) -> dict[str, list[str]]:
    """The `test_parts` of a run's data, about `figures.rows` rows of text each."""
    found = {name: records(run, run.config.data, name, split, 'text')
             for name, split in test_splits(run.config.data).items()}
    return test_parts(found, run.config.figures.rows * run.config.seq_len * _BYTES_PER_TOKEN)


def bits_per_byte(run: Run, params: Any, parts: dict[str, list[str]]) -> dict[str, Any]:
    """Held-out bits per byte of the model, of gzip and of Kneser-Ney trigrams over bytes and over tokens.

    Of each titled document that is not very short (all cut to the length of the shortest, so that none outweighs
    another), of each source (its documents together) and of `works`, all titled ones together. Of a source without
    titles, or with very many, about `figures.rows` rows of text are taken, of documents all over it. What is coded are
    the documents' bytes: the model and the trigrams start every document anew, gzip has a part's documents one after
    another; no one codes their ends.

    Args:
      parts: `test_documents`.
    """
    texts = list(dict.fromkeys(text for part in parts.values() for text in part))
    nats = {coder: dict(zip(texts, of_texts)) for coder, of_texts in _nats(run, params, texts).items()}

    def measured(part: list[str]) -> dict[str, float]:
        together = ''.join(part).encode()
        bits = {coder: float(sum(of_text[text] for text in part)) / math.log(2) for coder, of_text in nats.items()}
        return {'bytes': len(together), 'gzip': gzip_bits_per_byte(together),
                **{coder: total / len(together) for coder, total in bits.items()}}
    return {'split': said(test_splits(run.config.data)),
            'context': f'of each token: its window of {run.config.seq_len}, up to it',
            'bits_per_byte': {name: measured(part) for name, part in parts.items()}}


def test_parts(documents: dict[str, list[dict[str, Any]]], most_bytes: int) -> dict[str, list[str]]:
    """What is measured, by name: 'SOURCE/TITLE', 'SOURCE' and 'works'; `documents` are records by source.

    Where a source has works, its shorter documents are left out; documents of one title stand together.
    """
    titled = {name: works for name, found in documents.items() if (works := _works(found))}
    length = min([most_bytes, *(len(record['text'].encode()) for works in titled.values() for record in works)])
    parts: dict[str, list[str]] = {}
    for name, found in documents.items():
        if name not in titled:
            parts[name] = _up_to([record['text'] for record in found], most_bytes)
        for record in titled.get(name, []):
            text = _cut(record['text'], length)
            for part in (f'{name}/{record["title"]}', name, 'works'):
                parts.setdefault(part, []).append(text)
    return {name: texts for name, texts in parts.items() if any(texts)}


def _works(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The long documents of a source whose documents all have titles, unless they are very many."""
    long = [record for record in found if len(record['text'].encode()) >= _LEAST_WORK_BYTES]
    return long if len(long) <= _MOST_WORKS and all('title' in record for record in found) else []


def _cut(text: str, size: int) -> str:
    """Its first `size` bytes, less a character that the cut goes through."""
    return text.encode()[:size].decode(errors='ignore')


def _up_to(texts: list[str], size: int) -> list[str]:
    """About as many of the texts as have `size` bytes together, spread evenly; cut where they have more."""
    total, chosen = sum(len(text.encode()) for text in texts), []
    for text in spread(texts, math.ceil(len(texts) * size / max(1, total))):
        if size <= 0:
            break
        chosen.append(_cut(text, size))
        size -= len(text.encode())
    return chosen


def _nats(run: Run, params: Any, texts: list[str]) -> dict[str, Any]:
    """By coder, the nats of each text."""
    coded = [run.tokenizer.encode_document(text) for text in texts]
    tokens = training_tokens(run)
    as_bytes = [np.frombuffer(run.tokenizer.decode(ids).encode(), np.uint8) for ids in tokens]
    byte_trigram, token_trigram = KneserNey(as_bytes, 256), KneserNey(tokens, run.tokenizer.vocab_size)
    return {
        'model': reader(run)(params, [(ids[:-1], learn[:-1]) for ids, learn in coded]),
        'kn_byte_trigram': [byte_trigram.nats(np.frombuffer(text.encode(), np.uint8)).sum() for text in texts],
        'kn_token_trigram': [token_trigram.nats(np.array(ids[1:-1], np.int64)).sum() for ids, _ in coded]}


def training_tokens(run: Run) -> list[np.ndarray]:
    """Token ids of training documents, `figures.yardstick_bytes` bytes at most; of each source by its tokens' share."""
    corpora = run.corpora(prepare_text, 'train', seq_len=run.config.seq_len)
    total, chosen = sum(rows.meta['tokens'] for rows in corpora.values()), []
    for rows in corpora.values():
        left = run.config.figures.yardstick_bytes * rows.meta['tokens'] // total
        for number in range(rows.meta['records']):
            ids = rows.document(number)[1:-1]
            sizes = np.cumsum(run.tokenizer.token_bytes_V[ids])
            chosen.append(np.asarray(ids[:np.searchsorted(sizes, left, side='right')]))
            left -= sizes[-1] if len(sizes) else 0
            if left <= 0:
                break
    return chosen


def fitted_on(run: Run, texts: Sequence[str]) -> list[int]:
    """Numbers of the training texts that a yardstick is fitted on: about `figures.yardstick_bytes` bytes, spread."""
    size = sum(len(text.encode()) for text in texts)
    return spread(range(len(texts)), len(texts) * run.config.figures.yardstick_bytes // max(size, 1))


def said(splits: dict[str, str]) -> str:
    """The splits of the sources, each once, as one word where they are all one."""
    return ', '.join(sorted(set(splits.values())))

"""Once per corpus: clean, tokenise and pack; afterwards rows are read from memory-mapped arrays.

In: a source's records and a tokenizer. Out: a folder `<cache_dir>/<source>-<split>-<hash8>` as `rows.py`
reads it, made under another name and renamed when complete, so that two processes may prepare one corpus.
Left out: what is cleaned away and why (`corpus.py`), order, batches.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
import tempfile

import numpy as np

from llm.config import DataConfig, SourceConfig
from llm.data import corpus, sources
from llm.data.records import check_kind
from llm.data.rows import PackedRows, PromptRows, RankedRows
from llm.data.tokenizer import Tokenizer
from llm.errors import UserError
from llm.identity import digest

_FORMAT = 3  # of the folder; part of its hash
_BLOCK = 1024  # chats that are packed together
_REPORT_EVERY = 500  # records

Sequences = list[tuple[list[int], list[int]]]  # (ids, learn) of every sequence of a record
Index = tuple[np.ndarray, np.ndarray]  # pieces [P, 3] and row_starts [rows + 1]


@dataclasses.dataclass(frozen=True)
class _Job:
    """What is prepared, out of what."""

    kind: str  # 'text' | 'chat' | 'ranked' | 'prompt'
    name: str  # of the source
    source: SourceConfig
    split: str
    tokenizer: Tokenizer
    seq_len: int
    data: DataConfig
    answers: int = 0

    def key(self) -> str:
        content = [sources.content_sha256(source, split, self.data.data_dir)
                   for source, split in [(self.source, self.split), *self.kept_apart()]]
        return digest([_FORMAT, self.kind, self.split, self.tokenizer.sha256, self.seq_len, self.answers,
                       content, self.data.max_bad_percent, dataclasses.asdict(self.data.clean)])

    def kept_apart(self) -> list[tuple[SourceConfig, str]]:
        """The splits that this one is cleaned of."""
        return corpus.evaluation_splits(self.data) if self.data.clean.overlap_words else []


def prepare_text(name: str, source: SourceConfig, split: str, tokenizer: Tokenizer, *, seq_len: int,
                 data: DataConfig, cache_dir: str, progress: sources.Progress) -> PackedRows:
    """Rows of text: windows of `seq_len` tokens of the stream of documents; the last may end in padding."""
    def encode(record):
        return [tokenizer.encode_document(record['text'])]
    job = _Job('text', name, source, split, tokenizer, seq_len, data)
    return PackedRows(_prepared(job, encode, _windows, cache_dir, progress), tokenizer)


def prepare_chats(name: str, source: SourceConfig, split: str, tokenizer: Tokenizer, *, seq_len: int,
                  data: DataConfig, cache_dir: str, progress: sources.Progress) -> PackedRows:
    """Rows of whole chats, packed first-fit; only answers are learned. Longer chats are dropped."""
    def encode(record):
        return [tokenizer.encode_chat(record['messages'])]
    job = _Job('chat', name, source, split, tokenizer, seq_len, data)
    return PackedRows(_prepared(job, encode, _first_fit, cache_dir, progress), tokenizer)


def prepare_ranked(name: str, source: SourceConfig, split: str, tokenizer: Tokenizer, *, seq_len: int,
                   data: DataConfig, cache_dir: str, progress: sources.Progress, answers: int) -> RankedRows:
    """Groups of the first `answers` answers to one prompt; a group with a too long one is dropped."""
    def encode(record):
        prompt = tokenizer.encode_prompt(record['messages'])
        chosen = [prompt + tokenizer.encode_answer(answer) for answer in record['answers'][:answers]]
        return [(ids, [0] * len(prompt) + [1] * (len(ids) - len(prompt))) for ids in chosen]
    job = _Job('ranked', name, source, split, tokenizer, seq_len, data, answers)
    return RankedRows(_prepared(job, encode, _groups, cache_dir, progress), tokenizer)


def prepare_prompts(name: str, source: SourceConfig, split: str, tokenizer: Tokenizer, *, seq_len: int,
                    data: DataConfig, cache_dir: str, progress: sources.Progress) -> PromptRows:
    """Prompts of at most `seq_len` tokens; longer ones are dropped."""
    def encode(record):
        ids = tokenizer.encode_prompt(record['messages'])
        return [(ids, [0] * len(ids))]
    job = _Job('prompt', name, source, split, tokenizer, seq_len, data)
    return PromptRows(_prepared(job, encode, _groups, cache_dir, progress), tokenizer)


def _prepared(job: _Job, encode: Callable[[dict], Sequences], index: Callable[..., Index], cache_dir: str,
              progress: sources.Progress) -> pathlib.Path:
    """The job's folder, made if it is not there."""
    for source in {'': job.source, **job.data.sources}.values():
        sources.materialize(source, job.data.data_dir, progress)
    key = job.key()
    folder = pathlib.Path(cache_dir).expanduser() / f'{job.name}-{job.split}-{key[:8]}'
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f'{folder.name}.partial-', dir=folder.parent))
    try:
        _write(job, encode, index, partial, progress)
        try:
            partial.rename(folder)
        except OSError:
            # Another process was first, and its folder holds the same bytes.
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write(job: _Job, encode: Callable[[dict], Sequences], index: Callable[..., Index], folder: pathlib.Path,
           progress: sources.Progress) -> None:
    bad = sources.BadRows(job.data.max_bad_percent)
    records, account = corpus.read(job.source, job.split, job.data, bad, may_repeat=job.kind == 'prompt',
                                   check=functools.partial(check_kind, kind=job.kind, source=job.name))
    counts = {'records': 0, 'dropped': 0}
    dtype = np.dtype(np.uint16 if job.tokenizer.vocab_size <= 2**16 else np.int32)
    lengths, group_sizes, scores = [], [], []
    with (folder / 'tokens.bin').open('wb') as tokens, (folder / 'learn.bin').open('wb') as learned:
        for record in _watched(job, records, bad, progress):
            sequences = encode(record)
            if job.kind != 'text' and max(len(ids) for ids, _ in sequences) > job.seq_len:
                counts['dropped'] += 1
                continue
            counts['records'] += 1
            group_sizes.append(len(sequences))
            scores += record.get('scores', [])[:len(sequences)]
            for ids, learn in sequences:
                tokens.write(np.asarray(ids, dtype).tobytes())
                learned.write(np.asarray(learn, np.uint8).tobytes())
                lengths.append(len(ids))
    bad.check()
    if not lengths:
        raise UserError(_nothing(job, counts['dropped'], bad, account))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    pieces, row_starts = index(np.asarray(lengths), np.asarray(group_sizes), job.seq_len)
    arrays = {'starts': starts, 'pieces': pieces, 'row_starts': row_starts,
              'scores': np.asarray(scores, np.float32)}
    described = {'tokens': (dtype.name, [int(starts[-1])]), 'learn': ('uint8', [int(starts[-1])])}
    for name, array in arrays.items():
        if array.size:
            array.tofile(folder / f'{name}.bin')
            described[name] = (array.dtype.name, list(array.shape))
    meta = {'name': job.name, 'split': job.split, 'kind': job.kind, 'key': job.key(), 'seq_len': job.seq_len,
            'answers': job.answers, **counts, 'rows': len(row_starts) - 1, 'tokens': int(starts[-1]),
            'bad_rows': len(bad.named), 'cleaning': dataclasses.asdict(account), 'arrays': described,
            'sha256': _sha256(folder, described)}
    meta['note'] = _note(job, meta, bad)
    (folder / 'bad_rows.txt').write_text(''.join(line + '\n' for line in bad.named))
    (folder / 'meta.json').write_text(json.dumps(meta, indent=1))


def _watched(job: _Job, records: Iterator[dict], bad: sources.BadRows,
             progress: sources.Progress) -> Iterator[dict]:
    """The records, with word of how many were read."""
    total = sources.size(job.source, job.split, job.data.data_dir)
    what = f'prepare {job.name}/{job.split}'
    for number, record in enumerate(records):
        if number and number % _REPORT_EVERY == 0:
            progress(what, number, total)
        yield record
    progress(what, bad.seen, bad.seen)


def _nothing(job: _Job, dropped: int, bad: sources.BadRows, account: corpus.Account) -> str:
    where = f'source {job.name} has nothing for {job.split}'
    if dropped:
        return f'{where}: all {dropped} records are longer than {job.seq_len} tokens; allow longer rows'
    if account.dropped:
        return (f'{where}: cleaning leaves none of {account.documents} documents ({account.reasons()}); '
                'loosen clean')
    if bad.named:
        return f'{where}: {len(bad.named)} of {bad.seen} rows are bad ({bad.first()}); mend them'
    if job.split == 'validation' and not job.source.tfds:
        return f'{where}; raise its holdout_percent={job.source.holdout_percent}, or name validation_files'
    return f'{where}; give it at least one record'


def _note(job: _Job, meta: dict, bad: sources.BadRows) -> str:
    note = f'{job.name}/{job.split}: {meta["records"]} records, {meta["tokens"]} tokens, {meta["rows"]} rows'
    if meta['dropped']:
        note += f'; {meta["dropped"]} longer than {job.seq_len} tokens dropped'
    if meta['cleaning']['dropped']:
        note += f'; cleaned of {corpus.Account(**meta["cleaning"]).reasons()}'
    if bad.named:
        note += f'; {len(bad.named)} bad rows left out ({bad.first()})'
    return note


def _sha256(folder: pathlib.Path, described: dict) -> str:
    total = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(described):
        with (folder / f'{name}.bin').open('rb') as file:
            total.update(hashlib.file_digest(file, 'sha256').digest())
    return total.hexdigest()


def _windows(lengths: np.ndarray, group_sizes: np.ndarray, seq_len: int) -> Index:
    """Cuts the stream at every document's start and at every multiple of seq_len."""
    del group_sizes
    starts = np.concatenate([[0], np.cumsum(lengths)])
    cuts = np.union1d(starts, np.arange(0, starts[-1], seq_len))
    begin, end = cuts[:-1], cuts[1:]
    document = np.searchsorted(starts, begin, side='right') - 1
    pieces = np.stack([document, begin - starts[document], end - starts[document]], axis=1)
    rows = np.arange(-(-starts[-1] // seq_len) + 1) * seq_len
    return pieces, np.searchsorted(begin, rows)


def _first_fit(lengths: np.ndarray, group_sizes: np.ndarray, seq_len: int) -> Index:
    """Puts each document of a block into the first row of the block that has room for it."""
    del group_sizes
    rows: list[list[int]] = []
    for block in range(0, len(lengths), _BLOCK):
        free, first = np.zeros(0, np.int64), len(rows)
        for document in range(block, min(block + _BLOCK, len(lengths))):
            fits = np.flatnonzero(free >= lengths[document])
            if not len(fits):
                free, fits = np.append(free, seq_len), [len(free)]
                rows.append([])
            free[fits[0]] -= lengths[document]
            rows[first + fits[0]].append(document)
    order = np.concatenate(rows)
    pieces = np.stack([order, np.zeros_like(order), lengths[order]], axis=1)
    return pieces, np.concatenate([[0], np.cumsum([len(row) for row in rows])])


def _groups(lengths: np.ndarray, group_sizes: np.ndarray, seq_len: int) -> Index:
    """A row for each record, whose pieces are its sequences."""
    del seq_len
    pieces = np.stack([np.arange(len(lengths)), np.zeros_like(lengths), lengths], axis=1)
    return pieces, np.concatenate([[0], np.cumsum(group_sizes)])

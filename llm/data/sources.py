"""Where documents come from: TFDS sets stored as array_record, JSON lines, plain text.

In: a `SourceConfig`. Out: records (`records.py`).
Left out: tokens (`prepare.py`), the order of rows (`order.py`).
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import glob
import hashlib
import io
import json
import os
from typing import Any

from etils import epath
import tensorflow_datasets as tfds

from llm.config import SourceConfig
from llm.data.clean import clusters, fold
from llm.data.datasets import BUILDERS
from llm.data.records import FIELDS, BadRow, BadRows, plain, record, text_of
from llm.data.splits import fraction
from llm.door import nearest
from llm.errors import UserError
from llm.identity import digest

Progress = Callable[[str, int, int], None]  # what, done, total (0: not known)

_READ_AT_ONCE = 256  # records of a TFDS set


def materialize(source: SourceConfig, data_dir: str, progress: Progress) -> None:
    """Downloads and builds one of our own TFDS sets, if it is not there; does nothing for other sources."""
    name = (source.tfds or '').split('/')[0].split(':')[0]
    if name not in BUILDERS:
        return
    builder = _builder(source.tfds, data_dir)
    if _is_built(builder):
        return
    progress(f'build {source.tfds}', 0, 1)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS reports by print
            builder.download_and_prepare(file_format='array_record')
    except OSError as error:
        # Another process may have been first: its finished folder cannot be replaced by ours.
        if not _is_built(builder):
            raise UserError(f'data_dir={data_dir} cannot be written ({error}); name a folder with room') from error
    progress(f'build {source.tfds}', 1, 1)


def records(source: SourceConfig, split: str, data_dir: str, bad: BadRows, *,
            similarity: float = 0.0) -> Iterator[dict[str, Any]]:
    """The records of a split ('train', 'validation', 'test' or another that a TFDS set has).

    Malformed rows go to `bad`. Where a source holds documents out by a hash, near-copies of this `similarity`
    (`clean.clusters`) are held out together; 0 keeps only equal ones together.
    """
    for name in source.fields:
        if name not in FIELDS:
            raise UserError(f'data source fields.{name} is not a field of ours{nearest(name, FIELDS)}')
    if not _holds_out(source) or _is_one_text(source):
        for _, row in _good(source, split, data_dir, bad):
            yield row
    elif not similarity:
        for _, row in _good(source, split, data_dir, bad):
            if _in_holdout(json.dumps(row, sort_keys=True), source) == (split == 'validation'):
                yield row
    else:
        found = list(_good(source, split, data_dir, bad))
        texts = [text_of(row) for _, row in found]
        first = clusters(texts, similarity, templates=all('text' in row for _, row in found))
        for (where, row), index in zip(found, first):
            if _in_holdout(fold(texts[index]), source) == (split == 'validation'):
                bad.at(where)
                yield row


def _good(source: SourceConfig, split: str, data_dir: str, bad: BadRows) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, the record) of every row that is not malformed."""
    for where, read in _rows(source, split, data_dir):
        bad.start(where)
        try:
            row = record(read(), source.fields)
        except BadRow as error:
            bad.add(str(error))
        except UnicodeError:
            bad.add('invalid UTF-8')
        except (ValueError, RecursionError):
            bad.add('not JSON')
        else:
            yield where, row


def size(source: SourceConfig, split: str, data_dir: str) -> int:
    """How many records a split of a TFDS set has; 0, not known, for other sources."""
    return len(_data_source(source, split, data_dir)) if source.tfds else 0


def test_split(source: SourceConfig, data_dir: str) -> str:
    """The split that figures are measured on: 'test', or 'validation' where that is the test split or there is none."""
    chooses = _split_name(source, 'validation').partition('[')[0]
    untouched = source.tfds and chooses != 'test' and 'test' in _built(source, data_dir).info.splits
    return 'test' if untouched else 'validation'


def single_ratings(source: SourceConfig, split: str, data_dir: str, progress: Progress) -> dict[str, list[int]]:
    """Every person's rating of each text of a split, where a set of ours knows them one by one."""
    base, _, own = (source.tfds or '').partition(':')[0].partition('/')

    def rows(view: str) -> Iterator[dict[str, Any]]:
        beside = dataclasses.replace(source, tfds=f'{base}/{view}')
        materialize(beside, data_dir, progress)
        return map(plain, _each(_data_source(beside, split, data_dir)))
    known = getattr(BUILDERS.get(base), 'single_ratings', None)
    return known(own, rows) if known else {}


def content_sha256(source: SourceConfig, split: str, data_dir: str) -> str:
    """A hash of what the split's records are made of, the same wherever the files lie.

    Of a TFDS set the hash is kept in `data_dir`, so that a large set is read once.
    """
    recipe = [source.fields, _split_name(source, split) if source.tfds else split,
              source.holdout_percent if _holds_out(source) else None]
    if not source.tfds:
        kind = 'jsonl' if source.jsonl else 'text'
        return digest([recipe, kind, [_file_sha256(file) for file in _files(source, split)]])
    stats = [(file.name, file.stat().length, file.stat().mtime)
             for file in sorted(_builder(source.tfds, data_dir).data_path.iterdir())]
    kept = epath.Path(data_dir).expanduser() / 'content' / f'{digest([source.tfds, recipe, stats])}.sha256'
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.parent / f'{kept.name}.{os.getpid()}.partial'
        partial.write_text(digest([recipe, _records_sha256(source, split, data_dir)]))
        partial.replace(kept)
    return kept.read_text()


def _records_sha256(source: SourceConfig, split: str, data_dir: str) -> str:
    """Of the records, because two builds of a TFDS set differ in their files' bytes (the order of fields)."""
    total = hashlib.sha256()
    for row in _each(_data_source(source, split, data_dir)):
        total.update(json.dumps(row, sort_keys=True, default=_json_value).encode() + b'\n')
    return total.hexdigest()


def _json_value(value: Any) -> Any:
    return value.decode('latin-1') if isinstance(value, bytes) else value.tolist()


def _file_sha256(file: epath.Path) -> str:
    with file.open('rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


# Rows: (where, a function that reads the row and may raise ValueError).

def _rows(source: SourceConfig, split: str, data_dir: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    if source.tfds:
        for number, row in enumerate(_each(_data_source(source, split, data_dir))):
            yield f'{source.tfds}/{split} row {number}', functools.partial(plain, row)
    elif source.jsonl:
        for file in _files(source, split):
            with file.open('rb') as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield f'{file}:{number}', functools.partial(_parsed, line)
    elif _is_one_text(source):
        yield from _cut_text(source, split)
    else:
        for file in _files(source, split):
            yield str(file), functools.partial(_document, file)


def _parsed(line: bytes) -> Any:
    return json.loads(line.decode('utf-8-sig'))


def _document(file: epath.Path) -> dict[str, str]:
    return {'text': file.read_bytes().decode('utf-8-sig')}


def _cut_text(source: SourceConfig, split: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The one document of a source that is one file: its end is held out, from the start of a line."""
    file, = _files(source, split)
    content = file.read_bytes()
    cut = content.find(b'\n', int(len(content) * (1 - source.holdout_percent / 100))) + 1 or len(content)
    part = content[:cut] if split == 'train' else content[cut:]
    if part:
        yield str(file), lambda: {'text': part.decode('utf-8-sig')}


def _holds_out(source: SourceConfig) -> bool:
    return not source.tfds and source.validation_files is None


def _is_one_text(source: SourceConfig) -> bool:
    return bool(source.text) and _holds_out(source) and len(_files(source, 'train')) == 1


def _in_holdout(text: str, source: SourceConfig) -> bool:
    return fraction(text) < source.holdout_percent / 100


def _files(source: SourceConfig, split: str) -> list[epath.Path]:
    kind = 'jsonl' if source.jsonl else 'text'
    if split == 'test':
        raise UserError(f'{kind}={getattr(source, kind)} has no test split; use train or validation')
    if split == 'validation' and source.validation_files is not None:
        return _glob('validation_files', source.validation_files)
    return _glob(kind, getattr(source, kind))


def _glob(key: str, pattern: str) -> list[epath.Path]:
    path = epath.Path(pattern).expanduser()
    if path.is_file():
        return [path]
    # epath's own glob, the one that can read a bucket, refuses '**'.
    bucket = '://' in pattern
    found = path.parent.glob(path.name) if bucket else map(epath.Path, glob.glob(str(path), recursive=True))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise UserError(f'{key}={pattern} matches no file; check the path')
    return files


# TFDS.

def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    folder = str(epath.Path(data_dir).expanduser())
    view, _, version = name.partition(':')
    base, _, config = view.partition('/')
    if base in BUILDERS:
        known = sorted(BUILDERS[base].builder_configs)
        if (config or None) not in (known or [None]):
            remedy = nearest(config, known) if known else f'; use tfds={base}'
            raise UserError(f'tfds={name} is not a view of {base}{remedy}')
        if version not in ('', str(BUILDERS[base].VERSION)):
            raise UserError(f'tfds={name}: version {version} is not ours; use {BUILDERS[base].VERSION}')
        return BUILDERS[base](config=config or None, data_dir=folder, file_format='array_record')
    try:
        builder = tfds.core.read_only_builder.builder_from_files(
            base, data_dir=folder, config=config or None, version=version or None)
    except tfds.core.registered.DatasetNotFoundError:
        raise UserError(f'tfds={name} is not built in data_dir={data_dir}{nearest(base, BUILDERS)} (ours), '
                        'or build it there with `tfds build --file_format=array_record`') from None
    if builder.info.file_format.value != 'array_record':
        raise UserError(f'tfds={name} is stored as {builder.info.file_format.value}, which needs TensorFlow; '
                        'build it with `tfds build --file_format=array_record`')
    return builder


def _is_built(builder: tfds.core.DatasetBuilder) -> bool:
    # builder.is_prepared() says the same, and a warning where it is not.
    return (builder.data_path / 'dataset_info.json').exists()


def _split_name(source: SourceConfig, split: str) -> str:
    return {'train': source.train_split, 'validation': source.validation_split}.get(split, split)


def _built(source: SourceConfig, data_dir: str) -> tfds.core.DatasetBuilder:
    builder = _builder(source.tfds, data_dir)
    if not _is_built(builder):
        raise UserError(f'tfds={source.tfds} is not built in data_dir={data_dir}; run a stage that '
                        'learns from it, or name the data_dir where it is')
    return builder


def _data_source(source: SourceConfig, split: str, data_dir: str):
    builder, name = _built(source, data_dir), _split_name(source, split)
    try:
        return builder.as_data_source(split=name)
    except (KeyError, ValueError):
        raise UserError(f'tfds={source.tfds} has no split {name!r}; set {split}_split to one of '
                        f'{", ".join(builder.info.splits)}, or to a part such as train[:95%]') from None


def _each(data_source) -> Iterator[dict[str, Any]]:
    for start in range(0, len(data_source), _READ_AT_ONCE):
        yield from data_source.__getitems__(range(start, min(start + _READ_AT_ONCE, len(data_source))))

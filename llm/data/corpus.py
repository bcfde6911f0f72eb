"""What is learned or measured of a source's split: its records after cleaning, with an account of what was left out.

In: a `DataConfig`, a source's name, a split. Out: records (`records.py`) and an `Account`.
Left out: what is wrong with a text (`clean.py`), tokens (`prepare.py`).

Near-copies and overlaps are looked for in memory; with `clean.duplicate_similarity` and `clean.overlap_words` at 0
records are streamed.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
import dataclasses
from typing import Any

from llm.config import CleanConfig, DataConfig, SourceConfig
from llm.data import clean, sources
from llm.data.records import text_of
from llm.identity import digest

Record = dict[str, Any]

_EXAMPLES, _EXCERPT_CHARS = 3, 160
_PHRASES: dict[str, frozenset[str]] = {}  # of `evaluation_phrases`, by what they were made of


@dataclasses.dataclass
class Account:
    """What cleaning did, complete when the records have been read.

    `dropped` counts documents by reason, and under `overlap_passages` passages that were cut out of kept ones.
    """

    documents: int = 0
    kept: int = 0
    chars: int = 0
    kept_chars: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def drop(self, reason: str, text: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(' '.join(text[:2 * _EXCERPT_CHARS].split())[:_EXCERPT_CHARS])

    def reasons(self) -> str:
        """'12 duplicate, 3 overlap', or ''."""
        return ', '.join(f'{count} {reason}' for reason, count in self.dropped.items())


def read(source: SourceConfig, split: str, data: DataConfig, bad: sources.BadRows, *, may_repeat: bool = False,
         check: Callable[[Record], None] = lambda record: None) -> tuple[Iterator[Record], Account]:
    """The records of one source's split that are fit to use.

    Args:
      data: how they are cleaned, and from which sources' evaluation splits they are kept apart.
      may_repeat: whether near-copies stay.
      check: raises ValueError for a record that this use cannot read; it is then a bad row.
    """
    account = Account()
    found = sources.records(source, split, data.data_dir, bad, similarity=data.clean.duplicate_similarity)
    kept = _fit(checked(found, bad, check), data.clean, account)
    if data.clean.duplicate_similarity and not may_repeat:
        kept = _distinct(list(kept), data.clean.duplicate_similarity, account)
    if data.clean.overlap_words and split not in _evaluation_splits(source, data):
        kept = _apart(list(kept), evaluation_phrases(data), data.clean.overlap_words, account)
    return _counted(kept, account), account


def evaluation_splits(data: DataConfig) -> list[tuple[SourceConfig, str]]:
    """Everything that training records are kept apart from."""
    return [(source, split) for source in data.sources.values() for split in _evaluation_splits(source, data)]


def evaluation_phrases(data: DataConfig) -> frozenset[str]:
    """Every phrase of `clean.overlap_words` words in the validation and test splits of all sources.

    Those of the last data asked for are kept: all its sources, and the tokenizer, are cleaned of the same.
    """
    splits, words, similarity = evaluation_splits(data), data.clean.overlap_words, data.clean.duplicate_similarity
    key = digest([words, similarity, [sources.content_sha256(*split, data.data_dir) for split in splits]])
    if key not in _PHRASES:
        _PHRASES.clear()
        _PHRASES[key] = frozenset(
            phrase for source, split in splits
            for record in sources.records(source, split, data.data_dir, sources.BadRows(100.0), similarity=similarity)
            for phrase in clean.runs(clean.normalise(text_of(record)), words))
    return _PHRASES[key]


def splits_that_count(source: SourceConfig, data: DataConfig) -> list[str]:
    """Splits that decide what is learned: train, what chooses the step, what training records are kept apart from."""
    return ['train', *(_evaluation_splits(source, data) if data.clean.overlap_words else ['validation'])]


def _evaluation_splits(source: SourceConfig, data: DataConfig) -> list[str]:
    return sorted({'validation', sources.test_split(source, data.data_dir)})


def checked(found: Iterable[Record], bad: sources.BadRows, check: Callable[[Record], None]) -> Iterator[Record]:
    """The records that `check` raises no ValueError for; the others are bad rows."""
    for record in found:
        try:
            check(record)
        except ValueError as error:
            bad.add(str(error))
        else:
            yield record


def _fit(found: Iterable[Record], config: CleanConfig, account: Account) -> Iterator[Record]:
    """Normalised, without documents that have a fault of their own."""
    for record in found:
        record = _normalised(record)
        text = text_of(record)
        account.documents += 1
        account.chars += len(text)
        fault = clean.fault(text, config)
        if fault:
            account.drop(fault, text)
        else:
            yield record


def _normalised(value: Any) -> Any:
    if isinstance(value, str):
        return clean.normalise(value)
    if isinstance(value, list):
        return [_normalised(item) for item in value]
    return {key: _normalised(item) for key, item in value.items()} if isinstance(value, dict) else value


def _distinct(found: list[Record], similarity: float, account: Account) -> list[Record]:
    """One of each group of near-copies, in the order of `found`."""
    groups = clean.clusters([text_of(record) for record in found], similarity,
                            templates=all('text' in record for record in found))
    for index, first in enumerate(groups):
        if index != first:
            account.drop('duplicate', text_of(found[index]))
    return [record for index, record in enumerate(found) if index == groups[index]]


def _apart(found: list[Record], phrases: Set[str], words: int, account: Account) -> Iterator[Record]:
    """Texts without the passages that share a phrase with an evaluation split; other records with none at all."""
    shared = [phrases.intersection(clean.runs(text_of(record), words)) for record in found]
    documents = Counter(phrase for here in shared for phrase in here)
    for record, here in zip(found, shared):
        here = {phrase for phrase in here if documents[phrase] <= clean.TEMPLATE_DOCUMENTS}
        left, gone = clean.without(record['text'], here, words) if here and 'text' in record else ('', [])
        if here and not left:
            account.drop('overlap', text_of(record))
            continue
        for passage in gone:
            account.drop('overlap_passages', passage)
        yield {**record, 'text': left} if gone else record


def _counted(kept: Iterable[Record], account: Account) -> Iterator[Record]:
    for record in kept:
        account.kept += 1
        account.kept_chars += len(text_of(record))
        yield record

"""What a record may look like: five schemas of plain dicts, and the checks that bring a row to one of them.

  text    {'text'[, 'title']}
  rated   {'text', 'score'}: of a row whose score is asked for by `fields`; a higher score is better
  chat    {'messages'}: a list of {'role', 'content'}
  ranked  {'messages', 'answers', 'scores'}: a higher score is better
  prompt  {'messages'}: what the policy answers; a last message of the assistant is the beginning it is given

In: a row as JSON's types. Out: a record, or what is wrong with the row. A row may write 'prompt' for the one user
message, and 'ranks' (1 is best) or 'chosen' and 'rejected' for scores.
Left out: where rows come from (`sources.py`).
"""

import math
from typing import Any

import numpy as np

from llm.data.tokenizer import ROLES
from llm.errors import UserError

# What a record is used as -> the fields it has.
_KINDS = {'text': {'text'}, 'rated': {'text', 'score'}, 'chat': {'messages'},
          'ranked': {'messages', 'answers', 'scores'}, 'prompt': {'messages'}}
FIELDS = ('text', 'title', 'score', 'messages', 'prompt', 'answers', 'scores', 'ranks', 'chosen', 'rejected')


class BadRow(ValueError):
    """What is wrong with a row."""


class BadRows:
    """Counts rows and names the bad ones; raises UserError where their share is above `max_percent`."""

    def __init__(self, max_percent: float):
        self.max_percent = max_percent
        self.seen = 0
        self.named: list[str] = []  # 'file:line: what is wrong'
        self._here = ''

    def start(self, where: str) -> None:
        """The next row stands at `where`."""
        self.seen += 1
        self.at(where)

    def at(self, where: str) -> None:
        """The row looked at, one that was seen before, stands at `where`."""
        self._here = where

    def add(self, why: str) -> None:
        """The row looked at is bad."""
        self.named.append(f'{self._here}: {why}')
        if self.seen >= 1000:
            self.check()

    def check(self) -> None:
        if self.named and 100 * len(self.named) > self.max_percent * self.seen:
            raise UserError(f'{len(self.named)} of {self.seen} rows are bad, more than data.max_bad_percent='
                            f'{self.max_percent}: {self.first()}')

    def first(self) -> str:
        """The first few, on one line."""
        return '; '.join(self.named[:3]) + ('; ...' if len(self.named) > 3 else '')


def record(row: Any, fields: dict[str, str]) -> dict[str, Any]:
    """A row checked and brought to its schema; `fields` maps our names to the row's own.

    Raises BadRow, and UnicodeError for a string that is not Unicode text.
    """
    if not isinstance(row, dict):
        raise BadRow('not an object with fields')
    row = {**row, **{ours: row[theirs] for ours, theirs in fields.items() if theirs in row}}
    if 'answers' in row or 'chosen' in row:
        return {'messages': _prompt(row), **_ranking(row)}
    if 'messages' in row or 'prompt' in row:
        return {'messages': _prompt(row)}
    if 'text' in row and 'score' in fields:
        return {'text': _string(row, 'text'), 'score': _number(row, 'score')}
    if 'text' in row:
        title = {'title': _string(row, 'title')} if isinstance(row.get('title'), str) and row['title'] else {}
        return {'text': _string(row, 'text'), **title}
    raise BadRow(f'no field text, messages, prompt, answers or chosen; '
                 f'it has {", ".join(map(str, row)) or "none"}')


def check_kind(record: dict[str, Any], kind: str, source: str) -> None:
    """Raises BadRow for a record of a source that cannot be used as 'text', 'rated', 'chat', 'ranked' or 'prompt'."""
    if set(record) - {'title'} != _KINDS[kind]:
        raise BadRow(f'source {source} has {", ".join(sorted(record))} here, but this stage reads '
                     f'{", ".join(sorted(_KINDS[kind]))}; mend it, use another source, or set its fields')
    if kind == 'chat' and not any(message['role'] == 'assistant' for message in record['messages']):
        raise BadRow('no message of the assistant to learn from')


def text_of(record: dict[str, Any]) -> str:
    """All that a record says: its text, or its messages and answers, a line each."""
    if 'text' in record:
        return record['text']
    return '\n'.join([message['content'] for message in record['messages']] + record.get('answers', []))


def _string(row: dict[str, Any], key: str) -> str:
    if key not in row:
        raise BadRow(f'field {key} is missing')
    if not isinstance(row[key], str):
        raise BadRow(f'field {key} is {type(row[key]).__name__}, not a string')
    if not row[key]:
        raise BadRow(f'field {key} is empty')
    row[key].encode()  # raises UnicodeError for halves of surrogate pairs, which JSON can write
    return row[key]


def _number(row: dict[str, Any], key: str) -> float:
    if not _is_number(row.get(key)):
        raise BadRow(f'field {key} is {row.get(key)!r:.20}, not a finite number')
    return float(row[key])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _prompt(row: dict[str, Any]) -> list[dict[str, str]]:
    if 'messages' not in row:
        return [{'role': 'user', 'content': _string(row, 'prompt')}]
    messages = row['messages']
    if isinstance(messages, dict):  # TFDS gives a sequence of dicts as a dict of lists
        messages = [dict(zip(messages, values)) for values in zip(*messages.values())]
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise BadRow('field messages is not a list of objects')
    for message in messages:
        if _string(message, 'role') not in ROLES:
            raise BadRow(f'role {message["role"]!r} is not one of {", ".join(ROLES)}')
    return [{'role': message['role'], 'content': _string(message, 'content')} for message in messages]


def _ranking(row: dict[str, Any]) -> dict[str, Any]:
    if 'answers' not in row:
        return {'answers': [_string(row, 'chosen'), _string(row, 'rejected')], 'scores': [1.0, 0.0]}
    answers, key = row['answers'], 'scores' if 'scores' in row else 'ranks'
    numbers = row.get(key)
    if not isinstance(answers, list) or not isinstance(numbers, list) or len(answers) != len(numbers):
        raise BadRow('answers and scores (or ranks) are not two lists of one length')
    if len(answers) < 2:
        raise BadRow('fewer than two answers')
    if not all(map(_is_number, numbers)):
        raise BadRow(f'{key} are not all finite numbers')
    return {'answers': [_string({'answers': answer}, 'answers') for answer in answers],
            'scores': [float(number if key == 'scores' else -number) for number in numbers]}


def plain(value: Any) -> Any:
    """TFDS's bytes, numpy values and dicts of lists as JSON's types."""
    if isinstance(value, bytes):
        return value.decode('utf-8')
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value

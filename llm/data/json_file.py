"""JSON from a file that may be hostile: a size limit, no key twice, no number that is none, no nesting without end.

In: a path, or bytes. Out: the object at the top; for anything else UserError, one line, or its reason as ValueError.
Left out: what the keys mean.
"""

import json
import pathlib
import stat
from typing import Any

from llm.errors import UserError

LIMIT_BYTES = 100_000_000  # of a header or an index: the format's own limit


def regular(path: pathlib.Path) -> int:
    """The size of a regular file; a pipe or a device would block or never end. A link counts as what it points to."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = 'not there' if isinstance(error, FileNotFoundError) else f'unreadable ({type(error).__name__})'
        raise UserError(f'{path} is {reason}; fetch it again, or name another folder') from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f'{path} is not a regular file; put the file itself there')
    return status.st_size


def read(path: pathlib.Path) -> dict[str, Any]:
    """The object in a file."""
    size = regular(path)
    if size > LIMIT_BYTES:
        raise UserError(f'{path} has {size} bytes of JSON, more than {LIMIT_BYTES}; fetch it again')
    return parse(path.read_bytes(), str(path))


def parse(data: bytes, where: str) -> dict[str, Any]:
    """The object in these bytes; `where` names them."""
    try:
        return loads(data)
    except ValueError as error:
        raise UserError(f'{where}: {error}; fetch it again') from None


def loads(data: bytes) -> dict[str, Any]:
    """The object in these bytes; raises ValueError with the reason where there is none."""
    try:
        value = json.loads(data.decode('utf-8'), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError('it is nested too deep for JSON of its kind') from None
    except ValueError as error:
        raise ValueError(f'it is not sound JSON ({str(error).splitlines()[0]:.100})') from None
    if not isinstance(value, dict):
        raise ValueError(f'it holds no JSON object but {type(value).__name__}')
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f'the key {name!r:.60} is there twice')
        table[name] = value
    return table


def _no_constant(name: str):
    raise ValueError(f'{name} is no number of JSON')

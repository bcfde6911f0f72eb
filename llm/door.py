"""Nested dicts -> frozen dataclasses: every key known, typed and present.

In: a dataclass, plain values. Out: an instance of it; `UserError` on an unknown, missing or ill-typed key.
Left out: which dataclasses there are (`config.py`).
"""

import dataclasses
import difflib
import types
import typing
from typing import Any

from llm.errors import UserError


def from_dict(cls: type, values: dict[str, Any], path: str = '') -> Any:
    """Builds dataclass `cls` from nested dicts, refusing unknown keys with the nearest known one."""
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            raise UserError(f'unknown config key {path}{key}{nearest(key, known)}')
    for key, field in known.items():
        if key not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f'config key {path}{key} is missing; configs/base.py lists every key')
    return cls(**{key: _convert(hints[key], value, path + key) for key, value in values.items()})


def nearest(key: str, known) -> str:
    """`; did you mean NAME?` for the closest of the known names, or nothing."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f'; did you mean {close[0]}?' if close else f'; known: {", ".join(sorted(known))}'


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if (dataclasses.is_dataclass(hint) or origin is dict) and not isinstance(value, dict):
        raise UserError(f'{path}={value!r} is not a section of keys; see configs/base.py')
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, path + '.')
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, path)
    if origin is dict:
        return {key: _convert(arguments[1], item, f'{path}.{key}') for key, item in value.items()}
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (tuple, list)):
            raise UserError(f'{path}={value!r} is not a tuple; write it as ({value!r},)')
        return tuple(_convert(arguments[0], item, path) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise UserError(f'{path}={value!r} is not {hint.__name__}; see configs/base.py')
    return value

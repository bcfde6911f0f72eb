"""A mistake that a user can mend, and the checks of single values that say so.

In: values, with the keys that they stand under. Out: `UserError`, one line with key, value and remedy.
Left out: exit codes (`main.py`); whether keys are known and typed (`door.py`).
"""

from typing import Any


class UserError(ValueError):
    """A mistake that a user can mend: one line with key, value and remedy; `main` exits with code 2."""


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuses a value that is not among the allowed ones."""
    if value not in allowed:
        raise UserError(f'{key}={value!r} is not known; use one of {", ".join(allowed)}')


def at_least(least: int, config: Any, *keys: str, section: str = '') -> None:
    """Refuses values of `config` below `least`."""
    for key in keys:
        if getattr(config, key) < least:
            raise UserError(f'{section}{key}={getattr(config, key)} is less than {least}; use {least} or more')


def positive(config: Any, *keys: str, section: str = '') -> None:
    """Refuses values of `config` that are not above 0."""
    for key in keys:
        if not getattr(config, key) > 0:
            raise UserError(f'{section}{key}={getattr(config, key)} is not positive; use more than 0')


def within(config: Any, *keys: str, section: str = '') -> None:
    """Refuses values of `config` outside [0, 1]."""
    for key in keys:
        if not 0 <= getattr(config, key) <= 1:
            raise UserError(f'{section}{key}={getattr(config, key)} is not between 0 and 1')

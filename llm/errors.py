"""Why a run ends before its time, with the exit code that says so, and the checks of single values.

In: values, with the keys that they stand under. Out: exceptions whose message is one line.
Left out: printing them (`main.py`); whether keys are known and typed (`door.py`).

A supervisor reads the codes: 2 is not tried again, 42 is, 43 needs a person, 44 a disk.
"""

import errno
from typing import Any

# What a disk or its network says that may be well again later.
_OF_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT,
               errno.EHOSTDOWN)


class UserError(ValueError):
    """A mistake that a user can mend: one line with key, value and remedy."""

    exit_code = 2


class Diverged(UserError):
    """Training went wrong again and again, also without the batches in which it did."""

    exit_code = 43


class StorageError(UserError):
    """What should be kept could not be written: a full, read-only or vanished disk. What was sealed is intact."""

    exit_code = 44


class Preempted(Exception):
    """The machine was asked for; the run saved itself, and goes on from there when it is started again."""

    exit_code = 42


def exit_code(error: BaseException) -> int:
    """What a process ends with: 1 for whatever is not a user's, a disk's or a machine's doing, that is, for a bug."""
    if isinstance(error, (UserError, Preempted)):
        return error.exit_code
    if isinstance(error, (ConnectionError, TimeoutError)) or isinstance(error, OSError) and error.errno in _OF_STORAGE:
        return StorageError.exit_code
    return UserError.exit_code if isinstance(error, OSError) else 1


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

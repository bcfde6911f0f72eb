"""What goes wrong while Orbax writes or reads a step: whose doing it is, and one line of it instead of tracebacks.

In: exceptions. Out: `StorageError` where it is the disk, RuntimeError where it is a process or a device.
Left out: a step that cannot be read (`checkpoint.py`), exit codes (`errors.py`).
"""

import asyncio
import contextlib
import logging
import traceback
from unittest import mock

from etils import epath
import jax
from jax.experimental import multihost_utils

from llm.errors import StorageError
from llm.manifest import first_line


@contextlib.contextmanager
def disk_errors(folder: epath.Path, step: int):
    """Turns whatever goes wrong with the disk while a step is written into one line."""
    try:
        yield
    except Exception as error:
        check_processes(folder, step, error)
        raise StorageError(f'{folder}@{step} could not be written ({first_line(error)}); make room there and '
                           f'start again, which continues from the last sealed step') from error


def check_processes(folder: epath.Path, step: int, error: Exception) -> None:
    """Raises RuntimeError where neither disk nor file is to blame: processes that failed to meet, or a device.

    Orbax's barriers raise from JAX's errors; gloo's errors are ValueErrors within JAX.
    """
    link: BaseException | None = error
    while link is not None:
        modules = {frame.f_globals.get('__name__') for frame, _ in traceback.walk_tb(link.__traceback__)}
        if isinstance(link, jax.errors.JaxRuntimeError) or multihost_utils.__name__ in modules:
            raise RuntimeError(f'{folder}@{step}: a process is gone, or a device failed ({first_line(error)})'
                               ) from error
        link = link.__cause__


@contextlib.contextmanager
def quiet():
    """Keeps Orbax from printing tracebacks of errors that it also raises: a user should see one line.

    It logs them, and it closes its event loop at the first leaf that cannot be read or written, so that every
    other one that is still on its way prints a traceback of its own.
    """
    def not_of_orbax(record: logging.LogRecord) -> bool:
        return 'orbax' not in record.pathname or record.levelno < logging.ERROR
    absl = logging.getLogger('absl')
    absl.addFilter(not_of_orbax)
    try:
        with mock.patch.object(asyncio, 'new_event_loop', _PatientLoop):
            yield
    finally:
        absl.removeFilter(not_of_orbax)


class _PatientLoop(asyncio.SelectorEventLoop):
    """Finishes its tasks before it closes."""

    def close(self) -> None:
        while not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.wait(tasks))
        super().close()

"""Files on the disk and out of the page cache: what a load after a restart finds. The standard library alone."""

import os
import pathlib


def flush(folder: pathlib.Path) -> None:
    """Until every file in the folder is on the disk."""
    for path in _files(folder):
        _with(path, os.fsync)


def forget(folder: pathlib.Path) -> None:
    """Takes the folder's files out of the page cache; of other people's files nothing is forgotten."""
    flush(folder)  # what is not written yet stays
    for path in _files(folder):
        _with(path, lambda descriptor: os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED))


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.rglob('*') if path.is_file()]


def _with(path: pathlib.Path, call) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        call(descriptor)
    finally:
        os.close(descriptor)

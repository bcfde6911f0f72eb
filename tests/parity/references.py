"""What `tests/parity/reference` wrote: where it is, and how it is read.

In: the environment variable PARITY_REFERENCES, a folder; `tools/parity.sh` makes it. Out: names of models and of
tokenizers to parametrize tests with (without a folder, one that is skipped), and their arrays.
"""

import os
import pathlib

import numpy as np
import pytest

FOLDER = pathlib.Path(os.environ.get('PARITY_REFERENCES', ''))
MISSING = pytest.mark.skip(reason='bash tools/parity.sh makes the references and runs these tests')
needed = pytest.mark.skipif(FOLDER == pathlib.Path(), reason=MISSING.kwargs['reason'])


def names(kind: str) -> list:
    """Of `models`, `tokenizers`."""
    if FOLDER == pathlib.Path():
        return [pytest.param('', marks=MISSING, id='none')]
    return sorted(path.name for path in (FOLDER / kind).iterdir())


def expected(name: str) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """batch -> 'in', 'out', 'label' -> name -> array; the batch 'decode' has prompts and answers instead."""
    tree: dict = {}
    with np.load(FOLDER / 'models' / name / 'expected.npz') as arrays:
        for path in arrays:
            *above, last = path.split('/')
            node = tree
            for part in above:
                node = node.setdefault(part, {})
            node[last] = arrays[path]
    return tree

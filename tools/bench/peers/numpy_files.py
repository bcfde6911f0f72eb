"""The same bytes as one file of numpy's, with fsync, and read again from a cold page cache: what a disk can do.

In: a job whose model says how many float32 parameters. Out: MB a second of a save and of a load.
"""

import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from tools.bench.cold import forget
from tools.bench.serve import serve, Work


def make(job: dict[str, Any]) -> Work:
    values = np.random.default_rng(job['seed']).standard_normal(job['parameters'], np.float32)

    def turn() -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix='bench-') as name:
            path = pathlib.Path(name) / 'values.npy'
            began = time.perf_counter()
            with path.open('wb') as file:
                np.save(file, values)
                file.flush()
                os.fsync(file.fileno())
            saved = time.perf_counter() - began
            forget(pathlib.Path(name))
            began = time.perf_counter()
            np.load(path)
            loaded = time.perf_counter() - began
        return {'save MB/s': values.nbytes / 1e6 / saved, 'load MB/s': values.nbytes / 1e6 / loaded}
    return Work(turn)


if __name__ == '__main__':
    serve(make, ('numpy',))

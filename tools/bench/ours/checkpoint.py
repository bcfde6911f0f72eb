"""A checkpoint of a model's float32 parameters: saved and sealed, loaded and verified, from a cold page cache.

In: a job; the folder is a temporary one (TMPDIR says where). Out: MB a second of a save, until it is sealed and its
files are on the disk; of a load of files that are in no cache; milliseconds for which a save blocks the step.
Left out: optimizer state, which is more of the same.
"""

import pathlib
import tempfile
import time
from typing import Any

import jax
import optax

from llm.checkpoint import Checkpoints, load_params
from llm.fingerprint import flatten
from llm.main import enable_compilation_cache
from llm.manifest import Manifest
from llm.model.transformer import Transformer
from llm.run import initializer
from llm.train_state import abstract_params, create
from tools.bench.cold import flush, forget
from tools.bench.ours.runs import paper_run
from tools.bench.serve import serve, Work


def make(job: dict[str, Any]) -> Work:
    enable_compilation_cache()
    run = paper_run(job)
    init = initializer(Transformer(run.model_config, run.config.exec))
    params = create(init, optax.identity(), run.config.seed, run.mesh, run.rules).params
    shapes = abstract_params(init, run.mesh, run.rules)
    megabytes = sum(leaf.nbytes for leaf in flatten(params).values()) / 1e6
    manifest = Manifest(stage='pretrain', identity='', model=run.model_config.stored(), tokenizer={}, heads=['token'],
                        reward=None, objective='', data={}, seed=0, mesh={}, packages={}, git_commit='', parents={})

    def turn() -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix='bench-') as name:
            folder = pathlib.Path(name)
            with Checkpoints(folder, keep=2) as checkpoints:
                began = time.perf_counter()
                assert checkpoints.save(1, {'params': params}, {}, manifest)
                blocked = time.perf_counter() - began
                checkpoints.wait()
                flush(folder)
                saved = time.perf_counter() - began
            forget(folder)
            began = time.perf_counter()
            jax.block_until_ready(load_params(folder, 1, shapes)[0])
            loaded = time.perf_counter() - began
        return {'save MB/s': megabytes / saved, 'load MB/s': megabytes / loaded, 'save blocks ms': 1000 * blocked}
    return Work(turn)


if __name__ == '__main__':
    serve(make, ('jax', 'orbax-checkpoint', 'tensorstore'))

"""The peak that shares are of: one product of 2048 x 384 and 384 x 1536 in float32, the best of many.

In: a job without keys. Out: FLOP a second.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp

from llm.processes import choose_platform
from tools.bench.serve import serve, Work

ROWS, INNER, COLUMNS = 2048, 384, 1536  # of a batch of 8 x 256 through a feed-forward of model S
_TRIES = 50


def make(job: dict[str, Any]) -> Work:
    choose_platform()
    x = jnp.ones((ROWS, INNER), jnp.float32)
    w = jnp.ones((INNER, COLUMNS), jnp.float32)
    product = jax.jit(jnp.matmul)

    def turn() -> dict[str, float]:
        best = float('inf')
        for _ in range(_TRIES):
            began = time.perf_counter()
            product(x, w).block_until_ready()
            best = min(best, time.perf_counter() - began)
        return {'flops/s': 2 * ROWS * INNER * COLUMNS / best}
    return Work(turn)


if __name__ == '__main__':
    serve(make, ('jax',))

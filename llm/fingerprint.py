"""Fingerprints of trees of global arrays, equal on every mesh: how a checkpoint knows its own arrays again.

In: trees of arrays, each leaf with a NamedSharding. Out: for each leaf two 32-bit words, its shape and dtype.
Left out: files (`checkpoint.py`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

_LANES = (np.uint32(0x9E3779B9), np.uint32(0x85EBCA6B))  # a seed for each lane: any two odd words


def fingerprint(tree: Any) -> dict[str, tuple[int, int]]:
    """Leaf path -> two 32-bit words that do not depend on the mesh; one pass over device memory.

    Every leaf carries a NamedSharding. A single changed element always shows; any other change escapes with a
    chance of about 2**-64.
    """
    described, _ = describe({'': flatten(tree)})
    return {path: tuple(leaf['fingerprint']) for path, leaf in described[''].items()}


def flatten(tree: Any) -> dict[str, Any]:
    """Leaf path -> leaf, in the order of the tree's leaves."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in pairs}
    assert len(flat) == len(pairs), 'two leaves have the same path'
    return flat


def describe(flat: dict[str, dict[str, jax.Array]]) -> tuple[dict[str, dict[str, dict]], str | None]:
    """For every item and path: shape, dtype, fingerprint. And the first leaf that is not finite, if any."""
    leaves = [leaf for item in flat.values() for leaf in item.values()]
    words = iter(np.asarray(_digests(leaves[0].sharding.mesh)(leaves)).tolist())
    described, broken = {}, None
    for item, paths in flat.items():
        described[item] = {}
        for path, leaf in paths.items():
            *lanes, non_finite = next(words)
            described[item][path] = {'shape': list(leaf.shape), 'dtype': str(leaf.dtype),
                                     'fingerprint': lanes}
            broken = broken or (f'{item}/{path}' if non_finite else None)
    return described, broken


@functools.lru_cache
def _digests(mesh: Mesh):
    """Jitted: leaves -> uint32[leaves, 3], on every device, so that every process can read it."""
    return jax.jit(lambda leaves: jnp.stack([_digest(leaf) for leaf in leaves]),
                   out_shardings=NamedSharding(mesh, PartitionSpec()))


def _digest(x: jax.Array) -> jax.Array:
    """uint32[3]: two lanes of sum(mix(word ^ hash(index))) modulo 2**32, and how many numbers are not finite.

    Integers are added, so no order of summation and no mesh changes the result. `mix` is a bijection, so one
    changed word changes the sum; the index enters hashed, axis by axis (a linear index would overflow), so
    exchanged or shifted elements change it too.
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, f'uint{x.dtype.itemsize * 8}').astype(jnp.uint32)
    lanes = []
    for seed in _LANES:
        place = jnp.full((1,) * x.ndim, seed, jnp.uint32)
        for axis, size in enumerate(x.shape):
            hashed = _mix(jax.lax.iota(jnp.uint32, size) * seed + np.uint32(axis + 1))
            place = place + hashed.reshape([-1 if other == axis else 1 for other in range(x.ndim)])
        lanes.append(_mix(words ^ place))
    finite = jnp.isfinite(x) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.ones(x.shape, bool)
    # All three sums in one pass: of three the CPU's back end makes three, each with all mixed words in memory.
    sums = jax.lax.reduce((*lanes, (~finite).astype(jnp.uint32)), (np.uint32(0),) * 3,
                          lambda left, right: tuple(map(jnp.add, left, right)), range(x.ndim)[-1:])
    return jnp.stack([jnp.sum(part, dtype=jnp.uint32) for part in sums])


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words; each bit moves about half the others (`lowbias32` of Chris Wellons)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x ^ (x >> 16)

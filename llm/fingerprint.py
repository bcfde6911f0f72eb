"""Fingerprints of trees of global arrays, equal on every mesh: how a checkpoint knows its own arrays again.

In: trees of arrays, each leaf with a NamedSharding. Out: for each leaf two 32-bit words, its shape and dtype.
Left out: files (`checkpoint.py`).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

_LANES = (np.uint32(0x9E3779B9), np.uint32(0x85EBCA6B))  # a seed for each lane: any two odd words
_BLOCK_BYTES = 4 * 2**20


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
    blocks = tuple(map(_blocks, leaves))
    words = iter(np.asarray(_digests(leaves[0].sharding.mesh)(leaves, blocks)).tolist())
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
    """Jitted: leaves, blocks -> uint32[leaves, 3], on every device, so that every process can read it."""
    return jax.jit(lambda leaves, blocks: jnp.stack([_digest(leaf, many) for leaf, many in zip(leaves, blocks)]),
                   static_argnums=1, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _blocks(x: jax.Array) -> int:
    """How many blocks of `_BLOCK_BYTES` or less to cut the first axis into; 1 where it is sharded, or nearly prime."""
    local = x.sharding.shard_shape(x.shape)
    size = math.prod(local) * x.dtype.itemsize
    if x.ndim < 2 or local[0] != x.shape[0] or size <= _BLOCK_BYTES:
        return 1
    least = min(-(-size // _BLOCK_BYTES), x.shape[0])
    return next((many for many in range(least, 8 * least) if x.shape[0] % many == 0), 1)


def _digest(x: jax.Array, blocks: int) -> jax.Array:
    """uint32[3]: two lanes of sum(mix(word ^ hash(index))) modulo 2**32, and how many numbers are not finite.

    Integers are added, so no order of summation and no mesh changes the result. `mix` is a bijection, so one
    changed word changes the sum; the index enters hashed, axis by axis (a linear index would overflow), so
    exchanged or shifted elements change it too. Block by block, because the CPU's back end keeps all mixed words that
    it is given at once.
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    hashes = [[_mix(jax.lax.iota(jnp.uint32, size) * seed + np.uint32(axis + 1))
               for axis, size in enumerate(x.shape)] for seed in _LANES]
    if blocks == 1:
        return _block_digest(x, hashes)

    rows = x.shape[0] // blocks

    def add(block: jax.Array, total: jax.Array) -> jax.Array:
        part, *firsts = (jax.lax.dynamic_slice_in_dim(array, block * rows, rows)
                         for array in (x, *(lane[0] for lane in hashes)))
        return total + _block_digest(part, [[first, *lane[1:]] for first, lane in zip(firsts, hashes)])
    return jax.lax.fori_loop(0, blocks, add, jnp.zeros(3, jnp.uint32))


def _block_digest(x: jax.Array, hashes: list[list[jax.Array]]) -> jax.Array:
    """uint32[3] of a block of rows, by the hashes of its indices: of each lane, along each axis."""
    finite = jnp.isfinite(x) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.ones((), bool)
    words = jax.lax.bitcast_convert_type(x, f'uint{x.dtype.itemsize * 8}').astype(jnp.uint32)
    lanes = []
    for seed, lane in zip(_LANES, hashes):
        place = jnp.full((1,) * x.ndim, seed, jnp.uint32)
        for axis, hashed in enumerate(lane):
            place = place + hashed.reshape([-1 if other == axis else 1 for other in range(x.ndim)])
        lanes.append(jnp.sum(_mix(words ^ place), dtype=jnp.uint32))
    return jnp.stack([*lanes, jnp.sum(~finite, dtype=jnp.uint32)])


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words; each bit moves about half the others (`lowbias32` of Chris Wellons)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x ^ (x >> 16)

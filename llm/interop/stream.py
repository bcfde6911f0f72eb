"""Tensors of files onto the mesh, one at a time, in pieces that are smaller than a tensor.

In: a `Plan`; the files' tensors. Out: our leaves, each born on the devices that hold it.
Left out: what fits (`plan.py`). A host holds `plan.PIECE_BYTES` of numbers, times three while they are reordered and
sent; a process reads the rows of the file that its own devices hold a part of, once for each different shard.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from llm.interop import layout, plan as planning
from llm.interop.plan import Leaf, Plan, Source

_Index = tuple[slice, ...]


def load(plan: Plan, tensors: Mapping[str, Source], progress: Callable[[int, int], None]) -> dict[str, jax.Array]:
    """Path -> leaf. `progress` gets (leaves done, leaves in all)."""
    leaves = {}
    for number, leaf in enumerate(plan.leaves):
        progress(number, len(plan.leaves))
        leaves[leaf.path] = _place(leaf, tensors)
    progress(len(plan.leaves), len(plan.leaves))
    return leaves


def _place(leaf: Leaf, tensors: Mapping[str, Source]) -> jax.Array:
    """The leaf, a shard on each device of this process; devices with the same shard copy it from the first."""
    target, first, shards = leaf.target, {}, []
    for device, index in target.sharding.addressable_devices_indices_map(target.shape).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, target.shape))
        if bounds in first:
            shards.append(jax.device_put(first[bounds], device))
        else:
            first[bounds] = _fill(leaf, tensors, tuple(slice(*part) for part in bounds), device)
            shards.append(first[bounds])
    return jax.make_array_from_single_device_arrays(target.shape, target.sharding, shards)


def _fill(leaf: Leaf, tensors: Mapping[str, Source], index: _Index, device: jax.Device) -> jax.Array:
    """One shard. A small one is made on the host; of a large one, piece by piece is written into it on the device."""
    shape = tuple(part.stop - part.start for part in index)
    dtype = leaf.target.dtype
    if math.prod(shape) * dtype.itemsize <= planning.PIECE_BYTES:
        whole = np.empty(shape, dtype)
        for starts, piece in _pieces(leaf, tensors, index):
            whole[tuple(slice(start, start + size) for start, size in zip(starts, piece.shape))] = piece
        return jax.device_put(whole, device)
    place = jax.sharding.SingleDeviceSharding(device)
    shard = jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=place)()
    for starts, piece in _pieces(leaf, tensors, index):
        # Waited for: pieces on their way would pile up on the host.
        shard = _write(shard, jax.device_put(piece, device), starts).block_until_ready()
    return shard


@functools.partial(jax.jit, donate_argnums=0)
def _write(shard: jax.Array, piece: jax.Array, starts: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_update_slice(shard, piece, starts)


def _pieces(leaf: Leaf, tensors: Mapping[str, Source], index: _Index) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """(where in the shard, numbers) for every piece; cut along the axis that the file's rows run along."""
    inner = index[1:] if leaf.stacked else index
    rank = len(leaf.part_shape)
    for layer in range(index[0].start, index[0].stop) if leaf.stacked else [0]:
        part = leaf.parts[layer]
        pattern, tensor = part.row.layout, tensors[part.name]
        axis = layout.slow_axis(pattern, rank)
        sizes = [cut.stop - cut.start for cut in inner]
        row_bytes = math.prod(sizes) // sizes[axis] * leaf.target.dtype.itemsize
        step = max(1, planning.PIECE_BYTES // row_bytes)
        for begin in range(inner[axis].start, inner[axis].stop, step):
            cut = (*inner[:axis], slice(begin, min(begin + step, inner[axis].stop)), *inner[axis + 1:])
            box = layout.region(pattern, leaf.part_shape, cut, part.row.part, part.row.of)
            piece = layout.to_ours(tensor.read(box), pattern, leaf.part_shape, cut)
            starts = tuple(begin - inner[axis].start if place == axis else 0 for place in range(rank))
            if leaf.stacked:
                starts, piece = (layer - index[0].start, *starts), piece[None]
            yield starts, np.ascontiguousarray(piece, leaf.target.dtype)

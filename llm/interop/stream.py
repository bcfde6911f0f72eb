"""Tensors of files onto the mesh, one at a time, in pieces that are smaller than a tensor.

In: a `Plan`; the files' tensors. Out: our leaves, each born on the devices that hold it.
Left out: what fits (`plan.py`). A host holds `plan.PIECE_BYTES` of numbers, times three while they are reordered and
sent; a process reads once the rows of the file that its own devices hold a part of, and cuts them for each.
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
_Bounds = tuple[tuple[int, int], ...]  # of a shard: first and last + 1 along each axis


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
    target = leaf.target
    places = {device: tuple(part.indices(size)[:2] for part, size in zip(index, target.shape))
              for device, index in target.sharding.addressable_devices_indices_map(target.shape).items()}
    first = {bounds: device for device, bounds in reversed(places.items())}
    shards = _fill(leaf, tensors, first)
    return jax.make_array_from_single_device_arrays(target.shape, target.sharding, [
        jax.device_put(shards[bounds], device) for device, bounds in places.items()])


def _fill(leaf: Leaf, tensors: Mapping[str, Source], first: dict[_Bounds, jax.Device]) -> dict[_Bounds, jax.Array]:
    """Each shard on its device. Small ones are made on the host; into large ones pieces are written on the device."""
    dtype = leaf.target.dtype
    shapes = {bounds: tuple(stop - start for start, stop in bounds) for bounds in first}
    small = sum(map(math.prod, shapes.values())) * dtype.itemsize <= planning.PIECE_BYTES
    shards = {bounds: np.empty(shape, dtype) if small else _zeros(shape, dtype, first[bounds])
              for bounds, shape in shapes.items()}
    local = tuple(slice(min(start for start, _ in axis), max(stop for _, stop in axis)) for axis in zip(*first))
    for starts, piece in _pieces(leaf, tensors, local):
        for bounds, shard in shards.items():
            both = [(max(low, start), min(high, start + size))
                    for (low, high), start, size in zip(bounds, starts, piece.shape)]
            if any(begin >= end for begin, end in both):
                continue
            cut = piece[tuple(slice(begin - start, end - start) for (begin, end), start in zip(both, starts))]
            into = tuple(begin - low for (begin, _), (low, _) in zip(both, bounds))
            if small:
                shard[tuple(slice(start, start + size) for start, size in zip(into, cut.shape))] = cut
            else:  # waited for: pieces on their way would pile up on the host
                cut = jax.device_put(np.ascontiguousarray(cut, dtype), first[bounds])
                shards[bounds] = _write(shard, cut, into).block_until_ready()
    return {bounds: jax.device_put(shard, first[bounds]) for bounds, shard in shards.items()}


def _zeros(shape: tuple[int, ...], dtype: np.dtype, device: jax.Device) -> jax.Array:
    place = jax.sharding.SingleDeviceSharding(device)
    return jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=place)()


@functools.partial(jax.jit, donate_argnums=0)
def _write(shard: jax.Array, piece: jax.Array, starts: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_update_slice(shard, piece, starts)


def _pieces(leaf: Leaf, tensors: Mapping[str, Source], index: _Index) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """(where in the leaf, numbers) for every piece of a box; cut along the axis that the file's rows run along."""
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
            starts = tuple(part.start for part in cut)
            yield ((layer, *starts), piece[None]) if leaf.stacked else (starts, piece)

"""Which tensors make which leaves, checked against both before a number is read; and what that will take.

In: what a config.json says, the names and shapes of a file's tensors, the shapes and shardings of our leaves.
Out: a `Plan`: for each leaf its tensors; the bytes of it all. UserError, one line, where they do not fit.
Left out: reading (`stream.py`); a 70 B model is planned from its headers alone.

The host's memory stays below the largest tensor and 1 GiB while a model is read. While it is saved that holds where of
each leaf, which stacks a tensor of every layer, what this host's devices hold is below it: a leaf is saved as a whole.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from llm.errors import UserError
from llm.interop import layout
from llm.interop.family import Family, Tensor
from llm.interop.safetensors import FLOATS

PIECE_BYTES = 128 * 2**20  # of float32 that are on the host at once, beside the block that is read and its reordering

SAVED_GB = 1  # 1e9 bytes of leaves that are on the host at a time, on their way to disk, if one is not larger


class Source(Protocol):
    """A tensor of a file: `safetensors.Stored` or `gguf.Packed`."""

    dtype: str
    shape: tuple[int, ...]

    def read(self, box: tuple[slice, ...]) -> np.ndarray: ...


class Part(NamedTuple):
    """A leaf, or one layer of a stacked one, as it lies in a file."""

    name: str  # as the file calls it
    row: Tensor


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of our tree: its shape, dtype and sharding, and a part for each layer (one, where it is not stacked)."""

    path: str
    target: jax.ShapeDtypeStruct
    parts: tuple[Part, ...]
    stacked: bool

    @property
    def part_shape(self) -> tuple[int, ...]:
        return self.target.shape[1:] if self.stacked else self.target.shape


class Plan(NamedTuple):
    leaves: tuple[Leaf, ...]
    left_out: tuple[str, ...]  # tensors of heads that are not taken


def rows(family: Family, head: str) -> dict[str, Tensor]:
    """The rows of a family's trunk and of one head, by our path, with whole names."""
    trunk = [row._replace(name=family.prefix + row.name) for row in family.tensors]
    return {row.path: row for row in (*trunk, *family.head_tensors.get(head, ()))}


def make(family: Family, head: str, tensors: Mapping[str, Source], targets: dict[str, jax.ShapeDtypeStruct],
         *, tied: bool, where: str) -> Plan:
    """Checks every tensor against the leaf that it is for, and every leaf against its tensors.

    Args:
      targets: path -> shape, dtype and sharding of each of our leaves.
      tied: the output table is the token table; where a file has both, they must be equal.
    """
    names = _canonical(family, tensors, where)
    table = rows(family, head)
    unsaid = sorted(targets.keys() - table.keys())
    assert not unsaid, f'no tensor of the family is {unsaid}'
    leaves, used = [], set()
    for path, target in targets.items():
        stacked = path.startswith('layers/')
        wanted = [table[path].name.replace('{layer}', str(layer)) for layer in range(target.shape[0])] if stacked else [
            table[path].name]
        absent = next((name for name in wanted if name not in names), None)
        if absent is not None:
            raise UserError(f'{where}: the tensor {absent} is missing; fetch the model again, or give the config.json '
                            f'that it was saved with')
        leaf = Leaf(path, target, tuple(Part(names[name], table[path]) for name in wanted), stacked)
        for part in leaf.parts:
            _fits(tensors[part.name], part, leaf.part_shape, where)
        leaves.append(leaf)
        used |= set(wanted)
    return Plan(tuple(leaves), _left_out(family, names, used, tied, tensors, where))


def _canonical(family: Family, tensors: Mapping[str, Source], where: str) -> dict[str, str]:
    """Today's whole name of each tensor -> its name in the file, without those that hold no weights."""
    bare = family.prefix and not any(name.startswith(family.prefix) for name in tensors)
    names: dict[str, str] = {}
    for name in tensors:
        if name.endswith(family.skipped):
            continue
        now = name
        for old, new in family.renamed:
            now = now.removesuffix(old) + new if now.endswith(old) else now
        now = family.prefix + now if bare and not _of_a_head(family, now) else now
        if now in names:
            raise UserError(f'{where}: {name!r:.60} and {names[now]!r:.60} are the same tensor; take one of them out')
        names[now] = name
    return names


def _of_a_head(family: Family, name: str) -> bool:
    return any(name == row.name for added in family.head_tensors.values() for row in added)


def _fits(tensor: Source, part: Part, shape: tuple[int, ...], where: str) -> None:
    wanted = layout.their_shape(part.row.layout, shape, part.row.of)
    if tuple(tensor.shape) != wanted:
        raise UserError(f'{where}: the tensor {part.name} has shape {list(tensor.shape)}, and its config says '
                        f'{list(wanted)}; give the config.json that it was saved with')
    if tensor.dtype in ('F64', 'BOOL') or tensor.dtype[0] in 'IU' or tensor.dtype.startswith('F8'):
        raise UserError(f'{where}: the tensor {part.name} has dtype {tensor.dtype}; save it as one of '
                        f'{", ".join(FLOATS)}')


def _left_out(family: Family, names: dict[str, str], used: set[str], tied: bool, tensors: Mapping[str, Source],
              where: str) -> tuple[str, ...]:
    """Tensors of the family's other heads; raises UserError for one of nothing that is known."""
    out = []
    for name in sorted(names.keys() - used):
        twin = names.get(dict(family.ties).get(name)) if tied else None
        if twin is not None and not _equal(tensors[names[name]], tensors[twin]):
            raise UserError(f'{where}: {names[name]} differs from {twin}, which config.json ties it to; set '
                            f'tie_word_embeddings to false, or take it out')
        if twin is None and not _of_a_head(family, name):
            raise UserError(f'{where}: the tensor {names[name]!r:.80} is not known in this family, or not with this '
                            f'config.json; take it out if it is no part of the model')
        out.append(names[name])
    return tuple(out)


def _equal(one: Source, other: Source) -> bool:
    """Whether two tensors hold the same numbers, read in rows."""
    if tuple(one.shape) != tuple(other.shape) or one.dtype != other.dtype or one.dtype not in FLOATS:
        return False
    if not one.shape:
        return np.array_equal(one.read(()), other.read(()), equal_nan=True)
    step = max(1, PIECE_BYTES // (4 * max(1, math.prod(one.shape[1:]))))
    rest = (slice(None),) * (len(one.shape) - 1)
    return all(np.array_equal(one.read((slice(begin, begin + step), *rest)),
                              other.read((slice(begin, begin + step), *rest)), equal_nan=True)
               for begin in range(0, one.shape[0], step))


def summary(plan: Plan) -> dict[str, Any]:
    """What an import takes, in bytes: of all leaves, of one device, of the largest tensor, of this host.

    Reading, the host holds one piece while it is put on a device: read, reordered, and once more on its way. Saving, it
    holds of one leaf, or of several small ones, what its devices have. Its peak is the larger of the two.
    """
    def on_device(leaf: Leaf) -> int:
        return math.prod(leaf.target.sharding.shard_shape(leaf.target.shape)) * leaf.target.dtype.itemsize

    def on_host(leaf: Leaf) -> int:
        shards = leaf.target.sharding.addressable_devices_indices_map(leaf.target.shape).values()
        return len(set(map(str, shards))) * on_device(leaf)
    largest = max(math.prod(leaf.part_shape) * leaf.target.dtype.itemsize for leaf in plan.leaves)
    shares = [on_host(leaf) for leaf in plan.leaves]
    reading = 3 * min(PIECE_BYTES, max(shares))
    return {'tensors': sum(len(leaf.parts) for leaf in plan.leaves),
            'bytes': sum(math.prod(leaf.target.shape) * leaf.target.dtype.itemsize for leaf in plan.leaves),
            'bytes_of_a_device': sum(map(on_device, plan.leaves)), 'largest_tensor_bytes': largest,
            'host_reading_bytes': reading,
            'host_peak_bytes': max(reading, *shares, min(SAVED_GB * 10**9, sum(shares)))}

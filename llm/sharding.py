"""The device mesh, and our own rules from logical axis names to mesh axes.

In: an `ExecConfig`'s mesh sizes and rules; logical axis names from parameters and activations.
Out: a `Mesh`, `AxisRules`, NamedShardings for trees of parameters, global arrays from rows on the host.
Left out: Flax's rule context. It ignores a misspelt activation axis, replicates a misspelt parameter axis,
and is not part of the jit cache key; `AxisRules` raises instead, and is a plain hashable value.
"""

import dataclasses
import math
from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from llm.door import nearest
from llm.errors import UserError
from llm.execution import MeshConfig

MESH_AXES = ('data', 'fsdp', 'context', 'tensor')  # from the slowest wires to the fastest


@dataclasses.dataclass(frozen=True)
class AxisRules:
    """Logical axis name -> mesh axes, as a hashable value.

    Weight width (`embed`) and activation width (`act`) are different names, because a weight's width is
    split for storage and gathered for use, while an activation's follows the computation.
    """

    rules: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def from_config(cls, rules: dict[str, tuple[str, ...]]) -> 'AxisRules':
        for name, axes in rules.items():
            for axis in axes:
                if axis not in MESH_AXES:
                    raise UserError(f'exec.rules.{name} names the mesh axis {axis!r}{nearest(axis, MESH_AXES)}')
        return cls(tuple(sorted(rules.items())))

    def spec(self, names: tuple[str | None, ...]) -> PartitionSpec:
        """The PartitionSpec of an array whose dimensions carry these logical names (None: not split).

        Raises ValueError for a name without a rule and for two dimensions on one mesh axis.
        """
        table = dict(self.rules)
        used: dict[str, str] = {}
        parts = []
        for name in names:
            if name is not None and name not in table:
                raise ValueError(f'logical axis {name!r} has no rule{nearest(name, table)}')
            axes = () if name is None else table[name]
            for axis in axes:
                if axis in used:
                    raise UserError(f'exec.rules puts both {used[axis]!r} and {name!r} of one array on mesh axis '
                                    f'{axis!r}; move one of them')
                used[axis] = name
            parts.append(axes[0] if len(axes) == 1 else axes or None)
        return PartitionSpec(*parts)

    def ways(self, name: str) -> int:
        """Into how many parts the mesh set by `jax.set_mesh` splits that logical axis."""
        mesh = jax.sharding.get_abstract_mesh()
        return math.prod(mesh.shape[axis] for axis in dict(self.rules)[name]) if not mesh.empty else 1


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
    """A mesh of `MESH_AXES` over all devices; raises UserError where the sizes do not fit.

    Neighbours on an axis are neighbours on the wires, the more so the later the axis stands. The slices of a
    multislice job, which only the datacenter's network joins, are parts of the axis `data`.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    said = f'exec.mesh={dataclasses.astuple(config)} (data, fsdp, tensor, context)'
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f'{said}: use positive sizes and at most one -1')
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % fixed == 0:
        sizes = [len(devices) // fixed if size == -1 else size for size in sizes]
    if math.prod(sizes) > len(devices) or -1 in sizes:
        raise UserError(f'{said} does not fit {len(devices)} devices; change exec.mesh so that the product divides '
                        f'{len(devices)}')
    devices = devices[:math.prod(sizes)]
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    if sizes[0] % slices:
        raise UserError(f'{said}: data={sizes[0]} does not split over {slices} slices; use a multiple of {slices}')
    try:
        if slices > 1:
            placed = mesh_utils.create_hybrid_device_mesh((sizes[0] // slices, *sizes[1:]), (slices, 1, 1, 1), devices,
                                                          allow_split_physical_axes=True)
        else:
            placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except (NotImplementedError, TypeError, ValueError) as error:  # TypeError: where it runs out of factors
        raise UserError(f'{said} cannot be laid over the wires of these {len(devices)} devices; make each size a '
                        f'product of whole or halved sides of the torus') from error
    # Auto: under the default, Explicit, Linen's init fails.
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def platform() -> str:
    """That of the mesh set by `jax.set_mesh`, whose devices need not be there; without one, this process's own."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def constrain(x: jax.Array, names: tuple[str | None, ...], rules: AxisRules) -> jax.Array:
    """Pins an activation's sharding under the mesh set by `jax.set_mesh`; a no-op without one.

    A length that its mesh axes do not divide stays whole: of a prompt, or of one token at a time.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    names = tuple(None if name == 'length' and size % rules.ways(name) else name for name, size in zip(names, x.shape))
    return jax.lax.with_sharding_constraint(x, rules.spec(names))


def with_gathered(function: Callable, w: jax.Array, names: tuple[str | None, ...], rules: AxisRules, dtype: str,
                  *rows: jax.Array):
    """function(w, *rows), where w is a weight stored in parts and rows [B, T, ...] are split over batch and length.

    Each device gathers w, cast to that dtype, and works on its own rows alone. The gradient of w leaves by
    reduce-scatter, axis after axis: left to itself the compiler sums whole gradients on every device, as it also does
    where one mesh axis takes all dimensions of a torus. What the function returns is [B, T, ...] too.
    """
    batch, length = rows[0].shape[:2]
    mesh = jax.sharding.get_abstract_mesh()
    manual = {axis for name in ('batch', 'length') for axis in dict(rules.rules)[name] if mesh.shape.get(axis, 1) > 1}
    if not manual or batch % rules.ways('batch') or length % rules.ways('length'):  # one token at a time, say
        return function(w.astype(dtype), *rows)

    def manual_axes(names) -> list[tuple[str, ...]]:
        return [tuple(axis for axis in (dict(rules.rules)[name] if name else ()) if axis in manual) for name in names]

    def local(w, *rows):
        w = w.astype(dtype)
        for dimension, axes in enumerate(manual_axes(names)):
            # To the front: scattered along its last axis, a gradient would be padded to whole lanes.
            w = jnp.moveaxis(w, dimension, 0)
            for axis in reversed(axes):
                w = jax.lax.all_gather(w, axis, axis=0, tiled=True)
            w = jnp.moveaxis(w, 0, dimension)
        return function(w, *rows)
    w_spec, row_spec = PartitionSpec(*manual_axes(names)), PartitionSpec(*manual_axes(('batch', 'length')))
    return jax.shard_map(local, in_specs=(w_spec, *(row_spec,) * len(rows)), out_specs=row_spec,
                         axis_names=manual)(w, *rows)


def shardings_of(boxed, mesh: Mesh, rules: AxisRules):
    """NamedShardings for a tree of shapes boxed with logical names (`jax.eval_shape` of a Linen init).

    Raises UserError where a mesh axis does not divide a dimension.
    """
    def one(path, leaf):
        names = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()
        shape = leaf.value.shape if isinstance(leaf, nn.LogicallyPartitioned) else leaf.shape
        spec = rules.spec(names)
        for size, axes, name in zip(shape, spec, names):
            ways = int(np.prod([mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes or ())]))
            if size % ways:
                raise UserError(f'parameter {jax.tree_util.keystr(path)} has {name}={size}, which {ways} shards do '
                                f'not divide; change exec.mesh or exec.rules.{name}')
        return NamedSharding(mesh, spec)
    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rules: AxisRules) -> NamedSharding:
    """Rows of a batch over the mesh axes of `batch`; all other dimensions whole."""
    return NamedSharding(mesh, rules.spec(('batch',)))


def check_batch(key: str, batch_size: int, mesh: Mesh, rules: AxisRules) -> None:
    """Raises UserError unless a batch of that many rows splits evenly over the mesh."""
    ways = int(np.prod([mesh.shape[axis] for axis in dict(rules.rules)['batch']]))
    if batch_size % ways:
        raise UserError(f'{key}={batch_size} is not divisible by {ways} data shards; use a multiple of {ways} '
                        f'or change exec.mesh')


def global_batch(rows: Callable[[np.ndarray], dict[str, np.ndarray]], indices: np.ndarray,
                 sharding: NamedSharding) -> dict[str, jax.Array]:
    """A batch of global arrays, of which this process loads only the rows that its devices hold.

    Args:
      rows: dense rows for given indices, each field with the row axis first.
      indices: the whole batch's row indices, the same on every process.
      sharding: of the row axis; `batch_sharding`.
    """
    shape = (len(indices),)
    mine = np.unique(np.concatenate([np.arange(len(indices))[index] for index in
                                     sharding.addressable_devices_indices_map(shape).values()]))
    local = rows(indices[mine])

    def place(field: np.ndarray) -> jax.Array:
        def shard(index):
            wanted = np.arange(len(indices))[index[0]]
            return field[np.searchsorted(mine, wanted)][(slice(None), *index[1:])]
        return jax.make_array_from_callback((len(indices), *field.shape[1:]), sharding, shard)
    return {name: place(field) for name, field in local.items()}

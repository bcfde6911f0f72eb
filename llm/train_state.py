"""All that training changes, as one tree, born sharded.

In: a model's init, an optimizer, a seed, a mesh and rules; optionally parameters of a parent.
Out: a `TrainState`, every leaf with a NamedSharding and a buffer of its own.
Left out: saving it (`llm/checkpoint.py`); frozen models, which are separate arguments of a step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.tree_util import keystr
import optax

from llm.sharding import AxisRules, replicated, shardings_of


class TrainState(NamedTuple):
    """Trainable parameters (any pytree) and what goes with them.

    `step` counts the batches consumed (int32 scalar), `key` is a typed PRNG key that never changes: what a
    step draws comes from fold_in(key, step). `ema` is the average of the parameters over steps, or None.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    key: jax.Array
    ema: Any


def create(init: Callable[[jax.Array], Any], tx: optax.GradientTransformation, seed: int, mesh: Mesh,
           rules: AxisRules, *, params: Any = None, ema: bool = False) -> TrainState:
    """A state on the mesh: no leaf exists unsharded at any time, and the mesh does not change its values.

    Args:
      init: key -> parameters boxed with logical names, e.g. `lambda key: model.init(key, ...)['params']`.
      seed: of the parameters and of everything drawn later.
      params: parameters from a parent: the tree that `init` makes or a part of it (a trunk without the new
        head, say); copied, never aliased, because the step donates the state. None: all are new.
      ema: whether to keep an average of the parameters; it begins as a copy of them.
    """
    given = _by_path(params)
    _check_given(given, abstract_params(init, mesh, rules))
    keys = jax.random.split(jax.random.key(seed))
    build, _, placed = _builder(init, tx, keys, mesh, rules, given, ema)
    return jax.jit(build, out_shardings=placed)(*keys, given)


def abstract_state(init: Callable[[jax.Array], Any], tx: optax.GradientTransformation, mesh: Mesh, rules: AxisRules, *,
                   ema: bool = False) -> TrainState:
    """Shape, dtype and sharding of all that `create` would make, on a mesh that need not be there."""
    _, shapes, placed = _builder(init, tx, jax.random.split(jax.random.key(0)), mesh, rules, {}, ema)
    return jax.tree.map(_describe, shapes, placed)


def _builder(init, tx, keys, mesh, rules, given, ema):
    """build(init_key, key, given) -> TrainState, its shapes and its shardings."""
    def build(init_key, key, given):
        fresh = nn.meta.unbox(init(init_key))
        params = jax.tree_util.tree_map_with_path(lambda path, leaf: given.get(keystr(path), leaf), fresh)
        # Every output of a jit with out_shardings is a buffer of its own: so ema and parent are copied.
        return TrainState(params, tx.init(params), jnp.zeros((), jnp.int32), key, params if ema else None)

    shapes, placed = jax.eval_shape(build, *keys, given), shardings(abstract_params(init, mesh, rules))
    return build, shapes, TrainState(placed, _like_params(tx, shapes.opt_state, placed, mesh), replicated(mesh),
                                     replicated(mesh), placed if ema else None)


def abstract_params(init: Callable[[jax.Array], Any], mesh: Mesh, rules: AxisRules) -> Any:
    """Shape, dtype and sharding of the parameters that `init` would make: what loading them needs to know."""
    boxed = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(_describe, nn.meta.unbox(boxed), shardings_of(boxed, mesh, rules))


def shardings(tree: Any) -> Any:
    """The sharding of every leaf: what `make_train_step` keeps."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def abstract(tree: Any) -> Any:
    """Shape, dtype and sharding of every leaf: what a restore needs to know."""
    return jax.tree.map(_describe, tree, shardings(tree))


def _describe(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _like_params(tx, opt_state, param_shardings, mesh):
    """Moments are laid out as their parameters; counts are on every device."""
    def masked(leaf):  # stands where `multi_transform` gave the parameters to another optimizer
        return isinstance(leaf, optax.MaskedNode)

    def like(leaf, sharding):
        return leaf if masked(leaf) else sharding
    return optax.tree.map_params(tx, like, opt_state, param_shardings, is_leaf=masked,
                                 transform_non_params=lambda _: replicated(mesh))


def _by_path(tree) -> dict[str, Any]:
    return {keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _check_given(given, expected):
    wanted = _by_path(expected)
    for name, leaf in given.items():
        assert name in wanted, f'parameter {name} was handed over, but the model has none of that name'
        assert (leaf.shape, leaf.dtype) == (wanted[name].shape, wanted[name].dtype), (
            f'parameter {name} was handed over as {leaf.dtype}{leaf.shape}, '
            f'but the model has {wanted[name].dtype}{wanted[name].shape}')

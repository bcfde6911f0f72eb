"""A state is born sharded, with the same values on every mesh, and shares no buffer with anything."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm import optim, train_state
from llm.config import OptimConfig
from llm.errors import UserError
from llm.sharding import AxisRules, make_mesh
from tests import tiny

OPTIM = OptimConfig(learning_rate=0.1, warmup_steps=1, schedule='constant', schedule_steps=9,
                    decay_fraction=0.2, final_fraction=0.1, weight_decay=0.5, b1=0.9, b2=0.95, eps=1e-8,
                    clip_norm=1.0)
RULES = AxisRules.from_config({'batch': ('data', 'fsdp'), 'embed': ('fsdp',), 'mlp': ('tensor',)})
TX = optim.by_top_key({'policy': optim.make_optimizer(OPTIM), 'value': optim.make_optimizer(OPTIM)})


def init(key):
    policy, value = jax.random.split(key)

    def part(key):
        return {'w': nn.LogicallyPartitioned(jax.random.normal(key, (4, 8)), ('embed', 'mlp')),
                'bias': nn.LogicallyPartitioned(jnp.zeros(8), ('mlp',))}
    return {'policy': part(policy), 'value': part(value)}


def create(mesh=(2, 2, 2), **how):
    return train_state.create(init, TX, 7, make_mesh(tiny.execution(mesh).mesh), RULES, **how)


def leaves(tree):
    def data(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return {jax.tree_util.keystr(path): data(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_the_mesh_changes_the_layout_and_not_the_values():
    states = [leaves(create(mesh, ema=True)) for mesh in tiny.MESHES]
    for other in states[1:]:
        assert other.keys() == states[0].keys()
        for name, leaf in other.items():
            np.testing.assert_array_equal(leaf, states[0][name], err_msg=name)


def test_moments_and_average_are_laid_out_as_their_parameters_and_the_rest_is_replicated():
    state = create(ema=True)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        expected = {'w': ('fsdp', 'tensor'), 'bias': ('tensor',)}.get(getattr(path[-1], 'key', ''), ())
        assert isinstance(leaf.sharding, jax.sharding.NamedSharding), name
        assert tuple(leaf.sharding.spec) == expected, name
        assert not getattr(leaf, 'weak_type', False), name


def test_no_two_leaves_share_a_buffer_and_none_is_the_parents():
    parent = create().params
    state = create(params=parent, ema=True)
    pointers = [shard.data.unsafe_buffer_pointer() for leaf in leaves((parent, state)).values()
                for shard in leaf.addressable_shards]
    assert len(pointers) == len(set(pointers))
    jax.tree.map(np.testing.assert_array_equal, state.params, parent)
    jax.tree.map(np.testing.assert_array_equal, state.ema, parent)


def test_a_part_handed_over_is_kept_and_the_rest_is_new():
    given = jax.tree.map(lambda leaf: leaf + 1, {'policy': create().params['policy']})
    state, fresh = create(params=given), create()
    jax.tree.map(np.testing.assert_array_equal, state.params['policy'], given['policy'])
    jax.tree.map(np.testing.assert_array_equal, state.params['value'], fresh.params['value'])


@pytest.mark.parametrize('given, complaint', (
    ({'policy': {'v': jnp.zeros((4, 8))}}, "'v'.*none of that name"),
    ({'policy': {'w': jnp.zeros((4, 4))}}, r'float32\(4, 4\).*float32\(4, 8\)'),
    ({'policy': {'w': jnp.zeros((4, 8), jnp.bfloat16)}}, 'bfloat16.*float32')))
def test_parameters_that_do_not_fit_are_refused(given, complaint):
    with pytest.raises(AssertionError, match=complaint):
        create(params=given)


def test_abstract_describes_a_state_and_abstract_params_its_parameters_before_there_is_one():
    state = create()
    described = train_state.abstract(state)
    assert jax.tree.structure(state) == jax.tree.structure(described)
    for leaf, said in zip(jax.tree.leaves(state), jax.tree.leaves(described)):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (said.shape, said.dtype, said.sharding)
    mesh = make_mesh(tiny.execution((2, 2, 2)).mesh)
    assert train_state.abstract_params(init, mesh, RULES) == described.params


def test_a_mesh_that_does_not_divide_a_parameter_is_refused_in_one_line():
    with pytest.raises(UserError, match='8 shards do not divide'):
        create((1, 8, 1))

"""Meshes and rules that do not fit are refused; rows reach the devices as they are, each read once."""

import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from llm.errors import UserError
from llm.execution import MeshConfig
from llm.sharding import AxisRules, batch_sharding, check_batch, constrain, global_batch, make_mesh
from tests import tiny

RULES = AxisRules.from_config(tiny.EXEC.rules)


def rules(**changes) -> AxisRules:
    return AxisRules.from_config({**tiny.EXEC.rules, **changes})


def test_names_become_mesh_axes():
    assert RULES.spec(('vocab', 'embed')) == PartitionSpec('tensor', ('fsdp', 'context'))
    assert RULES.spec(('batch', None, 'act')) == PartitionSpec(('data', 'fsdp'), None, None)


def test_rules_are_values_whatever_their_order():
    backwards = AxisRules.from_config(dict(reversed(tiny.EXEC.rules.items())))
    assert backwards == RULES and hash(backwards) == hash(RULES)


def test_name_without_rule_is_refused():
    with pytest.raises(ValueError, match=r"logical axis 'embde' has no rule; did you mean embed\?"):
        RULES.spec(('vocab', 'embde'))


def test_two_dimensions_on_one_mesh_axis_are_refused():
    with pytest.raises(UserError, match="exec.rules puts both 'batch' and 'length' of one array on mesh axis 'fsdp'"):
        rules(length=('fsdp',)).spec(('batch', 'length', 'act'))


def test_misspelt_mesh_axis_is_refused():
    with pytest.raises(UserError, match=r"exec.rules.mlp names the mesh axis 'tenser'; did you mean tensor\?"):
        rules(mlp=('tenser',))


@pytest.mark.parametrize('sizes, shape', [
    ((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)), ((1, 1, 1), (1, 1, 1)),
    ((1, 3, 1), (1, 3, 1)), ((8, 1, -1), (8, 1, 1))])
def test_mesh_has_these_sizes(sizes, shape):
    mesh = make_mesh(MeshConfig(*sizes))
    assert tuple(mesh.shape[axis] for axis in ('data', 'fsdp', 'tensor')) == shape
    assert mesh.shape['context'] == 1 and mesh.devices.size == np.prod(shape)


@pytest.mark.parametrize('sizes, what', [
    ((-1, -1, 1), 'at most one -1'), ((0, 1, 1), 'positive sizes'), ((-2, 1, 1), 'positive sizes'),
    ((16, 1, 1), 'does not fit 8 devices'), ((-1, 3, 1), 'does not fit 8 devices'),
    ((-1, 16, 1), 'does not fit 8 devices')])
def test_mesh_that_does_not_fit_is_refused(sizes, what):
    with pytest.raises(UserError) as error:
        make_mesh(MeshConfig(*sizes))
    assert f'exec.mesh={(*sizes, 1)}' in str(error.value) and what in str(error.value)


def rows_of(log: list):
    """rows(indices) that writes down what it was asked for."""
    def rows(indices: np.ndarray) -> dict[str, np.ndarray]:
        log.extend(indices.tolist())
        return {'tokens_BT': indices[:, None] * 100 + np.arange(3), 'length_B': indices,
                'deep_BRT': np.zeros((len(indices), 2, 3)) + indices[:, None, None]}
    return rows


@pytest.mark.parametrize('sizes', [*tiny.MESHES, (2, 4, 1), (1, 1, 8)])
def test_global_batch_is_the_dense_rows_each_loaded_once(sizes):
    indices, log = np.array([5, 3, 9, 9, 0, 70, 2, 1, 4, 5, 6, 8, 7, 10, 12, 11]), []
    batch = global_batch(rows_of(log), indices, batch_sharding(make_mesh(MeshConfig(*sizes)), RULES))
    assert log == indices.tolist()
    for name, field in rows_of([])(indices).items():
        assert np.array_equal(batch[name], field)
        assert len(batch[name].sharding.device_set) == np.prod(sizes)
        rows_a_device = batch[name].sharding.shard_shape(batch[name].shape)[0]
        assert rows_a_device == 16 // (sizes[0] * sizes[1])


def test_process_loads_only_the_rows_of_its_devices(monkeypatch):
    class Half:
        """The sharding as the second of two processes sees it, with 4 rows on each of its 2 devices."""

        def addressable_devices_indices_map(self, shape):
            return {'device 2': (slice(8, 12),), 'device 3': (slice(12, 16),)}
    monkeypatch.setattr(jax, 'make_array_from_callback', lambda shape, sharding, shard: np.concatenate(
        [shard(index) for index in sharding.addressable_devices_indices_map(shape).values()]))
    log, indices = [], np.arange(20, 36)[::-1]
    batch = global_batch(rows_of(log), indices, Half())
    assert log == indices[8:].tolist()
    assert np.array_equal(batch['tokens_BT'], rows_of([])(indices[8:])['tokens_BT'])


def test_batch_splits_evenly_over_the_mesh():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    check_batch('batch_size', 12, mesh, RULES)
    with pytest.raises(UserError, match='batch_size=30 is not divisible by 4 data shards; use a multiple of 4'):
        check_batch('batch_size', 30, mesh, RULES)


def test_constrain_follows_the_mesh_and_rests_without_one():
    x_BTD = np.zeros((8, 4, 6), np.float32)
    pin = jax.jit(lambda x: constrain(x, ('batch', 'length', 'act_mlp'), RULES))
    assert pin(x_BTD).sharding.num_devices == 1
    with jax.set_mesh(make_mesh(MeshConfig(2, 2, 2))):
        assert pin(x_BTD).sharding.spec == PartitionSpec(('data', 'fsdp'), None, 'tensor')

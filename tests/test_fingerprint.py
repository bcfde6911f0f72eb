"""Fingerprints: the mesh does not show in them, any change of an array does."""

import jax
from jax.sharding import NamedSharding, PartitionSpec
import jax.numpy as jnp
import numpy as np
import pytest

from llm.execution import MeshConfig
from llm.fingerprint import _digest, describe, fingerprint
from llm.sharding import make_mesh
from tests import tiny

MESHES = [make_mesh(MeshConfig(*sizes)) for sizes in tiny.MESHES]


def on(mesh, array, *spec):
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))


def test_the_mesh_does_not_show():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2, 8, 12)).astype(np.float32)
    scale = jnp.asarray(rng.normal(size=8), jnp.bfloat16)
    first, *others = [fingerprint({
        'layers': {'w': on(mesh, weight, None, ('data', 'fsdp'), 'tensor')}, 'norm': on(mesh, scale, 'data'),
        'step': on(mesh, np.int32(7)), 'key': on(mesh, jax.random.key(3))}) for mesh in MESHES]
    assert set(first) == {'layers/w', 'norm', 'step', 'key'}
    assert all(other == first for other in others)


def by_formula(array: np.ndarray) -> list[int]:
    """Both lanes, as the docstring of `_digest` has them, in numpy: what checkpoints on disks were sealed with."""
    def mix(x):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
        return x ^ (x >> np.uint32(16))
    words = np.frombuffer(array.tobytes(), f'uint{8 * array.dtype.itemsize}').reshape(array.shape).astype(np.uint32)
    lanes = []
    for seed in map(np.uint32, (0x9E3779B9, 0x85EBCA6B)):
        place = np.full(array.shape, seed)
        for axis, size in enumerate(array.shape):
            hashed = mix(np.arange(size, dtype=np.uint32) * seed + np.uint32(axis + 1))
            place = place + hashed.reshape([-1 if other == axis else 1 for other in range(array.ndim)])
        lanes.append(int(mix(words ^ place).sum(dtype=np.uint64)) % 2**32)
    return lanes


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int32', 'uint8', 'bool'])
@pytest.mark.parametrize('shape', [(), (7,), (3, 0), (5, 33), (2, 3, 130)])
def test_the_words_are_those_of_the_formula(shape, dtype):
    with np.errstate(over='ignore'):
        array = (10 * np.random.default_rng(0).normal(size=shape)).astype(jnp.dtype(dtype))
        assert list(fingerprint(on(MESHES[0], array))['']) == by_formula(np.asarray(array))


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named(value):
    sound, broken = np.ones((2, 3, 5), np.float32), np.ones((2, 3, 5), np.float32)
    broken[-1, -1, -1] = value
    assert describe({'params': {'v': on(MESHES[0], sound), 'w': on(MESHES[0], broken)}})[1] == 'params/w'
    assert describe({'params': {'v': on(MESHES[0], sound)}})[1] is None


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_nothing_as_large_as_an_array_is_kept_to_read_it(dtype):
    array = jax.ShapeDtypeStruct((4, 1024, 1024), dtype)
    assert jax.jit(_digest).lower(array).compile().memory_analysis().temp_size_in_bytes < 2**20


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', 'int32', 'uint8', 'bool'])
def test_a_changed_exchanged_or_shifted_element_shows_in_both_lanes(dtype):
    base = np.asarray(np.arange(24).reshape(2, 3, 4) % 2, dtype)
    arrays = [base] + [base.copy() for _ in range(24)]
    for index, array in enumerate(arrays[1:]):
        array.flat[index] = not array.flat[index]
    arrays += [np.roll(base, 1, axis=2), np.sort(base, axis=None).reshape(base.shape), np.zeros_like(base)]
    words = [fingerprint(on(MESHES[0], array))[''] for array in arrays]
    for lane in (0, 1):
        assert len({word[lane] for word in words}) == len(arrays)


def test_every_bit_of_a_number_shows():
    words = np.full((33, 5), np.float32(1.5).view(np.uint32))
    words[np.arange(32), 2] ^= np.uint32(1) << np.arange(32, dtype=np.uint32)
    prints = [fingerprint(on(MESHES[0], row.view(np.float32)))[''] for row in words]
    for lane in (0, 1):
        assert len({word[lane] for word in prints}) == 33


def test_keys_and_empty_differences_show():
    one, other = (fingerprint({'key': on(MESHES[0], jax.random.key(seed))}) for seed in (1, 2))
    assert one != other
    zero, minus_zero = (fingerprint(on(MESHES[0], np.float32([value, 1]))) for value in (0.0, -0.0))
    assert zero != minus_zero

"""Our reader and writer against the format's own library, and against each other."""

from hypothesis import given, settings, strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llm.interop import safetensors


def test_we_read_what_the_library_writes(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {'a.weight': rng.normal(size=(7, 5)).astype(np.float32),
              'b': rng.normal(size=(3, 2, 4)).astype(np.float16),
              'scalar': np.array(3, np.float32), 'none': np.zeros((0, 4), np.float32)}
    save_file(arrays, str(tmp_path / 'model.safetensors'), {'format': 'pt'})
    read = safetensors.open_folder(tmp_path)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (read[name].read((slice(None),) * array.ndim) == array.astype(np.float32)).all()


def test_the_library_reads_what_we_write(tmp_path):
    arrays = {'x': np.arange(12, dtype=np.float32).reshape(3, 4), 'y': np.ones((2, 2, 2), np.float32)}
    safetensors.write_file(tmp_path / 'model.safetensors', {
        name: (array.shape, 'F32', iter([array])) for name, array in arrays.items()})
    read = load_file(str(tmp_path / 'model.safetensors'))
    assert read.keys() == arrays.keys() and all((read[name] == arrays[name]).all() for name in arrays)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_box_is_what_numpy_cuts(data, tmp_path_factory):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    folder = tmp_path_factory.mktemp('box')
    safetensors.write_file(folder / 'model.safetensors', {'x': (tuple(shape), 'F32', iter([array]))})
    box = tuple(slice(*sorted(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True))))
                for size in shape)
    assert (safetensors.open_folder(folder)['x'].read(box) == array[box]).all()


def test_bfloat16_is_rounded_to_the_nearest_and_read_exactly(tmp_path):
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    values[:4] = [1 + 2**-8, 1 + 3 * 2**-8, 0.0, -0.0]  # two ties: to even, down and up
    safetensors.write_file(tmp_path / 'model.safetensors', {'x': ((1000,), 'BF16', iter([values]))})
    read = safetensors.open_folder(tmp_path)['x'].read((slice(None),))
    assert (read == values.astype(jnp.bfloat16).astype(np.float32)).all()
    safetensors.write_file(tmp_path / 'model.safetensors', {'x': ((1000,), 'BF16', iter([read]))})
    assert (safetensors.open_folder(tmp_path)['x'].read((slice(None),)) == read).all()


def test_blocks_change_nothing(tmp_path, monkeypatch):
    array = np.arange(60, dtype=np.float32).reshape(12, 5)
    safetensors.write_file(tmp_path / 'model.safetensors', {'x': ((12, 5), 'F32', iter([array]))})
    monkeypatch.setattr(safetensors, 'BLOCK_BYTES', 40)
    assert (safetensors.open_folder(tmp_path)['x'].read((slice(1, 11), slice(2, 4))) == array[1:11, 2:4]).all()


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    array = np.ones((4, 4), np.float32)
    path = tmp_path / 'model.safetensors'
    safetensors.write_file(path, {'x': ((4, 4), 'F32', iter([array]))})
    stored = safetensors.open_folder(tmp_path)['x']
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(safetensors.UserError, match='became shorter'):
        stored.read((slice(None), slice(None)))

"""Plans and streams: what an import will take is known from headers alone, and what it takes stays below it."""

import json
import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest

from configs import sizes
from llm.architecture import ModelConfig
from llm.door import from_dict
from llm.execution import MeshConfig
from llm.fingerprint import flatten
from llm.interop import config_json, import_hf, plan as planning, safetensors, stream
from llm.interop.families import FAMILIES
from llm.interop.targets import targets
from llm.sharding import make_mesh
from tests import tiny
from tests.interop import files

GIB = 2**30


def write_sparse(folder, model: ModelConfig, model_type: str, shard_bytes: int) -> None:
    """A folder of that model in bfloat16 whose shards are all hole: sizes and headers, and no bytes."""
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(config_json.encode(model, model_type, 'token')))
    shapes = targets(model, 'token', tiny.execution(), make_mesh(MeshConfig(1, 1, 1)))
    shards, places, room = [], {}, 0
    for path, row in planning.rows(FAMILIES[model_type], 'token').items():
        if path not in shapes:
            continue
        stacked = path.startswith('layers/')
        shape = shapes[path].shape[1:] if stacked else shapes[path].shape
        for layer in range(model.num_layers) if stacked else [0]:
            size = 2 * math.prod(shape)
            if size > room:
                shards.append({})
                room = shard_bytes
            room -= size
            name = row.name.replace('{layer}', str(layer))
            begin = sum(math.prod(entry['shape']) * 2 for entry in shards[-1].values())
            shards[-1][name] = {'dtype': 'BF16', 'shape': list(planning.layout.their_shape(row.layout, shape)),
                                'data_offsets': [begin, begin + size]}
            places[name] = f'model-{len(shards):05d}.safetensors'
    for number, header in enumerate(shards, 1):
        text = json.dumps(header).encode()
        with (folder / f'model-{number:05d}.safetensors').open('wb') as file:
            file.write(struct.pack('<Q', len(text)) + text)
            file.truncate(8 + len(text) + max(entry['data_offsets'][1] for entry in header.values()))
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': places}))


def test_70b_is_planned_without_its_bytes(tmp_path):
    model = from_dict(ModelConfig, sizes.llama3_70b().to_dict())
    write_sparse(tmp_path / 'model', model, 'llama', 5 * GIB)
    on_disk = sum(path.stat().st_blocks * 512 for path in (tmp_path / 'model').iterdir())
    said = sum(path.stat().st_size for path in (tmp_path / 'model').iterdir())
    assert said > 141e9 and on_disk < 10e6, 'the files are holes'
    opened = import_hf.open_source(str(tmp_path / 'model'))
    assert opened.described.model == model and len(opened.files) > 25
    summary = planning.summary(import_hf.make_plan(opened, (1, 4, 2)))
    assert summary['bytes'] == 4 * 70_553_706_496 and summary['tensors'] == 80 * 9 + 3
    assert summary['bytes_of_a_device'] < 1.01 * summary['bytes'] / 8
    assert summary['largest_tensor_bytes'] == 4 * 128_256 * 8192
    assert summary['host_reading_bytes'] < summary['largest_tensor_bytes'] + GIB
    # It saves a matrix of all 80 layers as one leaf, of which it holds everything: all eight devices are its own.
    assert summary['host_peak_bytes'] == 4 * 80 * 8192 * 28_672


def test_the_host_saves_a_leaf_as_a_whole_and_small_ones_together(tmp_path):
    files.write_folder(tmp_path / 'model')
    opened = import_hf.open_source(str(tmp_path / 'model'))
    for mesh in ((1, 1, 1), (8, 1, 1)):  # devices that hold the same count once
        summary = planning.summary(import_hf.make_plan(opened, mesh))
        assert summary['host_peak_bytes'] == summary['bytes'] < planning.SAVED_GB * 10**9


def test_tensors_without_rows_or_numbers_are_compared(tmp_path):
    cases = {'one': ((), 1.0), 'same': ((), 1.0), 'other': ((), 2.0), 'none': ((4, 0), 0.0), 'nothing': ((4, 0), 0.0)}
    safetensors.write_file(tmp_path / 'model.safetensors', {
        name: (shape, 'F32', iter([np.full(shape, value, np.float32)])) for name, (shape, value) in cases.items()})
    stored = safetensors.open_folder(tmp_path)
    assert planning._equal(stored['one'], stored['same']) and planning._equal(stored['none'], stored['nothing'])
    assert not planning._equal(stored['one'], stored['other'])


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces and blocks of a few rows, so that tiny tensors come in many."""
    monkeypatch.setattr(planning, 'PIECE_BYTES', 64)
    monkeypatch.setattr(safetensors, 'BLOCK_BYTES', 48)


def write_divisible(folder) -> dict[str, np.ndarray]:
    """A model that eight devices divide."""
    heads = dict(num_attention_heads=8, num_key_value_heads=8, head_dim=2, hidden_size=16, intermediate_size=16)
    shapes = {name: tuple({4: 16, 8: 16, 12: 16}.get(size, size) for size in shape)
              for name, shape in files.SHAPES.items()}
    arrays = files.tensors(0, shapes)
    files.write_folder(folder, arrays, **heads)
    return arrays


@pytest.mark.parametrize('mesh', [(1, 1, 1), (1, 8, 1), (2, 2, 2)], ids=str)
def test_pieces_make_the_same_leaves_on_any_mesh(mesh, tmp_path, small_pieces):
    """Against whole reads with NumPy."""
    arrays = write_divisible(tmp_path / 'model')
    _, params = import_hf.read_model(str(tmp_path / 'model'), mesh)
    leaves = flatten(params)
    query = np.stack([arrays[f'model.layers.{layer}.self_attn.q_proj.weight'].reshape(8, 2, 16).transpose(2, 0, 1)
                      for layer in range(2)])
    assert (np.asarray(leaves['layers/attention/query/w']) == query).all()
    out = np.stack([arrays[f'model.layers.{layer}.self_attn.o_proj.weight'].reshape(16, 8, 2).transpose(1, 2, 0)
                    for layer in range(2)])
    assert (np.asarray(leaves['layers/attention/out/w']) == out).all()
    assert (np.asarray(leaves['layers/mlp/down/w'][1]) == arrays['model.layers.1.mlp.down_proj.weight'].T).all()
    assert (np.asarray(leaves['token_head/w']) == arrays['lm_head.weight']).all()
    sizes = {**dict(zip(('data', 'fsdp', 'tensor'), mesh)), 'context': 1}
    assert leaves['layers/mlp/down/w'].sharding.mesh.shape == sizes


def test_a_tensor_is_read_once_for_devices_that_hold_the_same(tmp_path, monkeypatch):
    files.write_folder(tmp_path / 'model')
    opened = import_hf.open_source(str(tmp_path / 'model'))
    reads = []
    read = safetensors.Stored.read
    monkeypatch.setattr(safetensors.Stored, 'read', lambda self, box: reads.append(self.start) or read(self, box))
    plan = import_hf.make_plan(opened, (8, 1, 1))
    stream.load(plan, opened.tensors, lambda done, total: None)
    assert len(reads) == len(set(reads)) == len(files.SHAPES)


@pytest.mark.parametrize('mesh', [(1, 8, 1), (1, 4, 2), (2, 2, 2)], ids=str)
def test_every_row_is_read_once_for_devices_that_hold_different_parts(mesh, tmp_path, monkeypatch, small_pieces):
    write_divisible(tmp_path / 'model')
    opened = import_hf.open_source(str(tmp_path / 'model'))
    rows = []
    read = safetensors.Stored.read
    monkeypatch.setattr(safetensors.Stored, 'read', lambda self, box: rows.extend(
        (self.start, row) for row in range(*box[0].indices(self.shape[0]))) or read(self, box))
    stream.load(import_hf.make_plan(opened, mesh), opened.tensors, lambda done, total: None)
    assert len(rows) == len(set(rows)) == sum(tensor.shape[0] for tensor in opened.tensors.values())


# The peak of a process that reads, beside what it holds on its devices, which here are the host's memory, too.
MEASURE = '''
import json, pathlib, sys, threading, time
import jax, psutil
from llm.interop import import_hf, plan as planning, stream
base = psutil.Process().memory_info().rss
opened = import_hf.open_source(sys.argv[1])
plan = import_hf.make_plan(opened, (1, 1, 1))
peak, done = [base], []
def watch():
    while not done:
        peak.append(psutil.Process().memory_info().rss)
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
leaves = stream.load(plan, opened.tensors, lambda done, total: None)
done.append(1)
thread.join()
print(json.dumps({**planning.summary(plan), 'base': base, 'peak': max(peak)}))
'''


@pytest.mark.slow
def test_peak_of_the_host_that_reads_is_below_its_promise(tmp_path):
    """1.6 GiB in float32, of which the largest tensor is 0.25: all on one device, from two bfloat16 shards."""
    model = from_dict(ModelConfig, {**sizes.tiny().to_dict(), 'vocab_size': 32_768, 'model_dim': 2048, 'num_heads': 16,
                                    'num_kv_heads': 8, 'head_dim': 128, 'mlp_dim': 5504, 'num_layers': 8})
    write_sparse(tmp_path / 'model', model, 'llama', GIB // 2)
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    said = subprocess.run([sys.executable, '-c', MEASURE, str(tmp_path / 'model')], check=True, text=True,
                          capture_output=True, env=environment).stdout
    said = json.loads(said.splitlines()[-1])
    assert said['bytes'] > 1.5 * GIB
    assert said['peak'] - said['bytes'] < said['largest_tensor_bytes'] + GIB, said

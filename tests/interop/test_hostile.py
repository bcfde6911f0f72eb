"""Files that lie: each is refused in one line that names what is wrong, before a number is read."""

import json
import os
import struct

import numpy as np
import pytest

from llm.data import json_file
from llm.errors import UserError
from llm.interop import import_hf
from tests.interop import files


def refused(source) -> str:
    """The one line that opening and planning an import of it gives."""
    with pytest.raises(UserError) as error:
        opened = import_hf.open_source(str(source))
        import_hf.make_plan(opened, (1, 1, 1))
    line = str(error.value)
    assert '\n' not in line and len(line) < 700, line
    return line


def damaged(folder, change=None, *, arrays=None, raw=None):
    """A folder whose one file has another header, by `change(header)`, or other bytes altogether."""
    files.write_folder(folder)
    header, data = files.header_of(files.tensors() if arrays is None else arrays)
    if change is not None:
        header = change(header) or header
    if raw is None:
        files.write_raw(folder / 'model.safetensors', json.dumps(header).encode(), data)
    else:
        (folder / 'model.safetensors').write_bytes(raw(json.dumps(header).encode(), data))
    return folder


def entry(name='model.norm.weight', **changes):
    return lambda header: header[name].update(changes)


def moved(header):
    """One tensor onto another's bytes: the sizes still add up to less than the file."""
    header['model.layers.0.input_layernorm.weight']['data_offsets'] = header['model.norm.weight']['data_offsets']


def gap(header):
    for name in header:
        header[name]['data_offsets'] = [place + 4 for place in header[name]['data_offsets']]


NORM = 'model.norm.weight'
SAFETENSORS = {
    'empty': (dict(raw=lambda header, data: b''), 'too few for a header'),
    'only a length': (dict(raw=lambda header, data: struct.pack('<Q', 5)), 'in all'),
    'length beyond the file': (dict(raw=lambda h, d: struct.pack('<Q', len(h + d) + 1) + h + d), 'in all'),
    'length beyond any header': (dict(raw=lambda h, d: struct.pack('<Q', 2**63) + h + d), 'more than 100000000'),
    'header that is not UTF-8': (dict(raw=lambda h, d: struct.pack('<Q', 4) + b'\xff\xfe{}' + d), 'not sound JSON'),
    'header that is not JSON': (dict(raw=lambda h, d: struct.pack('<Q', 4) + b'{"a"' + d), 'not sound JSON'),
    'header that is a list': (dict(raw=lambda h, d: struct.pack('<Q', 2) + b'[]' + d), 'no JSON object'),
    'header nested deep': (dict(raw=lambda h, d: struct.pack('<Q', 200_000) + b'[' * 200_000), 'nested too deep'),
    'a name twice': (dict(raw=lambda h, d: struct.pack('<Q', 14) + b'{"a":1, "a":2}' + d), 'there twice'),
    'NaN in the header': (dict(raw=lambda h, d: struct.pack('<Q', 9) + b'{"a":NaN}' + d), 'no number of JSON'),
    'a number of 5,000 digits': (dict(raw=lambda h, d: struct.pack('<Q', 5006) + b'{"a":' + b'9' * 5000 + b'}'),
                                 'not sound JSON'),
    'bytes after the numbers': (dict(raw=lambda h, d: struct.pack('<Q', len(h)) + h + d + b'evil'), 'accounts for'),
    'numbers cut off': (dict(raw=lambda h, d: struct.pack('<Q', len(h)) + h + d[:-1]), 'accounts for'),
    'metadata that is no table': (dict(change=lambda h: {'__metadata__': [1], **h}), '__metadata__'),
    'metadata with numbers': (dict(change=lambda h: {'__metadata__': {'format': 1}, **h}), '__metadata__'),
    'an entry that is a list': (dict(change=lambda h: {**h, NORM: [1, 2]}), 'not by dtype, shape and data_offsets'),
    'an entry with another key': (dict(change=entry(extra=1)), "'extra'"),
    'an entry without a shape': (dict(change=lambda h: h[NORM].pop('shape') and None), 'not by dtype'),
    'an unknown dtype': (dict(change=entry(dtype='F31')), "dtype='F31'"),
    'a dtype that is a number': (dict(change=entry(dtype=32)), 'dtype=32'),
    'a shape that is a number': (dict(change=entry(shape=8)), 'shape=8'),
    'a negative size': (dict(change=entry(shape=[-8])), 'shape=[-8]'),
    'a size that is true': (dict(change=entry(shape=[True, 8])), 'shape=[True, 8]'),
    'a size that is a fraction': (dict(change=entry(shape=[8.0])), 'shape=[8.0]'),
    'a hundred axes': (dict(change=entry(shape=[1] * 100 + [8])), 'up to 8 whole numbers'),
    'sizes whose product overflows': (dict(change=entry(shape=[2**62, 4, 8])), 'bytes, and has'),
    'a shape larger than its bytes': (dict(change=entry(shape=[9])), '36 bytes, and has'),
    'three offsets': (dict(change=entry(data_offsets=[0, 1, 2])), 'not two whole numbers'),
    'offsets the wrong way': (dict(change=entry(data_offsets=[32, 0])), 'bytes, and has'),
    'a negative offset': (dict(change=entry(data_offsets=[-32, 0])), 'not two whole numbers'),
    'overlapping tensors': (dict(change=moved), 'overlaps the one before'),
    'a gap': (dict(change=gap), 'leaves a gap'),
    'wrong dtype': (dict(arrays={**files.tensors(), NORM: np.zeros(8, np.int64)}), 'dtype I64'),
    'another shape than the config': (dict(arrays={**files.tensors(), NORM: np.zeros(9, np.float32)}), 'shape [9]'),
    'a tensor missing': (dict(arrays={name: array for name, array in files.tensors().items() if name != NORM}),
                         'norm.weight is missing'),
    'a tensor too many': (dict(arrays={**files.tensors(), 'model.layers.2.mlp.x': np.zeros(1, np.float32)}),
                          'not known in this family'),
    'a bias that the config denies': (
        dict(arrays={**files.tensors(), 'model.layers.0.self_attn.q_proj.bias': np.zeros(8, np.float32)}),
        'not known in this family'),
}


@pytest.mark.parametrize('name', SAFETENSORS)
def test_lying_safetensors_is_refused(name, tmp_path):
    how, words = SAFETENSORS[name]
    assert words in refused(damaged(tmp_path / 'model', **how))


CONFIGS = {
    'no family': (dict(model_type='mamba'), "model_type='mamba'"),
    'family that is a list': (dict(model_type=['llama']), "model_type=['llama']"),
    'an unknown key': (dict(residual_scale=2.0), 'residual_scale=2.0'),
    'a misspelt key': (dict(rms_norm_epsilon=1.0), 'did you mean rms_norm_eps?'),
    'code of its own': (dict(auto_map={'AutoModel': 'evil.Model'}), 'auto_map'),
    'packed weights': (dict(quantization_config={'quant_method': 'gptq'}), 'quantization_config'),
    'another class': (dict(architectures=['LlamaForQuestionAnswering']), 'architectures='),
    'two classes': (dict(architectures=['LlamaForCausalLM', 'LlamaModel']), 'architectures='),
    'a size that is text': (dict(hidden_size='8'), "'8'"),
    'a size that is true': (dict(num_attention_heads=True), 'True'),
    'no layers': (dict(num_hidden_layers=0), 'num_layers=0'),
    'a billion layers': (dict(num_hidden_layers=10**9), 'beyond any model'),
    'a vocabulary beyond memory': (dict(vocab_size=10**18), 'beyond any model'),
    'another width than the tensors': (dict(hidden_size=16), 'its config says'),
    'heads that do not divide': (dict(num_attention_heads=3, num_key_value_heads=2), 'num_kv_heads=2'),
    'another activation': (dict(hidden_act='relu'), "'relu'"),
    'one bias of two': (dict(attention_bias=True), 'attention_bias=True'),
    'a scaling that is not known': (dict(rope_scaling={'rope_type': 'yarn', 'factor': 4.0}), 'rope_scaling='),
    'a scaling with another key': (dict(rope_scaling={'rope_type': 'linear', 'factor': 4.0, 'beta': 1}), 'beta'),
    'a scaling that is text': (dict(rope_scaling='linear'), 'rope_scaling='),
    'scaling by nothing': (dict(rope_scaling={'rope_type': 'linear', 'factor': 0}), 'factor=0'),
    'two rotary bases': (dict(rope_parameters={'rope_type': 'default', 'rope_theta': 5.0}), 'contradicts'),
    'a negative base': (dict(rope_theta=-1.0), 'rope_theta=-1.0'),
    'half a rotation': (dict(partial_rotary_factor=0.5), 'partial_rotary_factor=0.5'),
    'a negative epsilon': (dict(rms_norm_eps=-1.0), 'rms_norm_eps=-1.0'),
    'an epsilon beyond numbers': (dict(rms_norm_eps=1e308), 'beyond any model'),
    'an encoder within': (dict(is_encoder_decoder=True), 'is_encoder_decoder=True'),
    'windows without order': (dict(
        model_type='qwen3', architectures=['Qwen3ForCausalLM'], num_hidden_layers=4, sliding_window=4,
        use_sliding_window=True, layer_types=['full_attention'] + ['sliding_attention'] * 3), 'not every n-th one'),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_lying_config_is_refused(name, tmp_path):
    changes, words = CONFIGS[name]
    assert words in refused(files.write_folder(tmp_path / 'model', **changes))


@pytest.mark.parametrize('content, words', [
    (b'', 'not sound JSON'), (b'[1]', 'no JSON object'), (b'{"a": NaN}', 'no number'), (b'\xff', 'not sound JSON'),
    (b'{"a": 1, "a": 2}', 'there twice'), (b'{"model_type": "llama"}', 'missing')], ids=str)
def test_damaged_config_file_is_refused(content, words, tmp_path):
    folder = files.write_folder(tmp_path / 'model')
    (folder / 'config.json').write_bytes(content)
    assert words in refused(folder)


def test_huge_json_is_refused_unread(tmp_path):
    folder = files.write_folder(tmp_path / 'model')
    with (folder / 'config.json').open('wb') as file:
        file.truncate(json_file.LIMIT_BYTES + 1)
    assert 'bytes of JSON, more than' in refused(folder)


def index_of(folder) -> dict:
    return json.loads((folder / 'model.safetensors.index.json').read_text())


@pytest.mark.parametrize('place', [
    '../model.safetensors', '/etc/passwd', 'sub/model.safetensors', '..', '', 'model.bin', 'a\0b.safetensors',
    '.hidden.safetensors', 'C:\\model.safetensors', 'model.safetensors/', 7, None, ['model.safetensors']], ids=repr)
def test_path_tricks_in_the_index_are_refused(place, tmp_path):
    folder = files.write_sharded(tmp_path / 'model')
    index = index_of(folder)
    index['weight_map'][NORM] = place
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    assert 'not the plain name of a .safetensors file' in refused(folder)


INDEXES = {
    'no map': (dict(weight_map=None), 'names no tensor'),
    'an empty map': (dict(weight_map={}), 'names no tensor'),
    'a map that is a list': (dict(weight_map=['x']), 'names no tensor'),
    'another key': (dict(evil=1), "'evil' is no key of an index"),
}


@pytest.mark.parametrize('name', INDEXES)
def test_lying_index_is_refused(name, tmp_path):
    changes, words = INDEXES[name]
    assert words in refused(files.write_sharded(tmp_path / 'model', **changes))


def test_shards_against_the_index_are_refused(tmp_path):
    folder = files.write_sharded(tmp_path / 'missing')
    (folder / 'model-00002-of-00002.safetensors').unlink()
    assert 'not there' in refused(folder)
    folder = files.write_sharded(tmp_path / 'stray')
    index = index_of(folder)
    place = index['weight_map'].pop(NORM)
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    assert 'but not by the index' in refused(folder)
    index['weight_map'][NORM] = next(other for other in index['weight_map'].values() if other != place)
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    assert 'by the index' in refused(folder)
    index['weight_map'] |= {NORM: place, 'model.extra': place}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    assert 'is not in it' in refused(folder)
    folder = files.write_sharded(files.write_folder(tmp_path / 'both'))
    assert 'has both' in refused(folder)


def test_a_pipe_or_a_folder_in_place_of_a_shard_is_refused(tmp_path):
    folder = files.write_sharded(tmp_path / 'model')
    shard = folder / 'model-00001-of-00002.safetensors'
    shard.unlink()
    os.mkfifo(shard)
    assert 'not a regular file' in refused(folder)
    shard.unlink()
    shard.mkdir()
    assert 'not a regular file' in refused(folder)


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.pt', 'model.PTH', 'model.ckpt', 'weights.pkl'])
def test_pickles_are_refused_in_one_line(name, tmp_path):
    folder = files.write_folder(tmp_path / 'model')
    (folder / 'model.safetensors').unlink()
    (folder / name).write_bytes(b'\x80\x04K\x01.')
    assert 'is a pickle, which runs code' in refused(folder)
    assert 'is a pickle, which runs code' in refused(folder / name)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    assert 'is not there' in refused(tmp_path / 'nowhere')
    assert 'config.json is not there' in refused(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps(files.CONFIG))
    assert 'neither model.safetensors nor' in refused(tmp_path)
    assert 'is a file' in refused(tmp_path / 'config.json')


def test_a_tied_model_with_another_output_table_is_refused(tmp_path):
    line = refused(files.write_folder(tmp_path / 'differs', tie_word_embeddings=True))
    assert 'lm_head.weight differs from model.embed_tokens.weight' in line
    arrays = files.tensors()
    arrays['lm_head.weight'] = arrays['model.embed_tokens.weight']
    folder = files.write_folder(tmp_path / 'same', arrays, tie_word_embeddings=True)
    opened = import_hf.open_source(str(folder))
    plan = import_hf.make_plan(opened, (1, 1, 1))
    assert plan.left_out == ('lm_head.weight',)


GGUF = [('token_embd.weight', (24, 32), 0, 0), ('output_norm.weight', (32,), 0, 3072)]
GGUFS = {
    'empty': (b'', 'claims 4 bytes'),
    'another magic': (files.gguf_bytes(magic=b'GGML'), 'does not begin with GGUF'),
    'an older version': (files.gguf_bytes(version=1), 'GGUF version 1'),
    'big-endian': (files.gguf_bytes(version=3 << 24), 'GGUF version 50331648'),
    'a count beyond the file': (files.gguf_bytes(counts=(2**60, 1)), 'claims 1152921504606846976 tensors'),
    'keys beyond the file': (files.gguf_bytes(counts=(1, 2**40)), 'claims 1099511627776 keys'),
    'a text beyond the file': (files.gguf_bytes(keys=[('a', struct.pack('<IQ', 8, 2**50))]), 'bytes of text'),
    'a list beyond the file': (files.gguf_bytes(keys=[('a', struct.pack('<IIQ', 9, 4, 2**50))]), 'entries of a list'),
    'a list of lists': (files.gguf_bytes(keys=[('a', struct.pack('<IIQ', 9, 9, 1))]), 'list of type 9'),
    'a value of no type': (files.gguf_bytes(keys=[('a', struct.pack('<I', 99))]), 'type 99'),
    'a text that is not UTF-8': (files.gguf_bytes(keys=[('a', struct.pack('<IQ', 8, 2) + b'\xff\xff')]), 'not UTF-8'),
    'a key twice': (files.gguf_bytes(keys=[('a', 1), ('a', 2)]), "key 'a' twice"),
    'an alignment of 3': (files.gguf_bytes(keys=[('general.alignment', 3)]), 'general.alignment=3'),
    'five axes': (files.gguf_bytes(described=[('a', (1, 1, 1, 1, 32), 0, 0)]), 'of 5 axes'),
    'no axes': (files.gguf_bytes(described=[('a', (), 0, 0)]), 'of 0 axes'),
    'an unknown type': (files.gguf_bytes(described=[('a', (32,), 77, 0)]), 'of type 77'),
    'rows that are no blocks': (files.gguf_bytes(described=[('a', (2, 30), 3, 0)]), 'does not fit blocks'),
    'sizes whose product overflows': (files.gguf_bytes(described=[('a', (2**40, 2**40), 0, 0)]), 'does not fit'),
    'a tensor twice': (files.gguf_bytes(described=[GGUF[0], GGUF[0]]), 'twice'),
    'overlapping tensors': (files.gguf_bytes(described=[GGUF[0], ('b', (32,), 0, 3040)]), 'overlaps'),
    'an offset off the grid': (files.gguf_bytes(described=[('a', (32,), 0, 4)]), 'aligned to 32'),
    'an offset beyond the file': (files.gguf_bytes(described=[('a', (32,), 0, 2**40)]), 'lies at bytes'),
    'cut off': (files.gguf_bytes(cut=64), 'lies at bytes'),
    'another architecture': (files.gguf_bytes(keys=[('general.architecture', 'qwen2')]), 'is not llama'),
    'an unknown key of the model': (files.gguf_bytes(keys=[*files.GGUF_KEYS.items(), ('llama.expert_count', 8)]),
                                    'llama.expert_count=8'),
    'a rotation of half a head': (files.gguf_bytes(
        keys=[*list(files.GGUF_KEYS.items())[:-1], ('llama.rope.dimension_count', 8)]), 'dimension_count=8'),
    'a size missing': (files.gguf_bytes(keys=[item for item in files.GGUF_KEYS.items()
                                              if item[0] != 'llama.block_count']), 'num_hidden_layers is missing'),
    'another width than the tensors': (files.gguf_bytes(keys=list(
        {**files.GGUF_KEYS, 'llama.feed_forward_length': 32}.items())), 'its config says'),
}


@pytest.mark.parametrize('name', GGUFS)
def test_lying_gguf_is_refused(name, tmp_path):
    content, words = GGUFS[name]
    (tmp_path / 'model.gguf').write_bytes(content)
    assert words in refused(tmp_path / 'model.gguf')


def test_sound_files_are_not_refused(tmp_path):
    (tmp_path / 'model.gguf').write_bytes(files.gguf_bytes())
    folders = files.write_folder(tmp_path / 'one'), files.write_sharded(tmp_path / 'two')
    for source in (*folders, tmp_path / 'model.gguf'):
        opened = import_hf.open_source(str(source))
        assert import_hf.make_plan(opened, (1, 1, 1)).leaves

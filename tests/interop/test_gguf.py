"""Our GGUF reader against the gguf package's writer, reader and quantisation."""

import gguf as library
from gguf import quants
import numpy as np
import pytest

from llm.fingerprint import flatten
from llm.interop import gguf, import_hf
from tests.interop import files

KINDS = {'F32': 0.0, 'F16': 1e-3, 'BF16': 1e-2, 'Q8_0': 0.02, 'Q5_1': 0.15, 'Q5_0': 0.2, 'Q4_1': 0.3, 'Q4_0': 0.4}


def write(path, arrays: dict[str, np.ndarray], kinds: dict[str, str]) -> None:
    """With the package's own writer; norms stay F32."""
    writer = library.GGUFWriter(str(path), 'llama')
    for key, value in list(files.GGUF_KEYS.items())[1:]:
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    for name, array in arrays.items():
        kind = library.GGMLQuantizationType[kinds.get(name, 'F32')]
        writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize('kind', KINDS)
def test_numbers_are_those_of_the_package(kind, tmp_path):
    arrays = files.tensors(1, files.GGUF_SHAPES)
    matrices = {name: kind for name, array in arrays.items() if array.ndim == 2}
    write(tmp_path / 'model.gguf', arrays, matrices)
    contents = gguf.open_file(tmp_path / 'model.gguf')
    theirs = {tensor.name: quants.dequantize(tensor.data, tensor.tensor_type)
              for tensor in library.GGUFReader(tmp_path / 'model.gguf').tensors}
    assert contents.tensors.keys() == theirs.keys()
    for name, array in arrays.items():
        read = contents.tensors[name].read((slice(None),) * array.ndim)
        assert (read == theirs[name].reshape(array.shape)).all()
        assert np.abs(read - array).max() <= KINDS[kind if array.ndim == 2 else 'F32'] + 1e-9
        if array.ndim == 2:
            assert (contents.tensors[name].read((slice(3, 9), slice(5, 30))) == read[3:9, 5:30]).all()


def test_metadata_is_what_the_package_reads(tmp_path):
    write(tmp_path / 'model.gguf', files.tensors(1, files.GGUF_SHAPES), {})
    reader = library.GGUFReader(tmp_path / 'model.gguf')
    read = gguf.open_file(tmp_path / 'model.gguf').metadata
    assert read == {key: field.contents() for key, field in reader.fields.items() if not key.startswith('GGUF.')}


def test_blocks_change_nothing(tmp_path, monkeypatch):
    write(tmp_path / 'model.gguf', files.tensors(1, files.GGUF_SHAPES), {'token_embd.weight': 'Q4_1'})
    tensor = gguf.open_file(tmp_path / 'model.gguf').tensors['token_embd.weight']
    whole = tensor.read((slice(2, 20), slice(0, 32)))
    monkeypatch.setattr(gguf, 'BLOCK_BYTES', 300)
    assert (tensor.read((slice(2, 20), slice(0, 32))) == whole).all()


def test_a_model_is_the_same_from_gguf_and_from_safetensors(tmp_path):
    """The converter of llama.cpp permutes query and key rows: (2, H/2) of each head becomes (H/2, 2)."""
    arrays = files.tensors(1, files.GGUF_SHAPES)
    (tmp_path / 'model.gguf').write_bytes(files.gguf_bytes())
    names = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'attn_norm': 'input_layernorm',
             'ffn_norm': 'post_attention_layernorm', 'attn_q': 'self_attn.q_proj', 'attn_k': 'self_attn.k_proj',
             'attn_v': 'self_attn.v_proj', 'attn_output': 'self_attn.o_proj', 'ffn_gate': 'mlp.gate_proj',
             'ffn_up': 'mlp.up_proj', 'ffn_down': 'mlp.down_proj'}
    theirs = {}
    for name, array in arrays.items():
        short = name.removesuffix('.weight').removeprefix('blk.0.')
        if short in ('attn_q', 'attn_k'):
            array = array.reshape(-1, 8, 2, 64).swapaxes(1, 2).reshape(-1, 64)
        theirs[('model.layers.0.' if name.startswith('blk.') else '') + names[short] + '.weight'] = array
    files.write_folder(tmp_path / 'model', theirs, hidden_size=64, intermediate_size=96, head_dim=16,
                       num_hidden_layers=1, tie_word_embeddings=True)
    (one, ours), (other, same) = (import_hf.read_model(str(tmp_path / name)) for name in ('model.gguf', 'model'))
    assert one == other
    left, right = flatten(ours), flatten(same)
    assert left.keys() == right.keys() and len(left) == len(arrays)
    for path, leaf in left.items():
        np.testing.assert_array_equal(leaf, right[path], err_msg=path)

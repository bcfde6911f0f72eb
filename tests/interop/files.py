"""Small sound checkpoints in other people's formats, to be damaged by tests.

In: a folder. Out: a tiny Llama as safetensors, or as GGUF; its numbers are drawn, always the same.
"""

import json
import pathlib
import struct
from typing import Any

import numpy as np

CONFIG = {
    'architectures': ['LlamaForCausalLM'], 'model_type': 'llama', 'vocab_size': 24, 'hidden_size': 8,
    'num_hidden_layers': 2, 'num_attention_heads': 2, 'num_key_value_heads': 1, 'head_dim': 4, 'intermediate_size': 12,
    'max_position_embeddings': 16, 'rms_norm_eps': 1e-5, 'hidden_act': 'silu', 'rope_theta': 10000.0,
    'tie_word_embeddings': False, 'torch_dtype': 'float32'}
SHAPES = {
    'model.embed_tokens.weight': (24, 8), 'model.norm.weight': (8,), 'lm_head.weight': (24, 8),
    **{f'model.layers.{layer}.{name}.weight': shape for layer in range(2) for name, shape in (
        ('self_attn.q_proj', (8, 8)), ('self_attn.k_proj', (4, 8)), ('self_attn.v_proj', (4, 8)),
        ('self_attn.o_proj', (8, 8)), ('mlp.gate_proj', (12, 8)), ('mlp.up_proj', (12, 8)), ('mlp.down_proj', (8, 12)),
        ('input_layernorm', (8,)), ('post_attention_layernorm', (8,)))}}


def tensors(seed: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def header_of(arrays: dict[str, np.ndarray]) -> tuple[dict[str, Any], bytes]:
    """(header, numbers) of a safetensors file, by hand: independent of the writer that is tested."""
    header, data = {}, b''
    for name, array in arrays.items():
        begin = len(data)
        data += array.tobytes()
        kind = {'float32': 'F32', 'float16': 'F16', 'uint16': 'BF16', 'int64': 'I64', 'bool': 'BOOL'}[str(array.dtype)]
        header[name] = {'dtype': kind, 'shape': list(array.shape), 'data_offsets': [begin, len(data)]}
    return header, data


def write_raw(path: pathlib.Path, header: bytes, data: bytes, length: int | None = None) -> None:
    path.write_bytes(struct.pack('<Q', len(header) if length is None else length) + header + data)


def write_shard(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    header, data = header_of(arrays)
    write_raw(path, json.dumps(header).encode(), data)


def write_folder(folder: pathlib.Path, arrays: dict[str, np.ndarray] | None = None, **changes: Any) -> pathlib.Path:
    """A sound folder of one file; `changes` are keys of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text(json.dumps({**CONFIG, **changes}))
    write_shard(folder / 'model.safetensors', tensors() if arrays is None else arrays)
    return folder


def write_sharded(folder: pathlib.Path, **index: Any) -> pathlib.Path:
    """A sound folder of two shards; `index` are keys of the index that differ."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(CONFIG))
    names = sorted(SHAPES)
    places = {name: f'model-0000{1 + number % 2}-of-00002.safetensors' for number, name in enumerate(names)}
    for place in sorted(set(places.values())):
        write_shard(folder / place, {name: array for name, array in tensors().items() if places[name] == place})
    (folder / 'model.safetensors.index.json').write_text(json.dumps(
        {'metadata': {'total_size': 1}, 'weight_map': places, **index}))
    return folder


GGUF_KEYS = {
    'general.architecture': 'llama', 'llama.block_count': 1, 'llama.context_length': 16, 'llama.embedding_length': 64,
    'llama.feed_forward_length': 96, 'llama.attention.key_length': 16, 'llama.attention.head_count': 2,
    'llama.attention.head_count_kv': 1, 'llama.rope.freq_base': 10000.0,
    'llama.attention.layer_norm_rms_epsilon': 1e-5, 'llama.rope.dimension_count': 16}
GGUF_SHAPES = {
    'token_embd.weight': (24, 64), 'output_norm.weight': (64,), 'blk.0.attn_norm.weight': (64,),
    'blk.0.ffn_norm.weight': (64,), 'blk.0.attn_q.weight': (32, 64), 'blk.0.attn_k.weight': (16, 64),
    'blk.0.attn_v.weight': (16, 64), 'blk.0.attn_output.weight': (64, 32), 'blk.0.ffn_gate.weight': (96, 64),
    'blk.0.ffn_up.weight': (96, 64), 'blk.0.ffn_down.weight': (64, 96)}


def text(value: str) -> bytes:
    return struct.pack('<Q', len(value.encode())) + value.encode()


def gguf_value(value: Any) -> bytes:
    """Type and value: text, whole number (uint32), number (float32)."""
    if isinstance(value, bytes):  # type and value as they shall stand there
        return value
    if isinstance(value, str):
        return struct.pack('<I', 8) + text(value)
    return struct.pack('<II', 4, value) if isinstance(value, int) else struct.pack('<If', 6, value)


def gguf_bytes(*, keys: list[tuple[str, Any]] | None = None, described: list[tuple] | None = None,
               magic: bytes = b'GGUF', version: int = 3, counts: tuple[int, int] | None = None,
               cut: int = 0) -> bytes:
    """A file of float32 tensors; each part may be replaced. described: (name, shape, type, offset) for each tensor."""
    keys = list(GGUF_KEYS.items()) if keys is None else keys
    data = b''
    if described is None:
        described = []
        for name, array in tensors(1, GGUF_SHAPES).items():
            described.append((name, array.shape, 0, len(data)))
            data += array.tobytes() + b'\0' * (-array.nbytes % 32)
    else:
        data = b'\0' * 65536
    head = magic + struct.pack('<I', version) + struct.pack('<QQ', *(counts or (len(described), len(keys))))
    head += b''.join(text(key) + gguf_value(value) for key, value in keys)
    for name, shape, kind, offset in described:
        head += text(name) + struct.pack('<I', len(shape)) + b''.join(struct.pack('<Q', size) for size in shape[::-1])
        head += struct.pack('<IQ', kind, offset)
    whole = head + b'\0' * (-len(head) % 32) + data
    return whole[:len(whole) - cut]

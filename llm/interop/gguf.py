"""GGUF files of Llama-architecture models: checked before a number is read, dequantised a block of rows at a time.

In: a .gguf file, version 3, little-endian. Out: its metadata, `Packed` tensors by name, the keys of a config.json.
Left out: other architectures; the arithmetic of quantised blocks, which is the `gguf` package's; its reader, which maps
the whole file and believes its counts.

Format: magic, version, two counts; metadata (name, type, value); for each tensor its name, sizes (the fastest first),
type and offset; then, aligned, the numbers. Query and key rows are permuted (`decoders.GGUF_LLAMA`).
"""

import dataclasses
import itertools
import math
import pathlib
import struct
from typing import Any, BinaryIO, NamedTuple

from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as QuantType
import numpy as np

from llm.data import json_file
from llm.errors import UserError
from llm.interop.safetensors import BLOCK_BYTES

# What blocks of these types mean is settled; of others (the IQ family and newer) it was not compared here.
TYPES = ('F32', 'F16', 'BF16', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0', 'Q2_K', 'Q3_K', 'Q4_K', 'Q5_K', 'Q6_K')
_SCALARS = {0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q', 12: 'd'}
_STRING, _ARRAY = 8, 9
_MOST_ITEMS = 10_000_000  # of tensors, keys, entries of a list: each costs a few bytes of the file, too
_KEYS = {'block_count': 'num_hidden_layers', 'context_length': 'max_position_embeddings',
         'embedding_length': 'hidden_size', 'feed_forward_length': 'intermediate_size',
         'attention.head_count': 'num_attention_heads', 'attention.head_count_kv': 'num_key_value_heads',
         'rope.freq_base': 'rope_theta', 'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
         'attention.key_length': 'head_dim', 'vocab_size': 'vocab_size'}
_SAME_AS_HEAD = ('rope.dimension_count', 'attention.value_length')  # must be the width of a head


class Contents(NamedTuple):
    metadata: dict[str, Any]
    tensors: dict[str, 'Packed']


@dataclasses.dataclass(frozen=True)
class Packed:
    """One tensor of a file, its rows in blocks of a quantised type."""

    file: pathlib.Path
    dtype: str
    shape: tuple[int, ...]  # as in NumPy: the fastest last
    start: int  # of its first byte in the file
    stop: int

    def read(self, box: tuple[slice, ...]) -> np.ndarray:
        """The numbers of a box, as float32, read in blocks of whole rows."""
        kind = QuantType[self.dtype]
        width, size = GGML_QUANT_SIZES[kind]
        rows_shape, row_bytes = self.shape[:-1], self.shape[-1] // width * size
        rows = np.arange(math.prod(rows_shape)).reshape(rows_shape)[box[:-1]]
        out = np.empty((rows.size, len(range(*box[-1].indices(self.shape[-1])))), np.float32)
        step = max(1, BLOCK_BYTES // (4 * self.shape[-1]))
        with self.file.open('rb') as file:
            for begin in range(0, rows.size, step):
                wanted = rows.ravel()[begin:begin + step]
                block = np.empty((wanted[-1] + 1 - wanted[0], row_bytes), np.uint8)
                file.seek(self.start + int(wanted[0]) * row_bytes)
                if file.readinto(block) != block.nbytes:
                    raise UserError(f'{self.file} became shorter while it was read; fetch it again')
                values = quants.dequantize(block if kind not in (QuantType.F32, QuantType.F16) else
                                           block.view(np.float32 if kind == QuantType.F32 else np.float16), kind)
                out[begin:begin + step] = values.reshape(-1, self.shape[-1])[wanted - wanted[0]][:, box[-1]]
        return out.reshape(*rows.shape, -1)


class _Reader:
    """Reads plain values and never past the end; every error is one line."""

    def __init__(self, path: pathlib.Path, file: BinaryIO, size: int):
        self.path, self.file, self.size = path, file, size

    def fail(self, what: str):
        raise UserError(f'{self.path} {what}; fetch it again')

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            self.fail(f'claims {count} bytes at {self.file.tell()} and has {self.size} in all')
        return self.file.read(count)

    def number(self, code: str) -> Any:
        return struct.unpack(f'<{code}', self.take(struct.calcsize(f'<{code}')))[0]

    def count(self, what: str) -> int:
        count = self.number('Q')
        if count > min(_MOST_ITEMS, self.size):
            self.fail(f'claims {count} {what}')
        return count

    def text(self) -> str:
        data = self.take(self.count('bytes of text'))
        try:
            return data.decode('utf-8')
        except UnicodeDecodeError:
            self.fail(f'has a text that is not UTF-8 ({data[:20]!r})')

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.number('I'), self.count('entries of a list')
            if inner in _SCALARS:
                code = _SCALARS[inner]
                return list(struct.unpack(f'<{count}{code}', self.take(count * struct.calcsize(f'<{code}'))))
            if inner != _STRING:
                self.fail(f'has a list of type {inner}, which is not known')
            return [self.text() for _ in range(count)]
        if kind not in _SCALARS:
            self.fail(f'has a value of type {kind}, which is not known')
        return self.number(_SCALARS[kind])


def open_file(path: pathlib.Path) -> Contents:
    """Metadata and tensors, checked; raises UserError, one line, for the first thing that is wrong."""
    size = json_file.regular(path)
    with path.open('rb') as file:
        reader = _Reader(path, file, size)
        if reader.take(4) != b'GGUF':
            raise UserError(f'{path} does not begin with GGUF; name a GGUF file, or a folder of safetensors')
        version = reader.number('I')
        if version != 3:
            raise UserError(f'{path} is GGUF version {version}, and little-endian version 3 is read here; convert it')
        tensor_count, key_count = reader.count('tensors'), reader.count('keys')
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = reader.text()
            if key in metadata:
                reader.fail(f'has the key {key!r:.60} twice')
            metadata[key] = reader.value(reader.number('I'))
        described = [_describe(reader) for _ in range(tensor_count)]
        alignment = metadata.get('general.alignment', 32)
        if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
            reader.fail(f'has general.alignment={alignment!r:.60}, which is not a power of two from 8 on')
        begin = -(-file.tell() // alignment) * alignment
    return Contents(metadata, _place(path, described, begin, alignment, size))


def _describe(reader: _Reader) -> tuple[str, tuple[int, ...], str, int]:
    """(name, shape, type, offset) of the next tensor."""
    name, rank = reader.text(), reader.number('I')
    if not 1 <= rank <= 4:
        reader.fail(f'has a tensor {name!r:.60} of {rank} axes, not 1 to 4')
    shape = tuple(reader.number('Q') for _ in range(rank))[::-1]
    kind, offset = reader.number('I'), reader.number('Q')
    known = {item.value: item.name for item in QuantType if item.name in TYPES}
    if kind not in known:
        reader.fail(f'has a tensor {name!r:.60} of type {kind}, which is not one of {", ".join(TYPES)}')
    if math.prod(shape) > 2**48 or 0 in shape or shape[-1] % GGML_QUANT_SIZES[QuantType(kind)][0]:
        reader.fail(f'has a tensor {name!r:.60} of shape {shape}, which does not fit blocks of {known[kind]}')
    return name, shape, known[kind], offset


def _place(path: pathlib.Path, described: list, begin: int, alignment: int, size: int) -> dict[str, Packed]:
    tensors: dict[str, Packed] = {}
    for name, shape, kind, offset in described:
        width, block_bytes = GGML_QUANT_SIZES[QuantType[kind]]
        start, stop = begin + offset, begin + offset + math.prod(shape) // width * block_bytes
        if name in tensors:
            raise UserError(f'{path} has the tensor {name!r:.60} twice; fetch it again')
        if offset % alignment or stop > size:
            raise UserError(f'{path}: {name!r:.60} lies at bytes {start} to {stop}, of {size}, aligned to {alignment}; '
                            f'fetch it again')
        tensors[name] = Packed(path, kind, shape, start, stop)
    for (_, before), (name, after) in itertools.pairwise(sorted(tensors.items(), key=lambda item: item[1].start)):
        if after.start < before.stop:
            raise UserError(f'{path}: {name!r:.60} begins at byte {after.start} and overlaps the one before, which '
                            f'ends at {before.stop}; fetch it again')
    return tensors


def config_keys(contents: Contents, where: str) -> dict[str, Any]:
    """What a config.json would say of the model; `config_json.decode` checks it further."""
    metadata = contents.metadata
    if metadata.get('general.architecture') != 'llama':
        raise UserError(f'{where}: general.architecture={metadata.get("general.architecture")!r:.60} is not llama; '
                        f'use the safetensors of that model')
    said = {key.removeprefix('llama.'): _plain(value) for key, value in metadata.items() if key.startswith('llama.')}
    for key, value in said.items():
        if key not in (*_KEYS, *_SAME_AS_HEAD):
            raise UserError(f'{where}: llama.{key}={value!r:.60} is not known to change nothing; use the safetensors '
                            f'of that model')
    config = {'model_type': 'llama', 'hidden_act': 'silu',
              'tie_word_embeddings': 'output.weight' not in contents.tensors,
              **{theirs: said[key] for key, theirs in _KEYS.items() if key in said}}
    if 'vocab_size' not in config and 'token_embd.weight' in contents.tensors:
        config['vocab_size'] = contents.tensors['token_embd.weight'].shape[0]
    heads, width = config.get('num_attention_heads'), config.get('hidden_size')
    if type(heads) is int and type(width) is int and heads > 0:
        head_dim = config.get('head_dim', width // heads)
        for key in _SAME_AS_HEAD:
            if said.get(key, head_dim) != head_dim:
                raise UserError(f'{where}: llama.{key}={said[key]!r:.60} is not a head\'s width, {head_dim}; use the '
                                f'safetensors of that model')
    return config


def _plain(value: Any) -> Any:
    """A float32 as the number that was meant: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value

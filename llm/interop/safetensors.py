"""Safetensors, in one file or in shards: what is in it is checked before a number is read.

In: a folder with model.safetensors, or with model.safetensors.index.json and its shards. Out: `Stored` tensors by name,
of which any box can be read; one file written tensor by tensor.
Left out: which tensors a model needs (`plan.py`), layouts (`layout.py`).

The reader is ours and not the library's: what was checked is what is read (one parse of one header), and pieces are
read with plain reads, because the pages of a mapped file count as memory of the process. The library is the tests'
oracle. Format: 8 bytes little-endian length, that many bytes of JSON, then the numbers, row-major, without a gap.
"""

from collections.abc import Iterator
import dataclasses
import json
import math
import pathlib
import re
import struct
from typing import Any, BinaryIO

import numpy as np

from llm.data import json_file
from llm.errors import UserError

INDEX, SINGLE = 'model.safetensors.index.json', 'model.safetensors'
BLOCK_BYTES = 64 * 2**20  # that are in memory beside what was asked for
# bfloat16 is read as the upper half of a float32's bits.
_SIZES = {'F64': 8, 'I64': 8, 'U64': 8, 'F32': 4, 'I32': 4, 'U32': 4, 'F16': 2, 'BF16': 2, 'I16': 2, 'U16': 2,
          'F8_E4M3': 1, 'F8_E5M2': 1, 'I8': 1, 'U8': 1, 'BOOL': 1}
FLOATS = {'F32': np.dtype('<f4'), 'F16': np.dtype('<f2'), 'BF16': np.dtype('<u2')}
_NAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors')
_PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle')


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of a file."""

    file: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # of its first byte in the file
    stop: int

    def read(self, box: tuple[slice, ...]) -> np.ndarray:
        """The numbers of a box, as float32 (exact for F16 and BF16), read in blocks of rows."""
        lengths = [len(range(*part.indices(size))) for part, size in zip(box, self.shape)]
        out = np.empty(lengths, np.float32)
        dtype, row_shape = FLOATS[self.dtype], self.shape[1:]
        row = math.prod(row_shape)
        first, stop, _ = box[0].indices(self.shape[0]) if box else (0, 1, 1)
        step = max(1, BLOCK_BYTES // max(1, row * dtype.itemsize))
        with self.file.open('rb') as file:
            for begin in range(first, stop, step):
                end = min(begin + step, stop)
                block = np.empty((end - begin) * row, dtype)
                file.seek(self.start + begin * row * dtype.itemsize)
                if file.readinto(block.view(np.uint8)) != block.nbytes:
                    raise UserError(f'{self.file} became shorter while it was read; fetch it again')
                block = block.reshape(end - begin, *row_shape)[(slice(None), *box[1:])]
                out[(slice(begin - first, end - first),) if box else ()] = _float32(block, self.dtype).reshape(
                    out[(slice(begin - first, end - first),) if box else ()].shape)
        return out


def _float32(block: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == 'BF16':
        return (block.astype(np.uint32) << 16).view(np.float32)
    return block.astype(np.float32, copy=False)


def refuse_pickle(path: pathlib.Path) -> None:
    """Such a file is a program, which loading would run."""
    if path.suffix.lower() in _PICKLES:
        raise UserError(f'{path} is a pickle, which runs code when it is loaded; convert it to safetensors where you '
                        f'trust it')


def open_folder(folder: pathlib.Path) -> dict[str, Stored]:
    """Every tensor of a folder, checked; raises UserError, one line, for the first thing that is wrong."""
    if (folder / INDEX).exists():
        if (folder / SINGLE).exists():
            raise UserError(f'{folder} has both {SINGLE} and {INDEX}; take one of them away')
        return _open_shards(folder)
    if not (folder / SINGLE).exists():
        for path in sorted(folder.iterdir()):
            refuse_pickle(path)
        raise UserError(f'{folder} has neither {SINGLE} nor {INDEX}; name a folder with one of them')
    return open_file(folder / SINGLE)


def _open_shards(folder: pathlib.Path) -> dict[str, Stored]:
    index = json_file.read(folder / INDEX)
    where = folder / INDEX
    places = index.get('weight_map')
    if set(index) - {'metadata', 'weight_map'}:
        raise UserError(f'{where}: {sorted(set(index) - {"metadata", "weight_map"})[0]!r:.60} is no key of an index; '
                        f'fetch it again')
    if not isinstance(places, dict) or not places:
        raise UserError(f'{where}: weight_map={places!r:.60} names no tensor; fetch it again')
    for name, place in places.items():
        if not isinstance(place, str) or not _NAME.fullmatch(place):
            raise UserError(f'{where}: {name!r:.60} is in {place!r:.80}, which is not the plain name of a .safetensors '
                            f'file beside it; fetch it again')
    tensors: dict[str, Stored] = {}
    for place in sorted(set(places.values())):
        shard = open_file(folder / place)
        stray = sorted(name for name in shard if places.get(name) != place)
        if stray:
            raise UserError(f'{folder / place}: {stray[0]!r:.60} is in it, but not by the index; fetch both again')
        tensors |= shard
    lost = sorted(places.keys() - tensors.keys())
    if lost:
        raise UserError(f'{folder / places[lost[0]]}: {lost[0]!r:.60} is not in it, and the index says so; fetch both '
                        f'again')
    return tensors


def open_file(path: pathlib.Path) -> dict[str, Stored]:
    """Every tensor of one file: sizes, types and places are checked against each other and against its length."""
    size = json_file.regular(path)
    with path.open('rb') as file:
        head = file.read(8)
        if len(head) < 8:
            raise UserError(f'{path} has {size} bytes, too few for a header; fetch it again')
        length, = struct.unpack('<Q', head)
        if length > json_file.LIMIT_BYTES:
            raise UserError(f'{path} claims a header of {length} bytes, more than {json_file.LIMIT_BYTES}; fetch it '
                            f'again')
        if 8 + length > size:
            raise UserError(f'{path} claims a header of {length} bytes and has {size} in all; fetch it again')
        header = json_file.parse(file.read(length), f'the header of {path}')
    metadata = header.pop('__metadata__', {})
    if not isinstance(metadata, dict) or any(not isinstance(value, str) for value in metadata.values()):
        raise UserError(f'{path}: __metadata__={metadata!r:.60} is not a table of texts; fetch it again')
    tensors = {name: _checked(path, name, entry, 8 + length) for name, entry in header.items()}
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != end:
            what = 'overlaps the one before' if tensor.start < end else 'leaves a gap before it'
            raise UserError(f'{path}: {name!r:.60} begins at byte {tensor.start} and {what}, which ends at {end}; '
                            f'fetch it again')
        end = tensor.stop
    if end != size:
        raise UserError(f'{path} has {size} bytes, its header accounts for {end}; fetch it again')
    return tensors


def _checked(path: pathlib.Path, name: str, entry: Any, offset: int) -> Stored:
    start = f'{path}: {name!r:.60}'
    if not isinstance(entry, dict) or entry.keys() != {'dtype', 'shape', 'data_offsets'}:
        raise UserError(f'{start} is described by {sorted(entry) if isinstance(entry, dict) else entry!r:.60}, not by '
                        f'dtype, shape and data_offsets; fetch it again')
    dtype, shape, places = entry['dtype'], entry['shape'], entry['data_offsets']
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise UserError(f'{start} has dtype={dtype!r:.60}, which is not one of {", ".join(_SIZES)}; fetch it again')
    if not _whole_numbers(shape) or len(shape) > 8:
        raise UserError(f'{start} has shape={shape!r:.60}, which is not up to 8 whole numbers; fetch it again')
    if not _whole_numbers(places) or len(places) != 2:
        raise UserError(f'{start} has data_offsets={places!r:.60}, which are not two whole numbers; fetch it again')
    if places[1] - places[0] != math.prod(shape) * _SIZES[dtype]:
        raise UserError(f'{start} is {dtype}{shape!r:.60}, {math.prod(shape) * _SIZES[dtype]} bytes, and has '
                        f'data_offsets={places}, {places[1] - places[0]}; fetch it again')
    return Stored(path, dtype, tuple(shape), offset + places[0], offset + places[1])


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def write_file(path: pathlib.Path, tensors: dict[str, tuple[tuple[int, ...], str, Iterator[np.ndarray]]]) -> None:
    """Writes name -> (shape, 'F32' or 'BF16', its numbers in row-major pieces); one piece is in memory at a time."""
    header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}  # without it transformers refuses the file
    end = 0
    for name, (shape, dtype, _) in tensors.items():
        begin, end = end, end + math.prod(shape) * _SIZES[dtype]
        header[name] = {'dtype': dtype, 'shape': list(shape), 'data_offsets': [begin, end]}
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # the numbers begin at a multiple of 8
    with path.open('wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for name, (shape, dtype, pieces) in tensors.items():
            written = sum(_write(file, piece, dtype) for piece in pieces)
            assert written == math.prod(shape) * _SIZES[dtype], (name, shape, written)


def _write(file: BinaryIO, piece: np.ndarray, dtype: str) -> int:
    piece = np.ascontiguousarray(piece, np.float32)
    if dtype == 'BF16':  # to the nearest, ties to even
        bits = piece.view(np.uint32)
        piece = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype('<u2')
    return file.write(piece.data.cast('B') if piece.size else b'')

"""HLO text as Python values: a module's computations, their instructions, the arrays of these.

In: the text of an optimised module, as `jax.stages.Compiled.as_text` gives it. Out: `Module`.
Left out: what it costs (`hlo.py`).
"""

import dataclasses
import math
import re

_BYTES = {'pred': 1, 's4': .5, 'u4': .5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4,
          'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8}
_SHAPE = re.compile(r'(\w+)\[([\d,]*)\](?:\{([^}]*)\})?')
NAME = re.compile(r'%([\w.-]+)')


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's type."""

    dtype: str
    dims: tuple[int, ...]
    space: int  # 0: HBM; 1: VMEM; others are smaller, or the host's (5)

    @property
    def bytes(self) -> float:
        return math.prod(self.dims) * _BYTES.get(self.dtype, 0 if self.dtype in ('token', 'opaque') else 1)


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    said: str  # whatever follows the operands; of a constant its value first, of a parameter its number
    root: bool

    def called(self, key: str) -> str | None:
        found = re.search(key + r'=%([\w.-]+)', self.said)
        return found and found[1]


Computation = dict[str, Instruction]  # by name, in order


@dataclasses.dataclass(frozen=True)
class Module:
    """A parsed module."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Computations by name."""
    computations, entry, current = {}, '', {}
    for line in text.splitlines():
        if line.endswith('{') and (line.startswith('%') or line.startswith('ENTRY')):
            current = computations.setdefault(NAME.search(line)[1], {})
            if line.startswith('ENTRY'):
                entry = NAME.search(line)[1]
        elif line.startswith('  ') and ' = ' in line:
            instruction = _instruction(line.strip())
            current[instruction.name] = instruction
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    head, rest = line.split(' = ', 1)
    shape = _closed(rest) if rest.startswith('(') else rest.index(' ')
    opened = rest.index('(', shape)
    closed = opened + _closed(rest[opened:])
    arrays = tuple(Array(dtype, tuple(int(size) for size in dims.split(',') if size), _space(layout))
                   for dtype, dims, layout in _SHAPE.findall(rest[:shape]))
    opcode, inside = rest[shape:opened].strip(), rest[opened + 1:closed - 1]
    said = inside + rest[closed:] if opcode in ('constant', 'parameter') else rest[closed:]
    return Instruction(NAME.search(head)[1], opcode, arrays, tuple(NAME.findall(inside)), said,
                       head.startswith('ROOT'))


def _closed(text: str) -> int:
    """Behind the bracket that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == '(') - (letter == ')')
        if not depth:
            return place + 1
    raise ValueError(f'no bracket closes {text[:80]!r}')


def _space(layout: str) -> int:
    found = re.search(r'S\((\d+)\)', layout)
    return int(found[1]) if found else 0


def group_size(said: str) -> int:
    """Devices in each group of a collective; 0: not said."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", said)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(part or sizes[name]) for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2]))
    iota = re.search(r'replica_groups=\[(\d+),(\d+)\]<=', said)
    if iota:
        return int(iota[2])
    listed = re.search(r'replica_groups=\{\{([\d,]*)\}', said)
    return len(listed[1].split(',')) if listed else 0

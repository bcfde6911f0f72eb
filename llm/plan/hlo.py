"""What a compiled program computes and moves, read from its HLO text: each operation times the trips of its loops.

In: the text of an optimised module, which is that of one device. Out: `Counts`, of the program and of its parts.
Left out: time. The compiler's own cost analysis counts a loop's body once, and kernels as nothing.

Arithmetic is that of matmuls, which the TPU calls convolutions, and of attention kernels. Bytes on the wire are those
that leave a device: of n in a group, (n - 1) / n of what is gathered or scattered, twice that of what is reduced for
all. A collective that was taken apart to overlap with arithmetic stands in several fusions under one channel, and
counts once. Bytes of memory are an estimate: what operations at the top of a loop read and write outside of VMEM.
"""

import collections
import dataclasses
import functools
import math
import re

_BYTES = {'pred': 1, 's4': .5, 'u4': .5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4,
          'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8}
_COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
# What moves nothing by itself; of pairs of start and done, the start moves.
_FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call', 'after-all',
         'partition-id', 'iota', 'copy-done', 'slice-done', 'async-done', 'async-update', 'all-gather-done',
         'all-reduce-done', 'collective-permute-done', 'opt-barrier'}
_SLICES = ('dynamic-slice', 'slice', 'gather')
_SHAPE = re.compile(r'(\w+)\[([\d,]*)\](?:\{([^}]*)\})?')
_NAME = re.compile(r'%([\w.-]+)')


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


@dataclasses.dataclass
class Counts:
    """Of one device."""

    flops: float = 0.0
    kernel_flops: float = 0.0  # of these, in attention kernels
    hbm_bytes: float = 0.0
    wire_bytes: dict[str, float] = dataclasses.field(default_factory=dict)
    dcn_bytes: float = 0.0  # of these, between slices


    def __add__(self, other: 'Counts') -> 'Counts':
        kinds = {kind: self.wire_bytes.get(kind, 0.0) + other.wire_bytes.get(kind, 0.0)
                 for kind in (*self.wire_bytes, *other.wire_bytes)}
        return Counts(self.flops + other.flops, self.kernel_flops + other.kernel_flops,
                      self.hbm_bytes + other.hbm_bytes, kinds, self.dcn_bytes + other.dcn_bytes)


@dataclasses.dataclass(frozen=True)
class Module:
    """A parsed module."""

    computations: dict[str, Computation]
    entry: str


def count(text: str, *, most_trips: int = 0, devices_per_slice: int = 0) -> tuple[Counts, Counts]:
    """Outside of loops that data ends, and within them (decoding): those make `most_trips` trips.

    Args:
      devices_per_slice: devices of one slice of several; 0: all are in one.
    """
    counter = _Counter(parse(text), most_trips, devices_per_slice)
    counter.visit(counter.module.entry, 1, False, True)
    return counter.totals()


def parse(text: str) -> Module:
    """Computations by name."""
    computations, entry, current = {}, '', {}
    for line in text.splitlines():
        if line.endswith('{') and (line.startswith('%') or line.startswith('ENTRY')):
            current = computations.setdefault(_NAME.search(line)[1], {})
            if line.startswith('ENTRY'):
                entry = _NAME.search(line)[1]
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
    return Instruction(_NAME.search(head)[1], opcode, arrays, tuple(_NAME.findall(inside)), said,
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


class _Counter:
    """Walks a module from its entry."""

    def __init__(self, module: Module, most_trips: int, devices_per_slice: int):
        self.module, self.most_trips, self.devices_per_slice = module, most_trips, devices_per_slice
        self.open, self.closed = Counts(), Counts()  # in loops that data ends, and outside of them
        self.channels: dict[str, tuple[float, bool, str, float, bool]] = {}

    def totals(self) -> tuple[Counts, Counts]:
        for times, is_open, kind, size, between in self.channels.values():
            counts = self.open if is_open else self.closed
            counts.wire_bytes[kind] = counts.wire_bytes.get(kind, 0.0) + times * size
            counts.dcn_bytes += times * size * between
        return self.closed, self.open

    def visit(self, name: str, times: float, is_open: bool, top: bool) -> None:
        """Counts a computation; at the top, and not within a fusion, also what it reads and writes."""
        computation, counts = self.module.computations[name], self.open if is_open else self.closed
        for one in computation.values():
            if one.opcode == 'while':
                trips = self.trips(one.called('condition'))
                known = trips is not None
                inside = times * (trips if known else self.most_trips)
                self.visit(one.called('body'), inside, is_open or not known, top)
                self.visit(one.called('condition'), inside, is_open or not known, False)
            elif one.opcode == 'conditional':
                for branch in _branches(one):  # at most one of them runs: an upper bound
                    self.visit(branch, times, is_open, top)
            elif one.opcode in ('fusion', 'async-start'):
                self.visit(one.called('calls'), times, is_open, False)
            elif one.opcode == 'call':
                self.visit(one.called('to_apply'), times, is_open, top)
            kind = one.opcode.removesuffix('-start')
            if kind in _COLLECTIVES:
                self.collective(kind, one, computation, times, is_open)
            counts.flops += times * _matmul_flops(one, computation)
            kernel = _kernel_flops(one, computation)
            counts.kernel_flops += times * kernel
            counts.flops += times * kernel
            if top and one.opcode not in _FREE:
                counts.hbm_bytes += times * self.moved(one, computation)

    def trips(self, condition: str) -> int | None:
        """Of a loop that counts from 0; None where data ends it."""
        computation = self.module.computations[condition]
        root = next(one for one in computation.values() if one.root)
        if root.opcode == 'fusion':
            computation_inside = self.module.computations[root.called('calls')]
            inner = next(one for one in computation_inside.values() if one.root)
            if inner.opcode != 'compare':
                return None
        elif root.opcode != 'compare':
            return None
        bounds = [re.match(r'\d+', one.said) for one in computation.values()
                  if one.opcode == 'constant' and one.arrays[0].dtype == 's32']
        return max((int(bound[0]) for bound in bounds if bound), default=None)

    def collective(self, kind, one, computation, times, is_open) -> None:
        arrays = [array.bytes for array in one.arrays]
        inputs = sum(array.bytes for name in one.operands for array in computation[name].arrays)
        members = _group(one.said)
        share = (members - 1) / members if members else 1.0
        # What a start gives back holds its operands too, and scratch; a gather's output is the largest part.
        output = sum(arrays) if not one.opcode.endswith('-start') else max(arrays)
        size = {'all-gather': output, 'reduce-scatter': inputs, 'all-reduce': 2 * inputs, 'all-to-all': inputs,
                'collective-permute': inputs}[kind] * (1.0 if kind == 'collective-permute' else share)
        channel = re.search(r'channel_id=(\d+)', one.said)
        key = channel[1] if channel else f'{id(computation)} {one.name}'
        if key not in self.channels or self.channels[key][0] < times:
            self.channels[key] = times, is_open, kind, size, self.between(one.said)

    def between(self, said: str) -> bool:
        """Whether a collective's groups reach over slices, whose devices are numbered one slice after the other."""
        return bool(self.devices_per_slice) and any(
            len({device // self.devices_per_slice for device in group}) > 1 for group in groups(said))

    def moved(self, one: Instruction, computation: Computation) -> float:
        """Bytes that an operation at the top reads from HBM and writes to it."""
        if one.opcode == 'fusion':
            return _moved_by_fusion(one, computation, self.module.computations[one.called('calls')])
        if one.opcode in _SLICES:
            return 2 * _hbm(one)
        if one.opcode == 'dynamic-update-slice':
            return 2 * _hbm(computation[one.operands[1]])
        if one.opcode.endswith('-start') and one.opcode != 'copy-start' or 'AllocateBuffer' in one.said:
            return 0.0
        if one.opcode == 'copy-start':
            return _hbm(computation[one.operands[0]]) + sum(
                array.bytes for array in one.arrays[:1] if array.space == 0)
        return _hbm(one) + sum(_hbm(computation[name]) for name in one.operands)


def _hbm(one: Instruction) -> float:
    return sum(array.bytes for array in one.arrays if array.space == 0)


def _moved_by_fusion(one: Instruction, computation: Computation, inside: Computation) -> float:
    total, users = 0.0, collections.defaultdict(list)
    for inner in inside.values():
        for name in inner.operands:
            users[name].append(inner)
    for inner in inside.values():
        if inner.opcode == 'parameter':
            number = int(re.match(r'\d+', inner.said)[0])
            if _hbm(computation[one.operands[number]]):
                total += _read(inner, users)
    root = next(inner for inner in inside.values() if inner.root)
    parts = [inside[name] for name in root.operands] if root.opcode == 'tuple' else [root]
    for array, part in zip(one.arrays, parts):
        if array.space:
            continue
        while part.opcode == 'bitcast':
            part = inside[part.operands[0]]
        if part.opcode == 'dynamic-update-slice':
            total += sum(array.bytes for array in inside[part.operands[1]].arrays)
        elif part.opcode != 'parameter':  # handed through
            total += array.bytes
    return total


def _read(parameter: Instruction, users: dict[str, list[Instruction]]) -> float:
    """Of a fusion's operand: what is sliced out of it, nothing where it is updated in place, or else the whole."""
    total = 0.0
    for user in users[parameter.name]:
        if user.opcode == 'bitcast':
            total += _read(user, users)
        elif user.opcode in _SLICES and user.operands[0] == parameter.name:
            total += sum(array.bytes for array in user.arrays)
        elif not (user.opcode == 'tuple' or user.opcode == 'dynamic-update-slice' and
                  user.operands[0] == parameter.name):
            return sum(array.bytes for array in parameter.arrays)
    return min(total, sum(array.bytes for array in parameter.arrays))


def _branches(one: Instruction) -> list[str]:
    listed = re.search(r'branch_computations=\{([^}]*)\}', one.said)
    if listed:
        return _NAME.findall(listed[1])
    return [one.called('true_computation'), one.called('false_computation')]


def _matmul_flops(one: Instruction, computation: Computation) -> float:
    if one.opcode == 'dot':
        left = computation[one.operands[0]].arrays[0]
        contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', one.said)[1]
        return 2.0 * math.prod(one.arrays[0].dims) * math.prod(
            left.dims[int(axis)] for axis in contracted.split(',') if axis)
    if one.opcode == 'convolution':
        left, right = (computation[name].arrays[0].dims for name in one.operands[:2])
        return _convolution_flops(left, right, one.arrays[0].dims, one.said)
    return 0.0


def _convolution_flops(left, right, out, said: str) -> float:
    """Two for each product that is not with padding or with the holes of a dilation: a batched matmul is written as a
    convolution over the batch, of whose products all but one in a window meet holes."""
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', said)
    left_at, right_at, out_at = labels.groups()
    window = dict(re.findall(r'(\w+)=([\dx_-]+)', (re.search(r'window=\{([^}]*)\}', said) or [None, ''])[1]))
    spatial = sorted(letter for letter in out_at if letter.isdigit())

    def each(key: str, default: str) -> list[str]:
        return window[key].split('x') if key in window else [default] * len(spatial)
    products = 1
    for number, letter in enumerate(spatial):
        low = int(each('pad', '0_0')[number].split('_')[0])
        stride, hole, spread = (int(each(key, '1')[number]) for key in ('stride', 'lhs_dilate', 'rhs_dilate'))
        products *= _meeting(left[left_at.index(letter)], right[right_at.index(letter)], out[out_at.index(letter)],
                             low, stride, hole, spread)
    features = re.search(r'feature_group_count=(\d+)', said)
    batches = re.search(r'batch_group_count=(\d+)', said)
    return (2.0 * products * out[out_at.index('b')] * out[out_at.index('f')] * right[right_at.index('i')] /
            (int(batches[1]) if batches else 1) * (1 if features else 1))


@functools.cache
def _meeting(size: int, kernel: int, out: int, low: int, stride: int, hole: int, spread: int) -> int:
    """Pairs of an output's place and a kernel's place that meet a value along one axis."""
    total = 0
    for at in range(kernel):
        for place in range(out):
            where = place * stride - low + at * spread
            total += where % hole == 0 and 0 <= where // hole < size
    return total


def _kernel_flops(one: Instruction, computation: Computation) -> float:
    return 0.0


def _group(said: str) -> int:
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


def groups(said: str) -> list[list[int]]:
    """The devices of each group of a collective."""
    return []

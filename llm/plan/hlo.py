"""What a compiled program computes and moves, read from its HLO text: each operation times the trips of its loops.

In: the text of an optimised module, which is that of one device. Out: `Counts`, of the program and of its parts.
Left out: time. The compiler's own cost analysis counts a loop's body once, and kernels as nothing.

Arithmetic is that of matmuls, which the TPU calls convolutions, and of attention kernels. Bytes on the wire are those
that leave a device: of n in a group, (n - 1) / n of what is gathered or scattered, twice that of what is reduced for
all. A collective that was taken apart to overlap with arithmetic stands in several fusions under one channel, as the
same operation of one shape, and counts once. What leaves a slice goes through the host: `send`s to its runtime, one for
a device's part of an array. Bytes of memory are an estimate: what operations at the top of a loop read and write
outside of VMEM.
"""

import collections
import dataclasses
import functools
import math
import re
from typing import Any

from llm.plan.hlo_text import Computation, group_size, Instruction, Module, NAME, parse

_COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
# What moves nothing by itself; of pairs of start and done, the start moves.
_FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call', 'after-all',
         'partition-id', 'iota', 'copy-done', 'slice-done', 'async-done', 'async-update', 'all-gather-done',
         'all-reduce-done', 'collective-permute-done', 'opt-barrier', 'send', 'send-done', 'recv', 'recv-done'}
_MATMULS = {'fwd': 2, 'dq': 3, 'dkv': 4}  # of an attention kernel, by its pass; backward ones make the scores again
_SLICES = ('dynamic-slice', 'slice', 'gather')


@dataclasses.dataclass
class Counts:
    """Of one device."""

    flops: float = 0.0
    kernel_flops: float = 0.0  # of these, in attention kernels
    hbm_bytes: float = 0.0
    wire_bytes: dict[str, float] = dataclasses.field(default_factory=dict)
    dcn_bytes: float = 0.0  # between slices; not among those of the wires

    def __add__(self, other: 'Counts') -> 'Counts':
        kinds = {kind: self.wire_bytes.get(kind, 0.0) + other.wire_bytes.get(kind, 0.0)
                 for kind in (*self.wire_bytes, *other.wire_bytes)}
        return Counts(self.flops + other.flops, self.kernel_flops + other.kernel_flops,
                      self.hbm_bytes + other.hbm_bytes, kinds, self.dcn_bytes + other.dcn_bytes)


def count(text: str, *, most_trips: int = 0, slices: int = 1) -> tuple[Counts, Counts]:
    """Outside of loops that data ends, and within them (decoding): those make `most_trips` trips.

    Args:
      slices: that only the datacenter's network joins.
    """
    counter = _Counter(parse(text), most_trips, slices)
    counter.visit(counter.module.entry, 1, False, True)
    return counter.totals()


class _Counter:
    """Walks a module from its entry."""

    def __init__(self, module: Module, most_trips: int, slices: int):
        self.module, self.most_trips, self.slices = module, most_trips, slices
        self.open, self.closed = Counts(), Counts()  # in loops that data ends, and outside of them
        self.channels: dict[Any, tuple[float, bool, str, float]] = {}  # trips, in such a loop, kind, bytes

    def totals(self) -> tuple[Counts, Counts]:
        for times, is_open, kind, size in self.channels.values():
            counts = self.open if is_open else self.closed
            counts.wire_bytes[kind] = counts.wire_bytes.get(kind, 0.0) + times * size
        return self.closed, self.open

    def visit(self, name: str, times: float, is_open: bool, top: bool) -> None:
        """Counts a computation; at the top, and not within a fusion, also what it reads and writes."""
        computation, counts = self.module.computations[name], self.open if is_open else self.closed
        for one in computation.values():
            if one.opcode == 'while':
                trips = self.trips(one)
                known = trips is not None
                # Of unknown length: once, not never; within another such loop (a slot is filled again) once a trip.
                inside = times * (trips if known else 1 if is_open else max(self.most_trips, 1))
                self.visit(one.called('body'), inside, is_open or not known, top)
                self.visit(one.called('condition'), inside, is_open or not known, False)
            elif one.opcode == 'conditional':
                # One of them runs (a prompt is read in one of several widths): that with the most work bounds it.
                self.visit(max(_branches(one), key=self.alone), times, is_open, top)
            elif one.opcode in ('fusion', 'async-start'):
                self.visit(one.called('calls'), times, is_open, False)
            elif one.opcode == 'call':
                self.visit(one.called('to_apply'), times, is_open, top)
            kind = one.opcode.removesuffix('-start')
            if kind == 'all-reduce' and 'all-reduce-scatter' in name:
                kind = 'reduce-scatter'  # as the TPU has it: a sum of which each device keeps a slice
            if kind in _COLLECTIVES:
                self.collective(kind, one, computation, times, is_open)
            if one.opcode == 'send' and 'megascale' in one.said:
                each = 2 * (self.slices - 1) / self.slices if 'ALL_REDUCE' in one.said else 1.0
                counts.dcn_bytes += times * each * one.arrays[0].bytes
            counts.flops += times * _matmul_flops(one, computation)
            kernel = _kernel_flops(one, computation)
            counts.kernel_flops += times * kernel
            counts.flops += times * kernel
            if top and one.opcode not in _FREE:
                counts.hbm_bytes += times * self.moved(one, computation)

    def alone(self, name: str) -> tuple[float, float]:
        """Arithmetic and bytes of a computation that runs once."""
        counter = _Counter(self.module, self.most_trips, self.slices)
        counter.visit(name, 1, False, True)
        counts = counter.closed + counter.open
        return counts.flops, counts.hbm_bytes

    def trips(self, loop: Instruction) -> int | None:
        """Of a loop that counts from 0; None where data ends it."""
        if said := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.said):
            return int(said[1])
        computation = self.module.computations[loop.called('condition')]
        root = next(one for one in computation.values() if one.root)
        if root.opcode == 'fusion':
            inside = self.module.computations[root.called('calls')]
            computation, root = {**computation, **inside}, next(one for one in inside.values() if one.root)
        if root.opcode != 'compare':
            return None
        bounds = [re.match(r'\d+', one.said) for one in computation.values()
                  if one.opcode == 'constant' and one.arrays[0].dtype == 's32']
        return max((int(bound[0]) for bound in bounds if bound), default=None)

    def collective(self, kind, one, computation, times, is_open) -> None:
        arrays = [array.bytes for array in one.arrays]
        inputs = sum(array.bytes for name in one.operands for array in computation[name].arrays)
        members = group_size(one.said)
        share = (members - 1) / members if members else 1.0
        # What a start gives back holds its operands too, and scratch; a gather's output is the largest part.
        output = sum(arrays) if not one.opcode.endswith('-start') else max(arrays)
        size = {'all-gather': output, 'reduce-scatter': inputs, 'all-reduce': 2 * inputs, 'all-to-all': inputs,
                'collective-permute': inputs}[kind] * (1.0 if kind == 'collective-permute' else share)
        channel = re.search(r'channel_id=(\d+)', one.said)
        of = re.search(r'op_name="([^"]*)"', one.said)  # those of a shard_map share one channel
        key = ((kind, channel[1], of and of[1], tuple(array.dims for array in one.arrays)) if channel else
               f'{id(computation)} {one.name}')
        if key not in self.channels or self.channels[key][0] < times:
            self.channels[key] = times, is_open, kind, size

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
        return NAME.findall(listed[1])
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
    batches = re.search(r'batch_group_count=(\d+)', said)
    return (2.0 * products * out[out_at.index('b')] * out[out_at.index('f')] * right[right_at.index('i')] /
            (int(batches[1]) if batches else 1))


@functools.cache
def _meeting(size: int, kernel: int, out: int, low: int, stride: int, hole: int, spread: int) -> int:
    """Pairs of an output's place and a kernel's place that meet a value along one axis: for each of the kernel's, the
    places p with p * stride + shift a multiple of `hole` between 0 and the last value. Batches make long axes."""
    common = math.gcd(stride, hole)
    period, total = hole // common, 0
    for at in range(kernel):
        shift = at * spread - low
        if shift % common:
            continue
        first = -shift // common * pow(stride // common, -1, period) % period if period > 1 else 0
        least, most = max(0, -(shift // stride)), min(out - 1, ((size - 1) * hole - shift) // stride)
        total += max(0, (most - first) // period - (least - 1 - first) // period)
    return total


def _kernel_flops(one: Instruction, computation: Computation) -> float:
    """Of an attention kernel (Pallas' splash): its name says which pass it is, its first float operands are queries
    [..., N, T, H] and keys [..., K, S, H]. Half of the scores, as if causal and
    without a window."""
    if 'tpu_custom_call' not in one.said or not (passed := re.search(r'splash\w*?_(fwd|dq|dkv)', one.name)):
        return 0.0
    arrays = [array for name in one.operands for array in computation[name].arrays]
    queries, keys = [array.dims for array in arrays if array.dtype in ('bf16', 'f32') and len(array.dims) > 2][:2]
    scores = math.prod(queries[:-1]) * (keys[-2] + 1) / 2
    return _MATMULS[passed[1]] * 2.0 * scores * queries[-1]

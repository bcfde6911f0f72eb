"""How one tensor of a file becomes one leaf of ours, and back: a pattern of named axes.

In: numpy arrays, patterns such as '(N H) D -> D N H': the file's axes, row by row, then ours. A group in brackets is
one axis that is made of several; a digit is an axis of that size (1: only in the file); '...' is "as it is".
Out: the same numbers in the other order; which region of the file's tensor holds a region of our leaf.
Left out: names of tensors (`families.py`), files (`safetensors.py`, `gguf.py`).

`of` beside a pattern: the axis `part` of a fused tensor has `of` entries, and this leaf is one of them (GPT-2's query,
key and value are one matrix).
"""

import functools
import math
import re
from typing import NamedTuple

import numpy as np

AS_IS = '...'
Index = tuple[slice, ...]


class _Pattern(NamedTuple):
    theirs: tuple[tuple[str, ...], ...]  # a group of names for each axis of the file's tensor
    ours: tuple[tuple[str, ...], ...]


@functools.lru_cache
def _parse(pattern: str, rank: int) -> _Pattern:
    if pattern == AS_IS:
        same = tuple((f'axis{axis}',) for axis in range(rank))
        return _Pattern(same, same)
    sides = [tuple(tuple(group.strip('()').split()) for group in re.findall(r'\([^)]*\)|\S+', side))
             for side in pattern.split('->')]
    flat = [sorted(name for group in side for name in group if name not in ('part', '1')) for side in sides]
    assert flat[0] == flat[1] and len(sides[1]) == rank, f'{pattern} does not fit a leaf of rank {rank}'
    return _Pattern(*sides)


def _sizes(pattern: _Pattern, shape: tuple[int, ...], of: int) -> dict[str, int]:
    """The size of every name, from the shape of our leaf."""
    sizes = {'part': of}
    for group, size in zip(pattern.ours, shape):
        known = {name: int(name) for name in group if name.isdecimal()}
        for name in (name for name in group if name not in known):
            sizes[name] = size // math.prod(known.values())
        sizes |= known
        assert math.prod(sizes[name] for name in group) == size, f'{group} is not {size}'
    return sizes | {name: int(name) for group in pattern.theirs for name in group if name.isdecimal()}


def their_shape(pattern: str, shape: tuple[int, ...], of: int = 1) -> tuple[int, ...]:
    """The shape of the file's tensor for a leaf of ours."""
    parsed = _parse(pattern, len(shape))
    sizes = _sizes(parsed, shape, of)
    return tuple(math.prod(sizes[name] for name in group) for group in parsed.theirs)


def slow_axis(pattern: str, rank: int) -> int:
    """Our axis that the file's first axis runs along: pieces cut there are read from few places."""
    parsed = _parse(pattern, rank)
    first = next(name for group in parsed.theirs for name in group if name not in ('part', '1'))
    return next(axis for axis, group in enumerate(parsed.ours) if first in group)


def region(pattern: str, shape: tuple[int, ...], index: Index, part: int = 0, of: int = 1) -> Index:
    """The smallest box of the file's tensor that holds `leaf[index]`, of a leaf of this shape.

    The box is exact, but where an axis inside a group is cut and the one around it is not: there it is whole.
    """
    parsed = _parse(pattern, len(shape))
    sizes = _sizes(parsed, shape, of)
    wanted = {'part': (part, part + 1)}
    for group, cut, size in zip(parsed.ours, index, shape):
        start, stop, step = cut.indices(size)
        assert step == 1, cut
        whole = {name: (0, sizes[name]) for name in group}
        wanted |= {group[0]: (start, stop)} if len(group) == 1 else whole
        assert len(group) == 1 or (start, stop) == (0, size), f'{pattern}: the axis {group} cannot be cut'
    box = []
    for group in parsed.theirs:
        start, stop = 0, 1
        for name in group:
            low, high = wanted.get(name, (0, sizes[name]))
            if stop - start > 1:  # several of what is around: all of what is inside
                low, high = 0, sizes[name]
            start, stop = start * sizes[name] + low, (stop - 1) * sizes[name] + high
        box.append(slice(start, stop))
    return tuple(box)


def to_ours(box: np.ndarray, pattern: str, shape: tuple[int, ...], index: Index) -> np.ndarray:
    """`leaf[index]` of a leaf of this shape, from the numbers of its `region`."""
    parsed = _parse(pattern, len(shape))
    sizes = _sizes(parsed, shape, 1)
    cut = {group[0]: range(*part.indices(size)) for group, part, size in zip(parsed.ours, index, shape)
           if len(group) == 1}
    lengths, kept = {}, {}
    for group, length in zip(parsed.theirs, box.shape):
        several = False
        for name in group:  # what is whole here and cut in our leaf is cut below
            inside = cut.get(name, range(sizes[name]))
            lengths[name] = sizes[name] if several else len(inside)
            kept[name] = slice(inside.start, inside.stop) if several else slice(None)
            several = several or lengths[name] > 1
        assert math.prod(lengths[name] for name in group) == length, (pattern, shape, box.shape)
    ours = [name for group in parsed.ours for name in group]
    theirs = [name for group in parsed.theirs for name in group]
    view = box.reshape([lengths[name] for name in theirs])
    view = view[tuple(kept[name] if name in ours else 0 for name in theirs)]
    left = [name for name in theirs if name in ours]
    view = view.transpose([left.index(name) for name in ours])
    return view.reshape([len(range(*part.indices(size))) for part, size in zip(index, shape)])


def to_theirs(leaf: np.ndarray, pattern: str) -> np.ndarray:
    """The file's tensor, or of a fused one the part that is this leaf, from the whole leaf."""
    parsed = _parse(pattern, leaf.ndim)
    sizes = _sizes(parsed, leaf.shape, 1)
    ours = [name for group in parsed.ours for name in group]
    theirs = [name for group in parsed.theirs for name in group if name in ours]
    view = leaf.reshape([sizes[name] for name in ours]).transpose([ours.index(name) for name in theirs])
    return view.reshape([math.prod(sizes[name] for name in group) for group in parsed.theirs])

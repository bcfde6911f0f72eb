"""Layouts: every pattern that a family uses is undone by its inverse, whole or piece by piece."""

import math

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from llm.interop import layout
from llm.interop.decoders import GGUF_LLAMA
from llm.interop.families import FAMILIES

# Every pattern in use, with the rank of our leaf; each axis of our leaf is drawn, H even.
PATTERNS = sorted({(tensor.layout, tensor.of) for family in (*FAMILIES.values(), GGUF_LLAMA)
                   for tensor in (*family.tensors, *(row for rows in family.head_tensors.values() for row in rows))})


def leaf_of(data, pattern: str) -> np.ndarray:
    rank = data.draw(st.integers(1, 3)) if pattern == layout.AS_IS else len(
        layout._parse(pattern, _rank(pattern)).ours)
    shape = [2 * data.draw(st.integers(1, 3)) for _ in range(rank)]
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


def _rank(pattern: str) -> int:
    outside = ''.join(part.split('(')[0] + ' G ' * ('(' in part) for part in pattern.split('->')[1].split(')'))
    return len(outside.split())


@pytest.mark.parametrize('pattern, of', PATTERNS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_pieces_of_the_file_make_our_leaf(pattern, of, data):
    leaf = leaf_of(data, pattern)
    part = data.draw(st.integers(0, of - 1))
    theirs = np.full(layout.their_shape(pattern, leaf.shape, of), -1.0, np.float32)
    whole = tuple(slice(0, size) for size in leaf.shape)
    box = layout.region(pattern, leaf.shape, whole, part, of)
    theirs[box] = layout.to_theirs(leaf, pattern).reshape(theirs[box].shape)
    assert (layout.to_ours(theirs[box], pattern, leaf.shape, whole) == leaf).all()
    cut = tuple(slice(*sorted(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True))))
                if len(group) == 1 else slice(0, size)
                for size, group in zip(leaf.shape, layout._parse(pattern, leaf.ndim).ours))
    box = layout.region(pattern, leaf.shape, cut, part, of)
    assert (layout.to_ours(theirs[box], pattern, leaf.shape, cut) == leaf[cut]).all()


@pytest.mark.parametrize('of', [2, 3])
def test_parts_of_a_fused_tensor_fill_it_without_overlap(of):
    leaf = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    fused = np.zeros(layout.their_shape('D (part N H) -> D N H', leaf.shape, of), np.float32)
    for part in range(of):
        box = layout.region('D (part N H) -> D N H', leaf.shape, (slice(None),) * 3, part, of)
        assert not fused[box].any()
        fused[box] = layout.to_theirs(leaf + 100 * part + 1, 'D (part N H) -> D N H')
    assert (fused == np.concatenate([(leaf + 100 * part + 1).reshape(2, 12) for part in range(of)], 1)).all()


def test_a_linear_layer_of_heads_is_what_its_equation_says():
    """y = x W^T of a file is einsum('D,DNH->NH') of ours."""
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(6, 5)), rng.normal(size=5)
    ours = layout.to_ours(w, '(N H) D -> D N H', (5, 3, 2), (slice(None),) * 3)
    assert np.allclose((w @ x).reshape(3, 2), np.einsum('d,dnh->nh', x, ours))


def test_gguf_turns_neighbours_where_we_turn_halves():
    """llama.cpp rotates rows (0, 1), (2, 3) ... of a head; we rotate (0, H/2), (1, H/2 + 1) ..."""
    rows = np.arange(8, dtype=np.float32)[:, None]  # one head of 8, in the file's order
    ours = layout.to_ours(rows, '(N h 2) D -> D N (2 h)', (1, 1, 8), (slice(None),) * 3)
    assert ours.ravel().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_pieces_are_cut_where_the_file_is_slow():
    assert layout.slow_axis('(N H) D -> D N H', 3) == 1
    assert layout.slow_axis('D (N H) -> N H D', 3) == 2
    assert layout.slow_axis('D (part N H) -> D N H', 3) == 0
    assert layout.slow_axis(layout.AS_IS, 2) == 0

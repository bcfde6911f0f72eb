"""Trajectories laid side by side: nothing lost, little padding, few shapes, and what models read of them."""

import jax
import numpy as np
import pytest

from llm.envs.preference import whole_rows
from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from llm.rollout.packing import pack
from llm.run import initializer
from tests import tiny

LENGTH, MOST = 48, 32  # tokens of a trajectory, and of these chosen ones


def drawn(count: int, seed: int, longest: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of trajectories, and how many of their last tokens were chosen."""
    draw = np.random.default_rng(seed)
    length_B = draw.integers(2, longest + 1, count)
    return length_B, np.minimum(draw.integers(1, MOST + 1, count), length_B - 1)


def packed(which_M, length_B, chosen_B, **limits):
    return pack(np.asarray(which_M)[None], length_B, chosen_B, length=LENGTH, most_chosen=MOST,
                **{'price': lambda width: 1.0 + width / 3000} | limits)


@pytest.mark.parametrize('longest', [6, 20, LENGTH])
@pytest.mark.parametrize('count, ways, unit', [(32, 1, 1), (32, 8, 1), (32, 4, 8), (6, 1, 16), (5, 1, 1)])
def test_each_token_is_there_once_and_comes_back(count, ways, unit, longest):
    length_B, chosen_B = drawn(64, seed=count, longest=longest)
    which_M = np.random.default_rng(1).permutation(64)[:count]
    packing = packed(which_M, length_B, chosen_B, ways=ways, unit=unit)
    inside_BT = np.arange(LENGTH)[None] < length_B[:, None]
    value_BT = np.where(inside_BT, np.arange(64 * LENGTH).reshape(64, LENGTH) + 1.0, 0.0).astype(np.float32)
    mask_BT = (inside_BT & (np.arange(LENGTH)[None] >= (length_B - chosen_B)[:, None])).astype(np.float32)
    batch = jax.tree.map(np.asarray, packing.batch({'value_BT': value_BT, 'mask_BT': mask_BT}))
    rows, width = batch['value_BT'].shape
    assert rows % ways == 0 and width % unit == 0

    back_BT = np.asarray(packing.back(batch['value_BT'], 64))
    np.testing.assert_array_equal(back_BT[which_M], value_BT[which_M])
    assert not np.delete(back_BT, which_M, axis=0).any()
    laid = batch['value_BT'] > 0
    place = batch['value_BT'][laid].astype(int) - 1
    assert sorted(place // LENGTH) == sorted(np.repeat(which_M, length_B[which_M]))
    np.testing.assert_array_equal(batch['segments_BT'][laid], place // LENGTH)
    np.testing.assert_array_equal(batch['positions_BT'][laid], place % LENGTH)
    assert not set(batch['segments_BT'][~laid]) & set(which_M)  # padding is nobody's
    at_BS = np.take_along_axis(batch['mask_BT'], batch['place_BS'], 1)
    assert at_BS.sum() == batch['mask_BT'].sum() == chosen_B[which_M].sum()  # no chosen token has no logits
    assert all(len(set(place_S)) == len(place_S) for place_S in batch['place_BS'])


def test_little_is_padding_and_few_widths_are_compiled():
    shares, shapes = [], set()
    for seed in range(200):
        length_B, chosen_B = drawn(16, seed)
        length_B = np.maximum(length_B, 20)
        packing = packed(np.arange(16), length_B, np.minimum(chosen_B, length_B - 1))
        shares.append(length_B.sum() / packing.source_RW.size)
        shapes.add((packing.source_RW.shape, packing.most_chosen))
    assert np.mean(shares) > 0.85 and len(shapes) <= 8
    assert np.mean(length_B) < 0.75 * LENGTH


def test_rows_that_are_full_stand_alone():
    full = np.full(16, LENGTH), np.full(16, MOST)
    packing = packed(np.arange(16), *full)
    assert packing.source_RW.shape == (16, LENGTH) and packing.most_chosen == MOST


def test_a_model_reads_what_is_packed_as_it_reads_each_row():
    model = Transformer(tiny.model(), tiny.execution(), head='scalar')
    params = jax.tree.map(lambda leaf: getattr(leaf, 'value', leaf), initializer(model)(jax.random.key(0)),
                          is_leaf=lambda leaf: hasattr(leaf, 'value'))
    length_B, chosen_B = drawn(8, seed=0)
    tokens_BT = np.random.default_rng(0).integers(10, 300, (8, LENGTH), np.int32)
    packing = packed(np.arange(8), length_B, chosen_B)
    assert len(packing.source_RW) == 2
    read_RW = model.apply({'params': params}, packing.lay(tokens_BT), packing.positions_RW,
                          MaskSpec(segments_BT=packing.segments_RW))
    inside_BT = np.arange(LENGTH)[None] < length_B[:, None]
    alone_BT = np.asarray(model.apply({'params': params}, tokens_BT, *whole_rows(tokens_BT)))
    assert alone_BT[inside_BT].std() > 0.1
    np.testing.assert_allclose(packing.back(read_RW, 8)[inside_BT], alone_BT[inside_BT], rtol=0, atol=1e-5)

"""Attention against JAX's own, rotary positions by their properties, the mask by its definition."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.architecture import RopeScaling
from llm.model.attention import Attention, MaskSpec, allowed, make_rotaries, make_rotary, rotate
from tests import tiny


def heads(seed: int, num_heads: int, length: int = 7, head_dim: int = 16):
    return jax.random.normal(jax.random.key(seed), (2, length, num_heads, head_dim))


@pytest.mark.parametrize('kv_heads', [1, 2, 4])
def test_attention_is_that_of_jax_with_keys_shared_by_groups(kv_heads):
    q, k, v = heads(0, 4), heads(1, kv_heads), heads(2, kv_heads)
    positions_BT = jnp.arange(7)[None]
    attention = Attention(tiny.model(num_kv_heads=kv_heads), tiny.execution(), 0.0)
    ours = attention.apply({}, q, k, v, allowed(MaskSpec(), positions_BT, positions_BT), method='_attend')
    repeated = [jnp.repeat(x, 4 // kv_heads, axis=2) for x in (k, v)]
    np.testing.assert_allclose(ours, jax.nn.dot_product_attention(q, *repeated, is_causal=True), atol=1e-5)


@pytest.mark.parametrize('window', [0, 70])
@pytest.mark.parametrize('length, causal', [(64, True), (200, True), (1100, True), (200, False)])
def test_whole_rows_in_blocks_are_those_of_jax_with_a_dense_mask(length, causal, window):
    """Lengths of one block, of a last block that is short, and of longer blocks; segments end within blocks."""
    q, k, v = (jax.random.normal(jax.random.key(seed), (2, length, 2, 16)) for seed in range(3))
    segment_T = np.searchsorted([length // 3, length // 2], np.arange(length), side='right')
    position_T = np.arange(length) - np.array([0, length // 3, length // 2])[segment_T]
    index_T = np.arange(length)
    sees_TS = segment_T[:, None] == segment_T[None]
    if causal:
        sees_TS &= index_T[:, None] >= index_T[None]
    if window:
        sees_TS &= index_T[:, None] - index_T[None] < window
    mask = MaskSpec(causal, jnp.broadcast_to(segment_T, (2, length)))
    attention = Attention(tiny.model(num_kv_heads=2, window=window), tiny.execution(), 0.0)

    def ours(q, k, v):
        return attention.apply({}, q, k, v, mask, jnp.broadcast_to(position_T, (2, length)), window or None,
                               method='_attend_in_blocks')

    def theirs(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=jnp.asarray(sees_TS)[None, None])
    (ours_BTNH, ours_back), (theirs_BTNH, theirs_back) = jax.vjp(ours, q, k, v), jax.vjp(theirs, q, k, v)
    np.testing.assert_allclose(ours_BTNH, theirs_BTNH, atol=1e-5)
    for gradient, expected in zip(ours_back(q), theirs_back(q)):
        np.testing.assert_allclose(gradient, expected, atol=5e-5)


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = heads(0, 2, length=1), heads(1, 2, length=1)

    def score(position_q: int, position_k: int):
        turned = [rotate(x, make_rotary(jnp.full((2, 1), p), 16, 10_000.0))
                  for x, p in ((q, position_q), (k, position_k))]
        return jnp.einsum('BTNH,BTNH->BN', *turned)
    np.testing.assert_allclose(score(9, 4), score(25, 20), rtol=1e-4, atol=1e-5)
    assert not np.allclose(score(9, 4), score(9, 5), atol=1e-2)


def test_rotary_turns_the_halves_by_the_stated_angles():
    """One vector worked by hand: width 4, theta 100, position 3: pairs (0, 2) by 3 and (1, 3) by 3 / 10."""
    x_BTNH = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    expected = [np.cos(3) - 3 * np.sin(3), 2 * np.cos(0.3) - 4 * np.sin(0.3),
                3 * np.cos(3) + np.sin(3), 4 * np.cos(0.3) + 2 * np.sin(0.3)]
    turned = rotate(x_BTNH, make_rotary(jnp.array([[3]]), 4, 100.0))
    np.testing.assert_allclose(turned[0, 0, 0], expected, rtol=1e-5)


def test_a_token_sees_its_own_segment_up_to_itself():
    segments_BT = jnp.array([[1, 1, 2, 2, 0]])
    positions_BT = jnp.array([[0, 1, 0, 1, 0]])
    expected = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], bool)
    assert (allowed(MaskSpec(segments_BT=segments_BT), positions_BT, positions_BT)[0] == expected).all()
    both_ways = allowed(MaskSpec(causal=False, segments_BT=segments_BT), positions_BT, positions_BT)[0]
    assert (both_ways == (expected | expected.T)).all()
    assert allowed(MaskSpec(causal=False), positions_BT, positions_BT).all()


def test_a_window_holds_the_query_and_what_is_just_before_it():
    positions_BT = jnp.arange(5)[None]
    expected = np.tril(np.ones((5, 5), bool)) & ~np.tril(np.ones((5, 5), bool), -3)
    assert (allowed(MaskSpec(), positions_BT, positions_BT, 3)[0] == expected).all()
    assert (allowed(MaskSpec(), positions_BT[:, 3:], positions_BT, 3)[0] == expected[3:]).all()  # with a cache
    segments_BT = jnp.array([[1, 1, 1, 2, 2]])
    packed = allowed(MaskSpec(segments_BT=segments_BT), jnp.array([[0, 1, 2, 0, 1]]), jnp.array([[0, 1, 2, 0, 1]]), 2)
    assert packed[0].sum(1).tolist() == [1, 2, 2, 1, 2]


@pytest.mark.parametrize('global_every, windowed', [(0, [1, 1, 1, 1, 1, 1]), (2, [1, 0, 1, 0, 1, 0]),
                                                    (3, [1, 1, 0, 1, 1, 0])])
def test_every_so_manieth_layer_has_no_window_and_rotates_as_the_model_does(global_every, windowed):
    config = tiny.model(window=2, global_every=global_every, rope_local_theta=10.0)
    attention = Attention(config, tiny.execution(), 0.0)
    found = [int(attention._by_layer(jnp.int32(layer), 0, 1)) for layer in range(6)]
    assert found == windowed
    far, near = make_rotaries(config, jnp.arange(3)[None])
    assert (far.cos_BTH == make_rotary(jnp.arange(3)[None], 16, 10_000.0).cos_BTH).all()
    assert (near.cos_BTH == make_rotary(jnp.arange(3)[None], 16, 10.0).cos_BTH).all()


def test_linear_scaling_is_that_of_positions():
    positions_BT = jnp.arange(0, 40, 8)[None]
    scaled = make_rotary(positions_BT, 16, 100.0, RopeScaling('linear', 8.0))
    np.testing.assert_allclose(scaled.cos_BTH, make_rotary(positions_BT // 8, 16, 100.0).cos_BTH, atol=1e-5)


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones():
    """By wavelength, as Llama 3.1 states it: below 32 / 4 kept, above 32 / 1 divided by 8, mixed between."""
    scaling = RopeScaling('llama3', 8.0, 1.0, 4.0, 32)
    rate_H = 1.0 / 1000.0 ** (np.arange(0, 16, 2) / 16)
    expected = []
    for rate in rate_H:
        wavelength = 2 * np.pi / rate
        share = (32 / wavelength - 1.0) / (4.0 - 1.0)
        expected.append(rate if wavelength < 8 else rate / 8 if wavelength > 32
                        else (1 - share) * rate / 8 + share * rate)
    assert 0 < sum(a == b for a, b in zip(expected, rate_H)) < sum(a != b / 8 for a, b in zip(expected, rate_H)) < 8
    found = make_rotary(jnp.array([[1]]), 16, 1000.0, scaling)
    np.testing.assert_allclose(np.arctan2(found.sin_BTH, found.cos_BTH)[0, 0], expected, rtol=1e-5)


def test_scores_are_divided_by_the_root_of_the_query_scale_and_capped():
    q, k, v = heads(0, 4), heads(1, 4), heads(2, 4)
    positions_BT = jnp.arange(7)[None]
    seen_BTS = allowed(MaskSpec(), positions_BT, positions_BT)
    config = tiny.model(num_kv_heads=4, query_scale=5.0, attention_softcap=0.7)
    ours = Attention(config, tiny.execution(), 0.0).apply({}, q, k, v, seen_BTS, method='_attend')
    scores_BNTS = 0.7 * jnp.tanh(jnp.einsum('BTNH,BSNH->BNTS', q, k) / 5 ** 0.5 / 0.7)
    probs_BNTS = jax.nn.softmax(jnp.where(seen_BTS[:, None], scores_BNTS, -jnp.inf))
    np.testing.assert_allclose(ours, jnp.einsum('BNTS,BSNH->BTNH', probs_BNTS, v), atol=1e-5)


def test_normed_queries_and_keys_have_no_length_of_their_own():
    """Weights times 7 give the same output; each head is normed by itself, before it is rotated."""
    config = tiny.model(qk_norm=True, num_layers=1)
    attention, x_BTD = Attention(config, tiny.execution(), 0.0), jax.random.normal(jax.random.key(0), (2, 5, 64))
    positions_BT = jnp.broadcast_to(jnp.arange(5), (2, 5))
    arguments = (x_BTD, positions_BT, MaskSpec(), make_rotaries(config, positions_BT), None, jnp.int32(0))
    params = nn.meta.unbox(attention.init(jax.random.key(1), *arguments)['params'])
    assert params['query_norm']['scale'].shape == params['key_norm']['scale'].shape == (16,)
    params = jax.tree.map(lambda x: 50 * x, params)  # so that the norm's epsilon is nothing
    longer = {**params, 'query': {'w': 7 * params['query']['w']}, 'key': {'w': 7 * params['key']['w']}}
    first, second = (attention.apply({'params': tree}, *arguments)[0] for tree in (params, longer))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)
    softer = {**params, 'query_norm': {'scale': params['query_norm']['scale'] / 1000}}  # scores were far apart before
    assert not np.allclose(attention.apply({'params': softer}, *arguments)[0], first, atol=1e-2)

"""Attention against JAX's own, rotary positions by their properties, the mask by its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.model.attention import Attention, MaskSpec, allowed, make_rotary, rotate
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

"""Tokens drawn by inversion: how often each comes, and the log-probability that is told of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from llm.rollout.draw import _blocks, draw


def keys(count: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(count))


@pytest.mark.parametrize('vocab_size', [96, 35, 37])  # 37 is prime: one block
@pytest.mark.parametrize('temperature', [1.0, 0.6])
def test_each_token_comes_as_often_as_the_softmax_says(vocab_size, temperature):
    count = 20_000
    logits_V = jax.random.normal(jax.random.key(0), (vocab_size,))
    token_B, logp_B = jax.jit(draw, static_argnums=2)(jnp.broadcast_to(logits_V, (count, vocab_size)), keys(count),
                                                      temperature)
    expected_V = jax.nn.log_softmax(logits_V / temperature)
    np.testing.assert_allclose(logp_B, expected_V[token_B], atol=1e-5)
    expected = count * np.exp(np.asarray(expected_V, np.float64))
    found = np.bincount(token_B, minlength=vocab_size)
    assert stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > 1e-3


def test_what_cannot_be_is_never_drawn_whatever_the_blocks():
    """One token of 96 has all the weight, then two that stand in different blocks, or at the ends of one."""
    for possible in ([0], [95], [50], [0, 95], [40, 47], [7, 8]):
        logits_V = jnp.full(96, -jnp.inf).at[jnp.array(possible)].set(0.0)
        token_B, logp_B = draw(jnp.broadcast_to(logits_V, (500, 96)), keys(500), 1.0)
        assert set(np.asarray(token_B).tolist()) == set(possible)
        np.testing.assert_allclose(logp_B, -np.log(len(possible)), atol=1e-6)


def test_at_temperature_0_it_is_the_likeliest_with_its_log_probability_at_1():
    logits_BV = jax.random.normal(jax.random.key(0), (8, 35))
    token_B, logp_B = draw(logits_BV, keys(8), 0.0)
    assert (token_B == logits_BV.argmax(1)).all()
    np.testing.assert_allclose(logp_B, jax.nn.log_softmax(logits_BV).max(1), atol=1e-6)


@pytest.mark.parametrize('vocab_size', [1, 37, 512, 8192, 32_000, 50_257, 128_256, 151_936, 256_000])
def test_blocks_divide_the_vocabulary_and_devices_share_them(vocab_size):
    blocks = _blocks(vocab_size)
    assert vocab_size % blocks == 0 and (vocab_size % 16 or blocks % 16 == 0)

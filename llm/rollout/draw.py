"""One token of each row from the logits of all, and its log-probability.

In: logits_BV, a key a row. Out: token_B, logp_B. Left out: top-k and top-p (a policy gradient needs the distribution
that was sampled from).
"""

import math

import jax
import jax.numpy as jnp


def draw(logits_BV: jax.Array, key_B: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """Tokens from softmax(logits / temperature), and their log-probabilities under it, float32.

    With temperature 0 the likeliest, and its log-probability at temperature 1. Sampled by inversion, first of a block
    of the vocabulary, then of a token in it: two random numbers a row. Gumbel noise, which needs one for each token,
    took 2.9 ms of a core for 16 rows of 8,192 tokens where this takes 0.12.
    """
    scaled_BV = logits_BV / (temperature or 1.0)
    scaled_BV -= jax.lax.stop_gradient(scaled_BV.max(1, keepdims=True))
    batch, vocab_size = scaled_BV.shape
    blocks = _blocks(vocab_size)
    weight_BXY = jnp.exp(scaled_BV).reshape(batch, blocks, -1)  # X blocks of Y tokens
    weight_BX = weight_BXY.sum(2)
    if temperature:
        uniform_B2 = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(key_B)
        block_B = _invert(weight_BX, uniform_B2[:, 0])
        weight_BY = jnp.take_along_axis(weight_BXY, block_B[:, None, None], 1)[:, 0]
        token_B = block_B * (vocab_size // blocks) + _invert(weight_BY, uniform_B2[:, 1])
    else:
        token_B = logits_BV.argmax(1)
    logp_B = jnp.take_along_axis(scaled_BV, token_B[:, None], 1)[:, 0] - jnp.log(weight_BX.sum(1))
    return token_B.astype(jnp.int32), logp_B


def _invert(weight_BX: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """The first place at which the running sum passes that share of the whole: never one of weight 0."""
    sum_BX = jnp.cumsum(weight_BX, 1)
    return (sum_BX <= uniform_B[:, None] * sum_BX[:, -1:]).sum(1)


def _blocks(vocab_size: int) -> int:
    """The divisor nearest to the root; of a multiple of 16 another one, so that devices may share the blocks evenly."""
    step, root = math.gcd(vocab_size, 16), math.sqrt(vocab_size)
    return min((size for size in range(step, vocab_size + 1, step) if vocab_size % size == 0),
               key=lambda size: abs(size - root))

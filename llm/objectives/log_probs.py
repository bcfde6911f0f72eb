"""Log-probabilities of given tokens, without ever holding the logits of a whole vocabulary that is large.

In: final hidden states, the unembedding matrix, target tokens.
Out: per token its log-probability, the log-sum-exp of its logits and the entropy of its distribution.
Left out: what is made of them (`next_token.py`, `ppo.py`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class TokenLogProbs(NamedTuple):
    """Float32, nats. `entropy_BT` is for reporting: no gradient flows through it."""

    logp_BT: jax.Array
    logsumexp_BT: jax.Array
    entropy_BT: jax.Array


class _Part(NamedTuple):
    """Of the logits of a part of the vocabulary: the target's (0 if it is not there), log-sum-exp, mean."""

    target_BT: jax.Array
    logsumexp_BT: jax.Array
    mean_BT: jax.Array


def token_log_probs(x_BTD: jax.Array, w_VD: jax.Array, targets_BT: jax.Array, *, chunk_vocab: int,
                    temperature: float = 1.0, softcap: float = 0.0, gather: Callable[[jax.Array], jax.Array] | None = None,
                    flatten: bool = True) -> TokenLogProbs:
    """Log-softmax of `x_BTD @ w_VD.T / temperature` at the targets, the product maybe soft-capped.

    Args:
      x_BTD: hidden states in the compute dtype; the logits are float32 whatever it is.
      w_VD: unembedding, in its own float32.
      targets_BT: int32; x at index t predicts the target at index t.
      chunk_vocab: rows of w_VD at once; at most [B, T, chunk_vocab] logits live, forward and backward (where they
        are computed again). From V on, one chunk, and nothing is computed twice.
      softcap: bound of the logits, as the model has it (cap * tanh(logits / cap)); 0: none.
      temperature: what the logits are divided by after that; positive.
      gather: from rows of w_VD as they are stored to the same in the compute dtype, as they are used.
      flatten: B and T become one axis in the matmul, where a split length does not forbid it.
    """
    batch, length, width = x_BTD.shape
    vocab, dtype = w_VD.shape[0], x_BTD.dtype
    gather = gather or (lambda w_VD: w_VD.astype(dtype))
    if flatten:  # with two leading axes the CPU's weight gradient misses the fast matmul
        x_BTD, targets_BT = x_BTD.reshape(1, -1, width), targets_BT.reshape(1, -1)
    chunks = -(-vocab // chunk_vocab)

    def part(x_BTD, w_CD, token_C) -> _Part:
        return _part(x_BTD.astype(dtype), gather(w_CD), targets_BT, token_C, vocab, temperature, softcap)
    if chunks == 1:
        parts = jax.tree.map(lambda value: value[None], part(x_BTD, w_VD, jnp.arange(vocab)))
    else:
        # Chunk c holds the rows c, c + chunks, ...: where devices split the vocabulary, each has its share of any.
        size = -(-vocab // chunks)
        w_CND = jnp.pad(w_VD, ((0, size * chunks - vocab), (0, 0))).reshape(size, chunks, width)
        tokens = jnp.arange(size * chunks).reshape(size, chunks)
        x_BTD = x_BTD.astype(jnp.float32)  # so that its gradient is summed over chunks in float32
        _, parts = jax.lax.scan(lambda _, piece: (None, jax.checkpoint(part)(x_BTD, *piece)), None,
                                (w_CND.swapaxes(0, 1), tokens.swapaxes(0, 1)))
    logsumexp_BT = jax.nn.logsumexp(parts.logsumexp_BT, axis=0)
    share = jnp.exp(parts.logsumexp_BT - logsumexp_BT[None])  # of each part in the distribution
    entropy_BT = logsumexp_BT - jnp.sum(share * parts.mean_BT, axis=0)
    found = jnp.sum(parts.target_BT, axis=0) - logsumexp_BT, logsumexp_BT, jax.lax.stop_gradient(entropy_BT)
    return TokenLogProbs(*(value_BT.reshape(batch, length) for value_BT in found))


def _part(x_BTD, w_CD, targets_BT, token_C, vocab, temperature, softcap) -> _Part:
    """token_C: which token a row of w_CD is of; from `vocab` on, of none."""
    logits_BTC = jnp.einsum('BTD,CD->BTC', x_BTD, w_CD, preferred_element_type=jnp.float32)
    logits_BTC = (jnp.tanh(logits_BTC / softcap) * softcap if softcap else logits_BTC) / temperature
    logits_BTC = jnp.where((token_C < vocab)[None, None], logits_BTC, -1e30)
    # A comparison instead of a gather: it fuses, and stays local where the vocabulary is split over devices.
    target_BT = jnp.sum(jnp.where(token_C[None, None] == targets_BT[:, :, None], logits_BTC, 0.0), axis=2)
    logsumexp_BT = jax.nn.logsumexp(logits_BTC, axis=2)
    fixed_BTC = jax.lax.stop_gradient(logits_BTC)
    mean_BT = jnp.sum(jnp.exp(fixed_BTC - jax.lax.stop_gradient(logsumexp_BT)[:, :, None]) * fixed_BTC, axis=2)
    return _Part(target_BT, logsumexp_BT, mean_BT)

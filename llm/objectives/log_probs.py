"""Log-probabilities of given tokens, without ever holding the logits of a whole batch.

In: final hidden states, the unembedding matrix, target tokens.
Out: per token its log-probability, the log-sum-exp of its logits and the entropy of its distribution.
Left out: what is made of them (`next_token.py`, `ppo.py`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class TokenLogProbs(NamedTuple):
    """Float32, nats. `entropy_BT` is for reporting: no gradient flows through it."""

    logp_BT: jax.Array
    logsumexp_BT: jax.Array
    entropy_BT: jax.Array


def token_log_probs(x_BTD: jax.Array, w_VD: jax.Array, targets_BT: jax.Array, *, chunk_tokens: int,
                    temperature: float = 1.0, softcap: float = 0.0) -> TokenLogProbs:
    """Log-softmax of `x_BTD @ w_VD.T / temperature` at the targets, the product maybe soft-capped.

    Args:
      x_BTD: hidden states in the compute dtype; the logits are float32 whatever it is.
      w_VD: unembedding; best in its own float32, so that its gradient is summed over chunks in float32.
      targets_BT: int32; x at index t predicts the target at index t.
      chunk_tokens: positions at once; at most [B, chunk_tokens, V] logits live, forward and backward (where
        they are computed again). From T on, one chunk, and nothing is computed twice.
      softcap: bound of the logits, as the model has it (cap * tanh(logits / cap)); 0: none.
      temperature: what the logits are divided by after that; positive.
    """
    batch, length = targets_BT.shape
    chunks = -(-length // chunk_tokens)
    if chunks == 1:
        return _log_probs(x_BTD, w_VD, targets_BT, temperature, softcap)
    size = -(-length // chunks)  # even chunks, so that padding stays below one position a chunk

    def cut(a_BT):
        padding = ((0, 0), (0, chunks * size - length)) + ((0, 0),) * (a_BT.ndim - 2)
        return jnp.pad(a_BT, padding).reshape(batch, chunks, size, *a_BT.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def one_chunk(x_BTD, targets_BT):
        return _log_probs(x_BTD, w_VD, targets_BT, temperature, softcap)

    _, parts = jax.lax.scan(lambda _, piece: (None, one_chunk(*piece)), None, (cut(x_BTD), cut(targets_BT)))
    return jax.tree.map(lambda part: part.swapaxes(0, 1).reshape(batch, -1)[:, :length], parts)


def _log_probs(x_BTD, w_VD, targets_BT, temperature, softcap) -> TokenLogProbs:
    # Rows flattened: with two leading axes the CPU's weight gradient misses the fast matmul.
    x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])
    logits_MV = jnp.einsum('MD,VD->MV', x_MD, w_VD.astype(x_MD.dtype), preferred_element_type=jnp.float32)
    logits_MV = (jnp.tanh(logits_MV / softcap) * softcap if softcap else logits_MV) / temperature
    # A comparison instead of a gather: it fuses, and stays local where the vocabulary is split over devices.
    hit_MV = jax.lax.broadcasted_iota(jnp.int32, logits_MV.shape, 1) == targets_BT.reshape(-1, 1)
    logsumexp_M = jax.nn.logsumexp(logits_MV, axis=1)
    logp_M = jnp.sum(jnp.where(hit_MV, logits_MV, 0.0), axis=1) - logsumexp_M
    fixed_MV = jax.lax.stop_gradient(logits_MV - logsumexp_M[:, None])
    entropy_M = -jnp.sum(jnp.exp(fixed_MV) * fixed_MV, axis=1)
    return TokenLogProbs(*(value_M.reshape(targets_BT.shape) for value_M in (logp_M, logsumexp_M, entropy_M)))

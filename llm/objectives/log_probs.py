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
                    temperature: float = 1.0, softcap: float = 0.0, transposed: bool = False,
                    apply: Callable | None = None) -> TokenLogProbs:
    """Log-softmax of `x_BTD @ w_VD.T / temperature` at the targets, the product maybe soft-capped.

    Args:
      x_BTD: hidden states in the compute dtype; the logits are float32 whatever it is.
      w_VD: unembedding, in its own float32.
      targets_BT: int32; x at index t predicts the target at index t.
      chunk_vocab: rows of w_VD at once; at most [B, T, chunk_vocab] logits live, forward and backward (where they
        are computed again). From V on, one chunk, and nothing is computed twice.
      softcap: bound of the logits, as the model has it (cap * tanh(logits / cap)); 0: none.
      temperature: what the logits are divided by after that; positive.
      transposed: whether a transposed copy of w_VD is made first. Its gradient, a product with the batch on both inner
        sides, is then wide instead of tall: 34 instead of 46 ms for 8,192 x 384 on a CPU.
      apply: apply(function, w, *rows) is function(w in the compute dtype, *rows) as the mesh wants it done, each
        device on its own batch rows and positions; None: as it stands.
    """
    vocab, dtype = w_VD.shape[0], x_BTD.dtype
    apply = apply or (lambda function, w, *rows: function(w.astype(dtype), *rows))
    chunks = -(-vocab // chunk_vocab)

    def part(w_SD, x_BTD, targets_BT, chunk_BT) -> _Part:
        if transposed:
            w_SD = jax.lax.optimization_barrier(w_SD.T).T
        return _part(w_SD, x_BTD.astype(dtype), targets_BT, chunk_BT, chunks, vocab, temperature, softcap)

    def one_chunk(x_BTD, w_SD, chunk):
        return apply(part, w_SD, x_BTD, targets_BT, jnp.broadcast_to(chunk, targets_BT.shape))
    if chunks == 1:
        parts = jax.tree.map(lambda value: value[None], one_chunk(x_BTD, w_VD, 0))
    else:
        # Chunk c holds the rows c, c + chunks, ...: where devices split the vocabulary, each has its share of any.
        size = -(-vocab // chunks)
        w_CSD = jnp.pad(w_VD, ((0, size * chunks - vocab), (0, 0))).reshape(size, chunks, -1).swapaxes(0, 1)
        x_BTD = x_BTD.astype(jnp.float32)  # so that its gradient is summed over chunks in float32
        _, parts = jax.lax.scan(lambda _, piece: (None, jax.checkpoint(one_chunk)(x_BTD, *piece)), None,
                                (w_CSD, jnp.arange(chunks)))
    logsumexp_BT = jax.nn.logsumexp(parts.logsumexp_BT, axis=0)
    share = jnp.exp(parts.logsumexp_BT - logsumexp_BT[None])  # of each part in the distribution
    entropy_BT = logsumexp_BT - jnp.sum(share * parts.mean_BT, axis=0)
    return TokenLogProbs(jnp.sum(parts.target_BT, axis=0) - logsumexp_BT, logsumexp_BT,
                         jax.lax.stop_gradient(entropy_BT))


def _part(w_SD, x_BTD, targets_BT, chunk_BT, chunks, vocab, temperature, softcap) -> _Part:
    # Rows flattened: with two leading axes the CPU's weight gradient misses the fast matmul.
    x_MD, target_M1, chunk_M1 = x_BTD.reshape(-1, x_BTD.shape[-1]), targets_BT.reshape(-1, 1), chunk_BT.reshape(-1, 1)
    logits_MS = jnp.einsum('MD,SD->MS', x_MD, w_SD, preferred_element_type=jnp.float32)
    logits_MS = (jnp.tanh(logits_MS / softcap) * softcap if softcap else logits_MS) / temperature
    token_MS = jax.lax.broadcasted_iota(jnp.int32, logits_MS.shape, 1) * chunks + chunk_M1
    logits_MS = jnp.where(token_MS < vocab, logits_MS, -1e30)
    # A comparison instead of a gather: it fuses, and stays local where the vocabulary is split over devices.
    target_M = jnp.sum(jnp.where(token_MS == target_M1, logits_MS, 0.0), axis=1)
    logsumexp_M = jax.nn.logsumexp(logits_MS, axis=1)
    fixed_MS = jax.lax.stop_gradient(logits_MS)
    mean_M = jnp.sum(jnp.exp(fixed_MS - jax.lax.stop_gradient(logsumexp_M)[:, None]) * fixed_MS, axis=1)
    return _Part(*(value_M.reshape(targets_BT.shape) for value_M in (target_M, logsumexp_M, mean_M)))

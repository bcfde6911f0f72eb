"""Next-token prediction: pretraining on all tokens, SFT on the tokens of answers.

In: log-probabilities of target tokens, and which of them count, or how much.
Out: a `Loss` in nats per token that counts.
Left out: logits (`log_probs.py`); which tokens count (the rows say).
"""

import jax
import jax.numpy as jnp

from llm.objectives.log_probs import TokenLogProbs
from llm.objectives.loss import Loss, Term, weighted


def next_token(log_probs: TokenLogProbs, mask_BT: jax.Array, *, z_loss: float) -> Loss:
    """Mean of -log p(target), plus `z_loss` times the mean of log(Z)^2, both over the mask.

    Z is the softmax's normaliser; the second term keeps logits from drifting (PaLM, arXiv:2204.02311, sec. 5,
    with z_loss = 1e-4; there too over the tokens of the loss). With z_loss = 0 the term is absent.
    """
    terms = {'next_token': Term(*weighted(-log_probs.logp_BT, mask_BT))}
    if z_loss:
        terms['z_loss'] = Term(*weighted(jnp.square(log_probs.logsumexp_BT), mask_BT), coef=z_loss)
    return Loss(terms, metrics={})


def per_chat(mask_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """weight_BT: the tokens that count, each weighing 1 / the number of them in its segment: segments weigh alike.

    A segment is one chat of a row. Chats with short answers (a label) are then learned as fast as those with long ones.
    """
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    count_BT = jnp.sum(jnp.where(same_BTS, mask_BT[:, None, :], 0.0), axis=2)
    return mask_BT / jnp.maximum(count_BT, 1.0)

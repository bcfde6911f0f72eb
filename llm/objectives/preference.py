"""Learning a scalar score from human rankings of several answers to one prompt.

In: the model's score and the human score of each answer, one row a prompt.
Out: a `Loss` over the pairs of each row; accuracy over pairs, also by how far the human scores lie apart.
Left out: the model; how human ranks become scores (higher is better by the time they are here).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from llm.objectives.loss import Loss, Term


def k_wise(score_BR: jax.Array, human_BR: jax.Array, valid_BR: jax.Array) -> Loss:
    """-log sigmoid(score of the better - score of the worse), mean over each row's pairs, mean over rows.

    Eq. 1 of InstructGPT (arXiv:2203.02155): all K(K-1)/2 pairs of one prompt in one batch element, divided by
    their number, so that a prompt counts once however many answers it has. Deviation: pairs that people rated
    alike are left out, of the sum and of the number; a row without a pair has no weight.

    Args:
      score_BR: the model's, float32.
      human_BR: ratings; higher is better; only their order is used.
      valid_BR: bool; False at padding.
    Returns: term `k_wise` (weight: rows with a pair), metric `accuracy` over pairs (equal scores: one half).
    """
    pair_BRR = (_gap(human_BR) > 0) & _both(valid_BR)
    score_BR = jnp.where(valid_BR, score_BR, 0.0)  # or a NaN of padding reaches the gradients
    pairs_B = jnp.sum(pair_BRR, axis=(1, 2), dtype=jnp.float32)
    loss_BRR = jnp.where(pair_BRR, -jax.nn.log_sigmoid(_gap(score_BR)), 0.0)
    mean_B = jnp.sum(loss_BRR, axis=(1, 2)) / jnp.maximum(pairs_B, 1.0)
    return Loss({'k_wise': Term(jnp.sum(mean_B), jnp.sum(pairs_B > 0, dtype=jnp.float32))},
                {'accuracy': _accuracy(score_BR, pair_BRR)})


def pair_accuracy(score_BR: jax.Array, human_BR: jax.Array, valid_BR: jax.Array,
                  gaps: Sequence[float]) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Metrics `accuracy_gap_G`: accuracy over pairs whose human scores differ by more than G, for each G."""
    return {f'accuracy_gap_{gap:g}': _accuracy(score_BR, (_gap(human_BR) > gap) & _both(valid_BR))
            for gap in gaps}


def _gap(score_BR):
    """score_BRR[b, i, j] = score of answer i - score of answer j."""
    return score_BR[:, :, None] - score_BR[:, None, :]


def _both(valid_BR):
    return valid_BR[:, :, None] & valid_BR[:, None, :]


def _accuracy(score_BR, pair_BRR):
    """(pairs in the right order, pairs); equal scores are half right, so that a constant scorer gets .5."""
    right_BRR = jnp.where(pair_BRR, jnp.heaviside(_gap(score_BR), 0.5), 0.0)
    return jnp.sum(right_BRR), jnp.sum(pair_BRR, dtype=jnp.float32)

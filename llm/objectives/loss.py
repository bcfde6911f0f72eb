"""What an objective returns: sums and weights, never means.

In: arrays of one batch or one part of a batch.
Out: a `Loss`, which adds up exactly over micro-batches, devices and evaluation batches.
Left out: how sums are accumulated in training (`llm/train_step.py`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Term(NamedTuple):
    """One summand `coef * sum / weight` of a loss.

    `weight` must depend on masks alone, not on parameters: it is totalled over the whole global batch before
    anything is differentiated. `coef` is a constant of the objective.
    """

    sum: jax.Array
    weight: jax.Array
    coef: float | jax.Array = 1.0


class Loss(NamedTuple):
    """Named terms to be minimised, and named metrics (sum, weight) to be reported beside them."""

    terms: dict[str, Term]
    metrics: dict[str, tuple[jax.Array, jax.Array]]


def weighted(x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum of x * mask, sum of mask); what stands where the mask is 0, NaN included, is not in the sum."""
    return jnp.sum(jnp.where(mask > 0, x * mask, 0.0)), jnp.sum(mask)


def ratio(total_sum: jax.Array, weight: jax.Array) -> jax.Array:
    """sum / weight; 0 where there is nothing to average over."""
    return total_sum / jnp.where(weight > 0, weight, 1.0)


def total(loss: Loss, weights: dict[str, jax.Array] | None = None) -> jax.Array:
    """The loss: sum over terms of coef * sum / weight.

    Args:
      loss: of a batch, or of a part of one.
      weights: weight of each term over the whole batch, when `loss` is of a part; None: the terms' own.
    """
    return sum(term.coef * ratio(term.sum, weights[name] if weights else term.weight)
               for name, term in loss.terms.items())


def join(*losses: Loss) -> Loss:
    """The loss that is the sum of several; their names must differ."""
    names = [name for loss in losses for name in (*loss.terms, *loss.metrics)]
    assert len(set(names)) == len(names), f'names of terms and metrics are not unique: {sorted(names)}'
    return Loss({name: term for loss in losses for name, term in loss.terms.items()},
                {name: pair for loss in losses for name, pair in loss.metrics.items()})

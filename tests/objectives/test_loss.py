"""Sums and weights: parts add up to the whole, and what is masked is not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.objectives.loss import Loss, Term, join, ratio, total, weighted


def test_total_scales_parts_by_the_weights_of_the_whole():
    x, mask = jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.array([1.0, 1.0, 1.0, 0.0])

    def loss(rows):
        return Loss({'a': Term(*weighted(x[rows], mask[rows])),
                     'b': Term(jnp.sum(x[rows]), jnp.float32(x[rows].size), coef=0.5)}, {})
    whole, parts = loss(slice(0, 4)), (loss(slice(0, 1)), loss(slice(1, 4)))
    weights = {name: term.weight for name, term in whole.terms.items()}
    np.testing.assert_allclose(total(whole), 7 / 3 + 0.5 * 15 / 4, rtol=1e-6)
    np.testing.assert_allclose(sum(total(part, weights) for part in parts), total(whole), rtol=1e-6)
    mean_of_means = sum(total(part) for part in parts) / 2
    assert abs(mean_of_means - total(whole)) > 0.1


def test_weighted_leaves_out_nan_and_infinity_under_the_mask():
    x, mask = jnp.array([3.0, jnp.nan, jnp.inf]), jnp.array([0.5, 0.0, 0.0])
    assert [float(value) for value in weighted(x, mask)] == [1.5, 0.5]


def test_ratio_of_nothing_is_zero_with_zero_gradient():
    assert ratio(jnp.float32(0), jnp.float32(0)) == 0
    assert jax.grad(lambda x: ratio(*weighted(x, jnp.zeros(()))))(jnp.float32(3)) == 0


def test_join_keeps_every_name_and_refuses_a_name_twice():
    a = Loss({'a': Term(jnp.float32(1), jnp.float32(2))}, {'m': (jnp.float32(1), jnp.float32(1))})
    b = Loss({'b': Term(jnp.float32(3), jnp.float32(4), 2.0)}, {})
    assert total(join(a, b)) == total(a) + total(b)
    assert set(join(a, b).metrics) == {'m'}
    with pytest.raises(AssertionError, match='not unique'):
        join(a, a)

"""The K-wise ranking loss: cited values, symmetries, ties and padding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.objectives.loss import total
from llm.objectives.preference import k_wise, pair_accuracy

RANKED = jnp.array([[4.0, 3.0, 2.0, 1.0]])
VALID = jnp.ones((1, 4), bool)


@pytest.mark.parametrize('score, expected', (
    ([0.3, 0.3, 0.3, 0.3], 0.69314718),  # equal scores: ln 2
    ([2.0, 1.0, 0.5, -1.0], 0.22761343)))  # eq. 1 of arXiv:2203.02155, worked out by hand
def test_cited_values(score, expected):
    np.testing.assert_allclose(total(k_wise(jnp.array([score]), RANKED, VALID)), expected, rtol=1e-6)


def test_equals_a_loop_over_pairs_with_ties_and_padding():
    score_BR = jax.random.normal(jax.random.key(0), (5, 4))
    human_BR = jnp.array([[1, 2, 3, 4], [1, 1, 2, 2], [5, 5, 5, 5], [3, 1, 2, 9], [4, 9, 9, 9]], jnp.float32)
    valid_BR = jnp.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]], bool)
    rows, right, pairs = [], 0, 0
    for score_R, human_R, valid_R in zip(np.array(score_BR), human_BR, valid_BR):
        losses = [np.log1p(np.exp(score_R[j] - score_R[i])) for i, j in itertools.permutations(range(4), 2)
                  if valid_R[i] and valid_R[j] and human_R[i] > human_R[j]]
        rows += [np.mean(losses)] if losses else []
        right, pairs = right + sum(loss < np.log(2) for loss in losses), pairs + len(losses)
    loss = k_wise(score_BR, human_BR, valid_BR)
    np.testing.assert_allclose(total(loss), np.mean(rows), rtol=1e-6)
    assert loss.terms['k_wise'].weight == len(rows) == 3
    assert [float(value) for value in loss.metrics['accuracy']] == [right, pairs]


def test_order_of_answers_and_a_constant_do_not_matter():
    score_BR, order = jnp.array([[0.1, -2.0, 1.5, 0.7]]), jnp.array([2, 0, 3, 1])
    loss = total(k_wise(score_BR, RANKED, VALID))
    np.testing.assert_allclose(total(k_wise(score_BR[:, order], RANKED[:, order], VALID)), loss, rtol=1e-6)
    np.testing.assert_allclose(total(k_wise(score_BR + 100, RANKED, VALID)), loss, rtol=1e-5)


def test_padding_has_no_effect_on_loss_and_gradient_even_if_not_a_number():
    valid_BR = VALID.at[0, 1].set(False)

    def loss(padding):
        return lambda score_BR: total(k_wise(score_BR.at[0, 1].set(padding), RANKED, valid_BR))
    score_BR = jnp.array([[0.1, 0.0, 1.5, 0.7]])
    expected, expected_gradient = jax.value_and_grad(loss(7.0))(score_BR)
    found, gradient = jax.value_and_grad(loss(jnp.nan))(score_BR)
    assert found == expected
    np.testing.assert_array_equal(gradient, expected_gradient)


def test_huge_gaps_do_not_overflow():
    value, gradient = jax.value_and_grad(lambda s: total(k_wise(s, RANKED, VALID)))(-1e4 * RANKED)
    assert np.isfinite(value) and np.all(np.isfinite(gradient)) and np.any(gradient != 0)


def test_pair_accuracy_by_gap_counts_only_pairs_that_far_apart():
    human_BR, score_BR = jnp.array([[0.0, 1.0, 3.0]]), jnp.array([[0.0, -1.0, -1.0]])
    found = pair_accuracy(score_BR, human_BR, jnp.ones((1, 3), bool), (0, 1, 2.5))
    # Pairs by gap: 1 (wrong), 2 (equal scores: half), 3 (wrong).
    assert {name: (float(right), float(count)) for name, (right, count) in found.items()} == {
        'accuracy_gap_0': (0.5, 3.0), 'accuracy_gap_1': (0.5, 2.0), 'accuracy_gap_2.5': (0.0, 1.0)}

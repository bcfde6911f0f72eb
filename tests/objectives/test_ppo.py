"""PPO: values cited from other implementations, oracles in plain Python, and what masks must hide."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.objectives.loss import join, Loss, ratio, Term, total
from llm.objectives.ppo import adaptive_kl, gae, kl_rewards, policy_loss, supervised, value_loss, whiten

MASK_BT = jnp.array([[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1]], jnp.float32)


def normal(seed, shape=MASK_BT.shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize('sign, expected', ((1, -0.171178), (-1, 0.193333)))
def test_policy_loss_of_rlax(sign, expected):
    """rlax, policy_gradients_test.py, clipped_surrogate_pg_loss with epsilon .2."""
    logits_TV = jnp.array([[1.0, 1, 1], [2, 0, 0], [-1, -2, -3]])
    old_TV = jnp.array([[1.0, 1, 1], [2, 0, 0], [-3, -2, -1]])
    logp_BT, logp_old_BT = (jnp.diagonal(jax.nn.log_softmax(table))[None] for table in (logits_TV, old_TV))
    advantage_BT = sign * jnp.array([[0.3, 0.2, 0.1]])
    loss = policy_loss(logp_BT, logp_old_BT, advantage_BT, jnp.ones((1, 3)), clip_epsilon=0.2)
    np.testing.assert_allclose(total(loss), expected, atol=1e-6)


def test_kl_rewards_of_torchtune():
    """torchtune, tests/torchtune/rlhf/test_rewards.py: KL penalty .5, three answers of three tokens."""
    logp_ref_BT, mask_BT = jnp.full((3, 3), -2.0), jnp.ones((3, 3))
    logp_old_BT = logp_ref_BT - jnp.array([0.1, 0.2, 0.3])[:, None]
    reward_BT = kl_rewards(logp_old_BT, logp_ref_BT, jnp.array([1.0, 2.0, 3.0]), mask_BT, kl_coef=0.5)
    expected_BT = [[0.05, 0.05, 1.05], [0.1, 0.1, 2.1], [0.15, 0.15, 3.15]]
    np.testing.assert_allclose(reward_BT, expected_BT, rtol=1e-5)


def test_adaptive_kl_of_lm_human_preferences():
    """lm-human-preferences, AdaptiveKLController, in double precision."""
    coef, found = 0.2, []
    for kl in (12.0, 6.0, 1.0, 7.0):
        coef = adaptive_kl(coef, kl, target=6.0, horizon=1e4, batch=256)
        found.append(coef)
    np.testing.assert_allclose(found, [0.201024, 0.201024, 0.1999947571, 0.2008480681], rtol=0, atol=6e-11)
    assert adaptive_kl(0.2, 12.0, target=6.0, horizon=math.inf, batch=256) == 0.2


def test_score_falls_on_the_last_chosen_token_and_nothing_outside_the_mask():
    logp_old_BT, score_B = jnp.where(MASK_BT > 0, normal(0), jnp.nan), jnp.array([10.0, 20.0, 30.0])
    reward_BT = kl_rewards(logp_old_BT, normal(1), score_B, MASK_BT, kl_coef=0.0)
    expected = np.zeros(MASK_BT.shape)
    expected[[0, 1, 2], [3, 5, 5]] = [10, 20, 30]
    np.testing.assert_array_equal(reward_BT, expected)


def test_a_row_without_chosen_tokens_gets_no_reward():
    assert not np.any(kl_rewards(normal(0), normal(1), jnp.ones(3), jnp.zeros_like(MASK_BT), kl_coef=1.0))


def test_gae_equals_a_loop_over_the_chosen_tokens():
    # Outside the mask stands garbage.
    reward_BT, value_BT = (jnp.where(MASK_BT > 0, normal(seed), jnp.nan) for seed in (0, 1))
    advantage_BT, return_BT = gae(reward_BT, value_BT, MASK_BT, discount=0.9, gae_lambda=0.8)
    expected = np.zeros(MASK_BT.shape)
    for row, chosen in enumerate(MASK_BT):
        advantage = value_after = 0.0
        for t in reversed(np.flatnonzero(chosen)):
            delta = reward_BT[row, t] + 0.9 * value_after - value_BT[row, t]
            advantage = delta + 0.9 * 0.8 * advantage
            value_after, expected[row, t] = value_BT[row, t], advantage
    np.testing.assert_allclose(advantage_BT, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(return_BT, np.where(MASK_BT > 0, expected + value_BT, 0), rtol=1e-5, atol=1e-6)


def test_gae_with_lambda_one_returns_the_discounted_sum_of_rewards_whatever_the_values():
    reward_BT = normal(0)
    returns = [gae(reward_BT, normal(seed), MASK_BT, discount=0.9, gae_lambda=1.0)[1] for seed in (1, 2)]
    np.testing.assert_allclose(*returns, rtol=1e-5, atol=1e-5)
    first = reward_BT[0, 1] + 0.9 * reward_BT[0, 2] + 0.81 * reward_BT[0, 3]
    np.testing.assert_allclose(returns[0][0, 1], first, rtol=1e-5)


def test_whitened_has_mean_zero_and_population_variance_one_over_the_mask():
    x_BT = whiten(jnp.where(MASK_BT > 0, 5 + 3 * normal(0), jnp.nan), MASK_BT)
    chosen = np.array(x_BT)[np.array(MASK_BT) > 0]
    np.testing.assert_allclose([chosen.mean(), chosen.std()], [0, 1], atol=1e-5)
    assert not np.any(np.array(x_BT)[np.array(MASK_BT) == 0])
    assert not np.any(whiten(jnp.full_like(MASK_BT, 4.0), MASK_BT))  # a constant has no variance to divide by


def test_at_ratio_one_the_policy_gradient_is_reinforce():
    logp_BT, advantage_BT = normal(0), normal(1)

    def loss(new_BT):
        return total(policy_loss(new_BT, logp_BT, advantage_BT, MASK_BT, clip_epsilon=0.2))
    found = jax.grad(loss)(logp_BT)
    reinforce = jax.grad(lambda x: -jnp.sum(x * advantage_BT * MASK_BT) / jnp.sum(MASK_BT))(logp_BT)
    np.testing.assert_allclose(found, reinforce, rtol=1e-5, atol=1e-7)


def test_gradient_stops_where_the_ratio_left_the_clip_range_in_the_favoured_direction():
    log_ratio_BT = jnp.log(jnp.array([[1.5, 1.5, 0.5, 0.5]]))
    advantage_BT = jnp.array([[1.0, -1.0, 1.0, -1.0]])

    def loss(logp_BT):
        return policy_loss(logp_BT, jnp.zeros((1, 4)), advantage_BT, jnp.ones((1, 4)), clip_epsilon=0.2)
    gradient_BT = jax.grad(lambda x: total(loss(x)))(log_ratio_BT)
    np.testing.assert_array_equal(gradient_BT == 0, [[True, False, False, True]])
    assert ratio(*loss(log_ratio_BT).metrics['clip_fraction']) == 0.5


def test_kl_old_estimates_the_divergence_and_is_zero_for_the_same_policy():
    old_V, new_V = (jax.nn.log_softmax(normal(seed, (8,))) for seed in (0, 1))
    exact = jnp.sum(jnp.exp(old_V) * (old_V - new_V))
    # Every token as often as the old policy takes it: the mask may be fractional.
    loss = policy_loss(new_V[None], old_V[None], jnp.zeros((1, 8)), jnp.exp(old_V)[None], clip_epsilon=0.2)
    np.testing.assert_allclose(ratio(*loss.metrics['kl_old']), exact, rtol=1e-5)
    same = policy_loss(old_V[None], old_V[None], jnp.zeros((1, 8)), jnp.ones((1, 8)), clip_epsilon=0.2)
    assert same.metrics['kl_old'][0] == 0


def test_log_probabilities_outside_the_mask_reach_neither_loss_nor_gradient():
    logp_old_BT, advantage_BT = normal(1), normal(2)

    def loss(outside):
        def of(logp_BT):
            logp_BT = jnp.where(MASK_BT > 0, logp_BT, outside * logp_BT)
            return total(policy_loss(logp_BT, logp_old_BT, advantage_BT, MASK_BT, clip_epsilon=0.2))
        return jax.value_and_grad(of)(jnp.abs(normal(0)))
    (value, gradient), (expected, expected_gradient) = loss(1e4), loss(1.0)  # exp(1e4) is infinite
    assert value == expected
    np.testing.assert_array_equal(gradient, expected_gradient)


def test_value_loss_takes_the_worse_of_free_and_clipped():
    value_BT, return_BT = jnp.array([[1.0, 1.0, 0.1]]), jnp.array([[2.0, 0.5, 3.0]])

    def loss(value_BT):
        old_BT, mask_BT = jnp.zeros((1, 3)), jnp.ones((1, 3))
        return value_loss(value_BT, old_BT, return_BT, mask_BT, clip_epsilon=0.2, coef=0.1)
    # Clipped to .2, the first is 1.8 away and not 1, the second .3 and not .5; the third is within the range.
    expected = 0.1 * (1.8**2 + 0.5**2 + 2.9**2) / 2 / 3
    np.testing.assert_allclose(total(loss(value_BT)), expected, rtol=1e-6)
    assert jax.grad(lambda x: total(loss(x)))(value_BT)[0, 0] == 0
    np.testing.assert_allclose(ratio(*loss(value_BT).metrics['value_clip_fraction']), 1 / 3, rtol=1e-6)
    assert loss(value_BT).terms['value'].coef == 0.1


def test_supervised_term_is_the_mean_over_its_own_tokens_however_many_the_policy_chose():
    """Eq. 2 of InstructGPT: the two expectations are taken apart, and gamma stands before the second."""
    chats = Loss({'next_token': Term(jnp.float32(12.0), jnp.float32(4.0))}, {})
    policy = policy_loss(normal(0), normal(0), normal(1), MASK_BT, clip_epsilon=0.2)
    joined = join(policy, supervised(chats, coef=27.8))
    np.testing.assert_allclose(total(joined), total(policy) + 27.8 * 3.0, rtol=1e-6)
    assert joined.terms.keys() == {'policy', 'ptx'}

"""Proximal policy optimisation of a token policy under a penalty on its divergence from a reference.

In: log-probabilities, values, scores and masks; index t is the predicted token t everywhere, and the mask is
1 on the tokens that the policy chose (prompts, observations and padding have 0).
Out: per-token rewards, advantages and returns; the policy's and the value's `Loss`; the next KL coefficient.
Left out: sampling (`llm/rollout/`), the order of epochs and minibatches (`llm/stages/ppo.py`).
"""

import math

import jax
import jax.numpy as jnp

from llm.objectives.loss import Loss, Term, ratio, weighted


def kl_rewards(logp_old_BT: jax.Array, logp_ref_BT: jax.Array, score_B: jax.Array, mask_BT: jax.Array, *,
               kl_coef: float | jax.Array) -> jax.Array:
    """reward_BT: -kl_coef * (logp_old - logp_ref) on every chosen token, plus the score on the last one.

    Sec. 2.1 of arXiv:1909.08593 (lm-human-preferences); InstructGPT and torchtune do the same.
    """
    penalty_BT = -kl_coef * (logp_old_BT - logp_ref_BT)
    remaining_BT = jnp.cumsum(mask_BT[:, ::-1], axis=1)[:, ::-1]
    score_BT = jnp.where(remaining_BT == 1, score_B[:, None], 0.0)
    return jnp.where(mask_BT > 0, penalty_BT + score_BT, 0.0)


def gae(reward_BT: jax.Array, value_BT: jax.Array, mask_BT: jax.Array, *, discount: float,
        gae_lambda: float) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation, eq. 16 of arXiv:1506.02438, over the chosen tokens of each row.

        delta_t = reward_t + discount * value_{t+1} - value_t
        advantage_t = delta_t + discount * gae_lambda * advantage_{t+1}

    t+1 is the next chosen token: prompts, observations between turns and padding are stepped over. After the
    last one value and advantage are 0, as the episode ended there.

    Args:
      value_BT: value of the state before token t was chosen.
    Returns: advantage_BT and return_BT = advantage + value, both 0 where the mask is 0 and without gradient.
    """
    def backwards(after, now):
        advantage_after_B, value_after_B = after
        reward_B, value_B, chosen_B = now
        delta_B = reward_B + discount * value_after_B - value_B
        advantage_B = delta_B + discount * gae_lambda * advantage_after_B
        kept = (jnp.where(chosen_B, advantage_B, advantage_after_B),
                jnp.where(chosen_B, value_B, value_after_B))
        return kept, jnp.where(chosen_B, advantage_B, 0.0)

    reward_BT, value_BT = jax.lax.stop_gradient((reward_BT, value_BT))
    zero_B = jnp.zeros_like(value_BT[:, 0])
    columns = (reward_BT.T, value_BT.T, mask_BT.T > 0)
    _, advantage_TB = jax.lax.scan(backwards, (zero_B, zero_B), columns, reverse=True)
    return advantage_TB.T, jnp.where(mask_BT > 0, advantage_TB.T + value_BT, 0.0)


def whiten(x_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """(x - mean) / sqrt(variance + 1e-8) over the mask of the whole batch; 0 elsewhere.

    Convention: population variance and the mean removed, as lm-human-preferences whitens advantages (TRL's
    `masked_whiten` divides by n - 1). Call it on the global batch, before minibatches are cut.
    """
    mean = ratio(*weighted(x_BT, mask_BT))
    variance = ratio(*weighted(jnp.square(x_BT - mean), mask_BT))
    return jnp.where(mask_BT > 0, (x_BT - mean) * jax.lax.rsqrt(variance + 1e-8), 0.0)


def policy_loss(logp_BT: jax.Array, logp_old_BT: jax.Array, advantage_BT: jax.Array, mask_BT: jax.Array, *,
                clip_epsilon: float) -> Loss:
    """Mean over chosen tokens of -min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A).

    Eq. 7 of arXiv:1707.06347, with ratio = exp(logp - logp_old) per token.

    Returns: term `policy`; metrics `clip_fraction` (tokens whose gradient the clip removed) and `kl_old`, an
      estimate of KL(old || new) from the tokens of old, by ratio - 1 - log(ratio), which is never negative.
    """
    # Masked first: a ratio of meaningless log-probabilities may be infinite, and 0 * inf is NaN in gradients.
    log_ratio_BT = jnp.where(mask_BT > 0, logp_BT - logp_old_BT, 0.0)
    ratio_BT = jnp.exp(log_ratio_BT)
    free_BT = ratio_BT * advantage_BT
    clipped_BT = jnp.clip(ratio_BT, 1 - clip_epsilon, 1 + clip_epsilon) * advantage_BT
    loss_BT = -jnp.minimum(free_BT, clipped_BT)
    return Loss({'policy': Term(*weighted(loss_BT, mask_BT))},
                {'clip_fraction': weighted((clipped_BT < free_BT).astype(jnp.float32), mask_BT),
                 'kl_old': weighted(ratio_BT - 1 - log_ratio_BT, mask_BT)})


def value_loss(value_BT: jax.Array, value_old_BT: jax.Array, return_BT: jax.Array, mask_BT: jax.Array, *,
               clip_epsilon: float, coef: float) -> Loss:
    """Mean over chosen tokens of max((v - R)^2, (clip(v, v_old - eps, v_old + eps) - R)^2) / 2.

    As in lm-human-preferences and OpenAI's baselines: the value moves at most eps from where it was in the
    rollout before its gradient stops; the half is theirs too.

    Returns: term `value` with that coefficient; metric `value_clip_fraction`.
    """
    clipped_BT = jnp.clip(value_BT, value_old_BT - clip_epsilon, value_old_BT + clip_epsilon)
    free_BT, clipped_BT = jnp.square(value_BT - return_BT), jnp.square(clipped_BT - return_BT)
    return Loss({'value': Term(*weighted(jnp.maximum(free_BT, clipped_BT) / 2, mask_BT), coef=coef)},
                {'value_clip_fraction': weighted((clipped_BT > free_BT).astype(jnp.float32), mask_BT)})


def supervised(loss: Loss, *, coef: float) -> Loss:
    """The supervised term of PPO-ptx: `coef` times the mean of -log p over the target tokens of `next_token`.

    Eq. 2 of arXiv:2203.02155 (its gamma, 27.8). Deviation: that one mixes in pretraining text, whole; which text and
    which of its tokens count is the caller's choice here.

    Returns: term `ptx`.
    """
    return Loss({'ptx': loss.terms['next_token']._replace(coef=coef)}, metrics={})


def adaptive_kl(kl_coef: float, kl: float, *, target: float, horizon: float, batch: int) -> float:
    """The next iteration's KL coefficient: kl_coef * (1 + clip(kl / target - 1, -.2, .2) * batch / horizon).

    Sec. 2.2 of arXiv:1909.08593, in Python doubles.

    Args:
      kl: mean over the batch's samples of the sum over tokens of logp - logp_ref, nats.
      target: nats per sample, positive.
      horizon: samples over which an error of 1 would change the coefficient e-fold; inf keeps it fixed.
      batch: samples since the last call.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef if math.isinf(horizon) else kl_coef * (1 + error * batch / horizon)

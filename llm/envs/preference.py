"""The one-turn environment: a prompt, one answer, and a frozen scorer's judgement of it.

In: prompts; answers; a reward model with the mean and deviation of its scores (from its manifest).
Out: observations (the prompts) and rewards: normalised scores, less a penalty where the end token is missing.
Left out: sampling (`llm.rollout`), the KL penalty (it belongs to the objective, `llm.objectives.ppo`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from llm.rollout.packing import Packing


class Judgement(NamedTuple):
    """What an answer earned; the episode is over."""

    reward_B: jax.Array  # float32
    score_B: jax.Array  # float32; the reward before the penalty
    ended_B: jax.Array  # bool; whether the answer has its end token


Prompts = Callable[[Any], dict[str, Any]]  # host arrays: seeds [B] -> `tokens_BT`, right-padded, and `length_B`


class Env(NamedTuple):
    """reset(seeds [B]) -> observation: prompt rows `tokens_BT`, `length_B`, and `index_B`, the seeds.
    step(scorer's parameters, tokens_BT, length_B, packing) -> Judgement of the finished rows, prompt and answer, which
    are read as they are packed.
    """

    reset: Prompts
    step: Callable[[Any, jax.Array, jax.Array, Packing], Judgement]


def make_env(prompts: Prompts, model: Transformer, *, mean: float, deviation: float, missing_eos_penalty: float,
             eos_id: int) -> Env:
    """The environment of these prompts and this scorer; a seed is a position in the stream of prompts.

    A score of 0 is that of the SFT policy's mean answer, and 1 is one deviation better. The penalty, in
    deviations, is taken where the last token is not the end token: an unfinished answer is worth less.
    """
    def reset(seed_B: Any) -> dict[str, Any]:
        return {**prompts(seed_B), 'index_B': seed_B.astype('int32')}

    def step(params: Any, tokens_BT: jax.Array, length_B: jax.Array, packing: Packing) -> Judgement:
        score_RW = model.apply({'params': params}, packing.lay(tokens_BT), packing.positions_RW,
                               MaskSpec(segments_BT=packing.segments_RW))
        score_B = (_last(packing.back(score_RW, len(tokens_BT)), length_B) - mean) / deviation
        ended_B = _last(tokens_BT, length_B) == eos_id
        return Judgement(score_B - missing_eos_penalty * (1.0 - ended_B), score_B, ended_B)
    return Env(reset, step)


def whole_rows(tokens_BT: jax.Array) -> tuple[jax.Array, MaskSpec]:
    """Positions and mask of right-padded rows, one causal piece each: no token sees the padding after it."""
    return jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape), MaskSpec()


def final_scores(model: Transformer, params: Any, tokens_BT: jax.Array, length_B: jax.Array) -> jax.Array:
    """score_B, float32: the scalar head at each row's last token."""
    return _last(model.apply({'params': params}, tokens_BT, *whole_rows(tokens_BT)), length_B)


def _last(x_BT: jax.Array, length_B: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BT, length_B[:, None] - 1, axis=1)[:, 0]

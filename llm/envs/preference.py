"""The one-turn environment: a prompt, one answer, and a frozen scorer's judgement of it.

In: prompt rows; a reward model's parameters with the mean and deviation of its scores (from its manifest).
Out: observations (prompts) and rewards (normalised scores, less a penalty where the end token is missing).
Left out: sampling (`llm.rollout`), the KL penalty (it belongs to the objective, `llm.objectives.ppo`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer


class Normalizer(NamedTuple):
    """Mean and deviation of the reward model's scores of the SFT policy's own answers."""

    mean: float
    deviation: float


def positions_and_mask(tokens_BT: jax.Array, length_B: jax.Array) -> tuple[jax.Array, MaskSpec]:
    """One causal piece a row, right-padded: padding is never seen by a token of the piece."""
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
    return positions_BT, MaskSpec(segments_BT=(positions_BT < length_B[:, None]).astype(jnp.int32))


def token_values(model: Transformer, params: Any, tokens_BT: jax.Array, length_B: jax.Array, *,
                 rngs: dict[str, jax.Array] | None = None) -> jax.Array:
    """The scalar head at every token, [B, T] float32, not normalised. With `rngs`, dropout is drawn."""
    positions_BT, mask = positions_and_mask(tokens_BT, length_B)
    return model.apply({'params': params}, tokens_BT, positions_BT, mask, deterministic=rngs is None, rngs=rngs)


def final_scores(model: Transformer, params: Any, tokens_BT: jax.Array, length_B: jax.Array, *,
                 rngs: dict[str, jax.Array] | None = None) -> jax.Array:
    """The score of each finished answer, [B] float32: the scalar head at its last token."""
    value_BT = token_values(model, params, tokens_BT, length_B, rngs=rngs)
    return jnp.take_along_axis(value_BT, length_B[:, None] - 1, axis=1)[:, 0]


def ended(tokens_BT: jax.Array, length_B: jax.Array, eos_id: int) -> jax.Array:
    """Whether the last token is the end token, [B] bool."""
    return jnp.take_along_axis(tokens_BT, length_B[:, None] - 1, axis=1)[:, 0] == eos_id

"""What a rollout hands to reinforcement learning: arrays with one meaning each, documented here once.

Left out: how they are collected (`generate.py`, `llm.envs`) and what is made of them (`llm.objectives.ppo`).
"""

from typing import NamedTuple

import jax


class Trajectories(NamedTuple):
    """B samples of T tokens. Index t is the predicted token t everywhere: *_BT[b, t] speaks of tokens_BT[b, t].

    Nothing is re-tokenised: tokens_BT are those that were fed to and drawn from the policy. Prompts,
    observations and padding have mask 0, and 0 in the float fields.
    """

    tokens_BT: jax.Array  # int32; prompt and answer, right-padded
    mask_BT: jax.Array  # float32; 1 on the tokens the policy chose, the end token included
    logp_old_BT: jax.Array  # float32, nats; by the policy that sampled, at the sampling temperature
    logp_ref_BT: jax.Array  # float32, nats; by the frozen reference, at the same temperature
    value_BT: jax.Array  # float32; expected return before token t is chosen
    reward_BT: jax.Array  # float32; the environment's, at the last token of the turn that earned it
    turn_BT: jax.Array  # int32; which of the policy's turns chose the token, from 0
    group_B: jax.Array  # int32; samples of the same prompt share a group
    weights_version_B: jax.Array  # int32; the training step whose weights sampled

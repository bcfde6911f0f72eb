"""The four models of PPO, and the compiled programs that only read them: sampling, and judging what was sampled.

In: a `Run` of the stage, prompts. Out: `Rollout`, whose result are `Trajectories`; log-probabilities and values.
Left out: learning from them (`ppo.py`), the decode loop (`rollout.generate`), what answers are worth to people
(`judges`).

All models are read at the sampling temperature. Answers may be sampled under other axis rules than those of training
(`rollout_rules`), on the same mesh: the policy is then laid out anew for every rollout.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from llm.envs.preference import Env, make_env
from llm.execution import ExecConfig
from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from llm.objectives.log_probs import TokenLogProbs, token_log_probs
from llm.rollout.generate import Generation, make_generate
from llm.rollout.packing import make_pack, Packing
from llm.rollout.trajectories import Trajectories
from llm.run import Run, initializer
from llm.sharding import AxisRules
from llm.train_state import abstract_params, shardings


class Models(NamedTuple):
    """The shapes of model; the reference has the policy's, the value its parent's with a scalar head."""

    policy: Transformer
    scorer: Transformer
    value: Transformer


def models_of(run: Run) -> Models:
    policy, scorer = run.model_config, run.parents['reward_from'].model_config
    value = scorer if run.config.value_from == 'reward' else policy
    return Models(Transformer(policy, run.config.exec),
                  *(Transformer(shape, run.config.exec, head='scalar') for shape in (scorer, value)))


def initial(run: Run) -> Callable[[jax.Array], dict[str, Any]]:
    """key -> parameters of the shape that this stage trains."""
    models = models_of(run)
    return lambda key: {'policy': initializer(models.policy)(key), 'value': initializer(models.value)(key)}


def load_frozen(run: Run) -> dict[str, Any]:
    """Parameters that never change: the reference and the scorer."""
    models = models_of(run)
    return {'reference': run.load('init_from', models.policy), 'scorer': run.load('reward_from', models.scorer)}


def parent_weights(run: Run, frozen: dict[str, Any]) -> dict[str, Any]:
    """What training begins with. Not kept by name: the state has a copy of its own."""
    from_scorer = run.config.value_from == 'reward'
    value = frozen['scorer'] if from_scorer else run.load('init_from', models_of(run).value, trunk_only=True)
    return {'policy': frozen['reference'], 'value': value}


def environment(run: Run, models: Models, prompts: Callable[[np.ndarray], dict[str, np.ndarray]]) -> Env:
    """Prompts, judged by the scorer in deviations of its scores of the SFT policy's own answers."""
    return make_env(prompts, models.scorer, **run.parents['reward_from'].manifest.reward,
                    missing_eos_penalty=run.config.missing_eos_penalty, eos_id=run.special_ids['eos'])


class Rollout(NamedTuple):
    """Compiled programs, one after the other; called, they are all: (Trajectories, seen)."""

    reshard: Callable  # policy -> the policy as sampling wants it laid out
    generate: Callable  # (policy, prompts, key) -> Generation
    packer: Callable  # mask_BT -> how any of these trajectories are packed: (their numbers, [P, M]) -> Packing
    read: Callable  # (value, frozen, Generation, index_B, version, packing) -> (Trajectories, means of what was seen)

    def sample(self, policy: Any, prompts: dict[str, jax.Array], key: jax.Array) -> Generation:
        return self.generate(self.reshard(policy), prompts, key)

    def score(self, value: Any, frozen: Any, made: Generation, index_B: jax.Array,
              version: Any) -> tuple[Trajectories, dict[str, jax.Array]]:
        packing = self.packer(made.mask_BT)(np.arange(len(made.mask_BT))[None])
        return self.read(value, frozen, made, index_B, version, packing)

    def __call__(self, params, frozen, prompts, key, version=0) -> tuple[Trajectories, dict[str, jax.Array]]:
        made = self.sample(params['policy'], prompts, key)
        return self.score(params['value'], frozen, made, prompts['index_B'], version)


def make_rollout(run: Run, models: Models, env: Env) -> Rollout:
    """The policy answers; the environment judges, the reference and the value read what was said.

    Prompts have tokens_BT, length_B and index_B. A prompt of length 0 fills up a held-out batch, and what comes of it
    means nothing.
    """
    config, special = run.config, run.special_ids
    answer = make_generate(models.policy.clone(exec=rollout_exec(run)), max_new_tokens=config.max_new_tokens,
                           temperature=config.temperature, eos_id=special['eos'], pad_id=special['pad'])

    def generate(policy, prompts, key):
        return answer(policy, prompts['tokens_BT'], jnp.maximum(prompts['length_B'], 1), prompts['index_B'], key)

    def read(value, frozen, made, index_B, version, packing):
        judged = env.step(frozen['scorer'], made.tokens_BT, made.length_B, packing)
        mask_BT, count = made.mask_BT, len(made.mask_BT)
        rows = packing.batch({'tokens_BT': made.tokens_BT, 'mask_BT': mask_BT})
        reference = read_log_probs(run, models, frozen['reference'], rows)
        last_BT = jnp.cumsum(mask_BT[:, ::-1], axis=1)[:, ::-1] * mask_BT == 1
        trajectories = Trajectories(
            tokens_BT=made.tokens_BT, mask_BT=mask_BT, logp_old_BT=made.logp_BT,
            logp_ref_BT=packing.back(reference.logp_BT, count),
            value_BT=packing.back(read_values(run, models, value, rows), count) * mask_BT,
            reward_BT=jnp.where(last_BT, judged.reward_B[:, None], 0.0),
            turn_BT=jnp.zeros_like(made.tokens_BT), group_B=index_B,
            weights_version_B=jnp.full_like(index_B, version))
        kl_B = jnp.sum(trajectories.logp_old_BT - trajectories.logp_ref_BT, axis=1)
        seen = {'reward': judged.reward_B, 'score': judged.score_B, 'kl': kl_B, 'length': jnp.sum(mask_BT, axis=1),
                'ended': judged.ended_B.astype(jnp.float32)}
        return trajectories, jax.tree.map(jnp.mean, seen)
    return Rollout(make_reshard(run, models), jax.jit(generate, out_shardings=run.rows_sharding),
                   functools.partial(packer, run), jax.jit(read, out_shardings=(run.rows_sharding, None)))


def packer(run: Run, mask_BT: jax.Array) -> Callable[[np.ndarray], Packing]:
    """How any of these trajectories are packed, by their numbers. Their lengths go to the host here.

    What a token costs is taken from the policy; the other models are much the same.
    """
    chosen_BT = multihost_utils.process_allgather(mask_BT, tiled=True) > 0
    length_B = chosen_BT.shape[1] - chosen_BT[:, ::-1].argmax(1)
    return functools.partial(make_pack(run.model_config, run.config.exec), length_B=length_B,
                             chosen_B=chosen_BT.sum(1), length=run.config.seq_len,
                             most_chosen=run.config.max_new_tokens)


def rollout_exec(run: Run) -> ExecConfig:
    """How the policy is run while it samples."""
    exec_config = run.config.exec
    return dataclasses.replace(exec_config, rules=exec_config.rules | run.config.rollout_rules)


def make_reshard(run: Run, models: Models) -> Callable[[Any], Any]:
    """The identity, compiled, from the training's layout of the policy to that of sampling."""
    if not run.config.rollout_rules:
        return lambda policy: policy
    return jax.jit(lambda policy: policy, out_shardings=shardings(rollout_policy(run, models)))


def rollout_policy(run: Run, models: Models) -> Any:
    """Shapes of the policy's parameters as sampling wants them laid out."""
    rules = AxisRules.from_config(rollout_exec(run).rules)
    return abstract_params(initializer(models.policy), run.mesh, rules)


def read_log_probs(run: Run, models: Models, params: Any, rows: dict[str, jax.Array]) -> TokenLogProbs:
    """Of each chosen token (mask 1) of `Packing.batch` given those before it, at the sampling temperature; 0 elsewhere.

    Logits are those of place_BS alone.
    """
    variables, mask_BT, place_BS = {'params': params}, rows['mask_BT'], rows['place_BS']
    x_BTD = _before(models.policy.apply(variables, *_placed(rows), method='hidden'))
    found = token_log_probs(jnp.take_along_axis(x_BTD, place_BS[:, :, None], 1),
                            models.policy.apply(variables, method='unembedding'),
                            jnp.take_along_axis(rows['tokens_BT'], place_BS, 1), temperature=run.config.temperature,
                            **models.policy.log_probs_options())
    row_B1 = jnp.arange(len(mask_BT))[:, None]
    return jax.tree.map(lambda value_BS: mask_BT * jnp.zeros_like(mask_BT).at[row_B1, place_BS].set(
        value_BS, unique_indices=True), found)


def read_values(run: Run, models: Models, params: Any, rows: dict[str, jax.Array]) -> jax.Array:
    """value_BT: what the value model expects before token t, in deviations of the scorer; meaningless where a
    trajectory begins."""
    value_BT = models.value.apply({'params': params}, *_placed(rows))
    if run.config.value_from == 'reward':  # it speaks in the scorer's units; a new head has none to be rid of
        normalizer = run.parents['reward_from'].manifest.reward
        value_BT = (value_BT - normalizer['mean']) / normalizer['deviation']
    return _before(value_BT)


def _placed(rows: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, MaskSpec]:
    """What a model reads."""
    return rows['tokens_BT'], rows['positions_BT'], MaskSpec(segments_BT=rows['segments_BT'])


def _before(x):
    """What stands at t moves to t + 1, the token that it predicts."""
    return jnp.roll(x, 1, axis=1)

"""PPO iterations with Tunix, policy, reference, reward and value model of one size.

In: a job of stage ppo. Out: seconds of an iteration. Tunix answers the prompts of a minibatch, makes all its epochs on
them and goes on to the next, where we answer all prompts first: as many answers and as many updates.
"""

import time
from typing import Any

from flax import nnx
import jax
from tunix.rl.ppo.ppo_learner import PPOConfig, PPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig

from tools.bench import draws
from tools.bench.peers.tunix_models import adamw, language_model, PACKAGES, scorer, Tokenizer
from tools.bench.serve import serve, Work

_STEPS = 1_000_000  # more than are asked for


def make(job: dict[str, Any]) -> Work:
    """An iteration a turn, on new prompts each."""
    config, tokenizer, turns = job['config'], Tokenizer(), [0]
    models = cluster(job)
    learner = PPOLearner(models, PPOConfig(num_iterations=config['epochs']))

    def turn() -> dict[str, float]:
        turns[0] += 1
        prompts = draws.tokens([config['max_prompt_tokens']] * config['rollout_batch'], job['model']['vocab_size'],
                               job['seed'] + turns[0])
        began = time.perf_counter()
        learner.train([{'prompts': [*map(tokenizer.decode, prompts)]}])
        jax.block_until_ready([nnx.state(model) for model in (models.actor_trainer.model, models.critic_trainer.model)])
        return {'s': time.perf_counter() - began}
    return Work(turn)


def cluster(job: dict[str, Any]) -> RLCluster:
    """All models on the one device; values and rewards from models of different numbers."""
    config, model, seed = job['config'], job['model'], job['seed']
    tokens = config['max_prompt_tokens'], config['max_new_tokens']
    mesh = jax.make_mesh((1, 1), ('fsdp', 'tp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return RLCluster(
        actor=language_model(model, seed), reference=language_model(model, seed), critic=scorer(model, seed + 1),
        reward=scorer(model, seed + 2), tokenizer=Tokenizer(), cluster_config=ClusterConfig(
            role_to_mesh={role: mesh for role in Role},
            training_config=RLTrainingConfig(
                actor_optimizer=adamw(job['optim'], config['optim.learning_rate']),
                critic_optimizer=adamw(job['optim'], config['value_learning_rate']),
                mini_batch_size=config['batch_size'], eval_every_n_steps=_STEPS, max_steps=_STEPS),
            rollout_config=RolloutConfig(max_prompt_length=tokens[0], max_tokens_to_generate=tokens[1],
                                         kv_cache_size=sum(tokens), temperature=1.0, top_p=1.0)))


if __name__ == '__main__':
    serve(make, PACKAGES)

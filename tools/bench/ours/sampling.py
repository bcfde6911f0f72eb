"""Generation: the rollout of PPO without the rest of it.

In: a job of stage ppo: `config.rollout_batch` prompts of `config.max_prompt_tokens` random tokens each; `limits`, if
the answers' lengths differ. Out: new tokens a second; of an answer no more count than were asked for.
Left out: scoring and learning (`ppo.py`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.main import enable_compilation_cache
from llm.model.transformer import train_flops_per_token
from llm.optim import make_optimizer
from llm.rollout.generate import Generation, make_generate
from llm.run import initializer, Run
from llm.sharding import global_batch
from llm.stages.ppo_models import models_of
from llm.train_state import create
from tools.bench import draws
from tools.bench.ours.runs import paper_run
from tools.bench.ours.training import PACKAGES
from tools.bench.serve import serve, timed, Work


def make(job: dict[str, Any]) -> Work:
    """One batch of answers a turn, each turn with another key."""
    enable_compilation_cache()
    run = paper_run(job)
    config, policy = run.config, models_of(run).policy
    params = create(initializer(policy), make_optimizer(config.optim), config.seed, run.mesh, run.rules).params
    most_B = limits(job)
    batch = global_batch(lambda rows: prompts(run, rows), np.arange(config.rollout_batch), run.rows_sharding)
    generate, turn = answerer(run, most_B), [0]

    def answers() -> float:
        turn[0] += 1
        made = jax.block_until_ready(generate(params, batch, jax.random.key(turn[0])))
        said_B = np.asarray(made.mask_BT).sum(axis=1)
        return float(np.minimum(said_B, most_B).sum())
    # A forward pass is a third of a training step; each new token pays for its share of the prompts, too.
    tokens = config.max_prompt_tokens * config.rollout_batch + most_B.sum()
    return Work(timed('tokens', answers), train_flops_per_token(policy.config, config.seq_len // 2) / 3 * tokens
                / most_B.sum())


def answerer(run: Run, most_B: np.ndarray) -> Callable[[Any, dict[str, jax.Array], jax.Array], Generation]:
    """(params, prompts, key) -> answers of at most so many tokens each: the stage's decode loop, compiled."""
    config, special = run.config, run.special_ids
    answer = make_generate(models_of(run).policy, max_new_tokens=config.max_new_tokens, temperature=config.temperature,
                           eos_id=special['eos'], pad_id=special['pad'])
    return jax.jit(lambda params, batch, key: answer(params, batch['tokens_BT'], batch['length_B'], batch['index_B'],
                                                     key, jnp.asarray(most_B)))


def limits(job: dict[str, Any]) -> np.ndarray:
    """New tokens that each request asks for."""
    count = job['config']['rollout_batch']
    if 'limits' not in job:
        return np.full(count, job['config']['max_new_tokens'])
    return np.array(draws.lengths(count, *job['limits'], job['seed']))


def prompts(run: Run, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Whole prompts of random tokens, the same for the same rows."""
    config = run.config
    tokens_BT = np.random.default_rng([0, *rows]).integers(
        3, run.model_config.vocab_size, (len(rows), config.max_prompt_tokens), np.int32)
    return {'tokens_BT': tokens_BT, 'length_B': np.full(len(rows), config.max_prompt_tokens, np.int32),
            'index_B': rows.astype(np.int32)}


if __name__ == '__main__':
    serve(make, PACKAGES)

"""A PPO iteration: rollout, score, epochs of minibatches, with four models.

In: a job of stage ppo; `ends`, the chance of an end token at each token, where answers are to differ in length.
Out: seconds of the stage's own iteration.
Left out: prompts from disk, evaluation, saving.
"""

import functools
import math
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm.loop import fit
from llm.main import enable_compilation_cache
from llm.programs import make_step
from llm.run import initializer, Run
from llm.stages import ppo
from llm.stages.ppo_models import environment, initial, make_rollout, models_of
from llm.train_state import create
from tools.bench.ours.runs import paper_run
from tools.bench.ours.sampling import prompts
from tools.bench.ours.training import PACKAGES
from tools.bench.serve import serve, Work


def make(job: dict[str, Any]) -> Work:
    """An iteration a turn, on new prompts each."""
    enable_compilation_cache()
    run = paper_run(job)
    config, models, tx = run.config, models_of(run), ppo.optimizer(run.config)
    rows = functools.partial(prompts, run)
    rollout = make_rollout(run, models, environment(run, models, rows))
    policy, scorer = born(run, initializer(models.policy), 0), born(run, initializer(models.scorer), 1)
    if 'ends' in job:
        policy = inclined_to_end(policy, run.special_ids['eos'], job['ends'])
    state = run.train_state(initial(run), tx, {'policy': policy, 'value': scorer})
    step = make_step(run, functools.partial(ppo.clipped_loss, run, models), tx, state)
    iteration = ppo.make_iteration(run, rollout, {'reference': policy, 'scorer': scorer}, step,
                                   {'kl_coef': config.kl_coef})
    steps = fit(state, iteration, run.batches(rows, 0, config.rollout_batch), start=0, stop=sys.maxsize)

    def turn() -> dict[str, float]:
        began = time.perf_counter()
        _, state, metrics = next(steps)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - began
        assert math.isfinite(metrics['loss'])
        return {'s': seconds}
    programs = ppo.programs(run).programs.values()
    return Work(turn, sum(program.calls * program.model_flops for program in programs))


def born(run: Run, init: Any, seed: int) -> Any:
    """Parameters as the model's initializer draws them."""
    return create(init, optax.identity(), seed, run.mesh, run.rules).params


def inclined_to_end(params: Any, eos: int, chance: float) -> Any:
    """A tied model that ends with about that chance at any token, whatever was said before.

    The first width of every token's embedding is 1, which the layers carry to the last norm; the end token's is more,
    by what its logit has to be above the others.
    """
    table_VD = params['embed']['tokens']
    vocab, width = table_VD.shape
    carried = 1 / math.sqrt((1 + (width - 1) * float(jnp.var(table_VD))) / width)
    above = math.log((vocab - 1) * chance / (1 - chance)) / carried
    return {**params, 'embed': {**params['embed'], 'tokens': table_VD.at[:, 0].set(1.0).at[eos, 0].add(above)}}


if __name__ == '__main__':
    serve(make, PACKAGES)

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
import numpy as np
import optax
from scipy import optimize, special

from llm.envs.preference import whole_rows
from llm.loop import fit
from llm.main import enable_compilation_cache
from llm.model.transformer import Transformer
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
        policy = inclined_to_end(models.policy, policy, run.special_ids['eos'], job['ends'])
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


def inclined_to_end(model: Transformer, params: Any, eos: int, chance: float) -> Any:
    """A tied model that ends with about that chance at any token, whatever was said before.

    The first width of every token's embedding is 1, which the layers carry to the last norm; the end token's is more,
    by what makes its mean chance after random tokens right.
    """
    table_VD = params['embed']['tokens'].at[:, 0].set(1.0)
    tokens_BT = jax.random.randint(jax.random.key(0), (16, 16), 0, len(table_VD))
    x_BTD = model.apply({'params': {**params, 'embed': {**params['embed'], 'tokens': table_VD}}}, tokens_BT,
                        *whole_rows(tokens_BT), method='hidden')
    logits_BTV = np.asarray(x_BTD @ table_VD.T, np.float64)
    others_BT = special.logsumexp(np.delete(logits_BTV, eos, axis=2), axis=2)

    def too_likely(above: float) -> float:
        return special.expit(logits_BTV[..., eos] + above * np.asarray(x_BTD[..., 0]) - others_BT).mean() - chance
    above = optimize.brentq(too_likely, -10.0, 10.0)
    return {**params, 'embed': {**params['embed'], 'tokens': table_VD.at[eos, 0].add(above)}}


if __name__ == '__main__':
    serve(make, PACKAGES)

"""Sampler and trainer read one policy: the same log-probability of each chosen token, at any temperature."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from llm.pipeline import open_step
from llm.stages import ppo
from tests.stages import exactness


@pytest.mark.parametrize('temperature', (1.0, 0.5))
def test_the_sampler_and_the_trainer_agree(temperature, finished_pipeline):
    folder = exactness.folder_of('ppo', finished_pipeline)
    run, _, params = open_step(f'{folder}@4', say=print, progress=lambda *of: None)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, temperature=temperature))
    with jax.set_mesh(run.mesh):
        models, frozen = ppo.models_of(run), ppo.load_frozen(run)
        # Away from its start and made sharper, so that the policy is not the reference, nor nearly uniform.
        params['policy'] = jax.tree.map(lambda x: 3 * x, params['policy'])
        words = np.random.default_rng(0)
        tokens_BT = words.integers(10, run.model_config.vocab_size, (16, 24), dtype=np.int32)
        prompts = {'tokens_BT': tokens_BT, 'length_B': np.arange(9, 25, dtype=np.int32),
                   'index_B': np.arange(16, dtype=np.int32)}
        rollout = ppo.make_rollout(run, models, ppo.environment(run, models, None))
        made, _ = rollout(params, frozen, prompts, jax.random.key(0))
        packing = rollout.packer(made.mask_BT)(np.arange(16))
        rows = packing.batch({'tokens_BT': made.tokens_BT, 'mask_BT': made.mask_BT})
        read = jax.jit(functools.partial(ppo.read_log_probs, run, models))(params['policy'], rows)
        read = jax.tree.map(lambda x_RW: packing.back(x_RW, 16), read)
    chosen_BT = np.asarray(made.mask_BT) > 0
    logp_old_BT, logp_BT = np.asarray(made.logp_old_BT), np.asarray(read.logp_BT)
    assert chosen_BT.sum() > 64 and logp_BT[chosen_BT].std() > 0.5
    np.testing.assert_allclose(logp_old_BT[chosen_BT], logp_BT[chosen_BT], rtol=0, atol=1e-5)
    assert not logp_old_BT[~chosen_BT].any() and not logp_BT[~chosen_BT].any()

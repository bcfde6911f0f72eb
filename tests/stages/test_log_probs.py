"""Sampler and trainer read one policy: the same log-probability of each chosen token, at any temperature."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from llm.objectives.loss import total
from llm.pipeline import open_step
from llm.rollout.packing import pack
from llm.stages import ppo, ppo_models
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
        packing = rollout.packer(made.mask_BT)(np.arange(16)[None])
        rows = packing.batch({'tokens_BT': made.tokens_BT, 'mask_BT': made.mask_BT})
        read = jax.jit(functools.partial(ppo.read_log_probs, run, models))(params['policy'], rows)
        read = jax.tree.map(lambda x_RW: packing.back(x_RW, 16), read)
    chosen_BT = np.asarray(made.mask_BT) > 0
    logp_old_BT, logp_BT = np.asarray(made.logp_old_BT), np.asarray(read.logp_BT)
    assert chosen_BT.sum() > 64 and logp_BT[chosen_BT].std() > 0.5
    np.testing.assert_allclose(logp_old_BT[chosen_BT], logp_BT[chosen_BT], rtol=0, atol=1e-5)
    assert not logp_old_BT[~chosen_BT].any() and not logp_BT[~chosen_BT].any()


def test_what_is_packed_teaches_the_same(finished_pipeline):
    run, _, params = open_step(f"{exactness.folder_of('ppo', finished_pipeline)}@4", say=print,
                               progress=lambda *of: None)
    draw, shape = np.random.default_rng(0), (16, run.config.seq_len)
    length_B, chosen_B = draw.integers(4, shape[1] // 2, 16), draw.integers(1, 4, 16)
    place_T = np.arange(shape[1])[None]
    chosen_BT = (place_T < length_B[:, None]) & (place_T >= (length_B - chosen_B)[:, None])
    fields = {name: np.where(chosen_BT, draw.normal(size=shape), 0).astype(np.float32)
              for name in ('logp_old_BT', 'value_BT', 'return_BT', 'advantage_BT')}
    fields |= {'mask_BT': chosen_BT.astype(np.float32), 'tokens_BT': draw.integers(10, 300, shape, dtype=np.int32)}
    with jax.set_mesh(run.mesh):
        models, which = ppo.models_of(run), np.arange(16)[None]
        fields['logp_old_BT'] -= 5.0 * chosen_BT  # near what a policy says, so that ratios are not all clipped
        packings = [ppo_models.packer(run, fields['mask_BT'])(which),
                    pack(which, length_B, chosen_B, length=shape[1], most_chosen=run.config.max_new_tokens,
                         price=float, ways=16)]
        learn = jax.jit(jax.grad(lambda params, batch: (
            lambda loss: (total(loss), loss))(ppo.clipped_loss(run, models, params, None, batch, None)), has_aux=True))
        (packed, said), (alone, said_alone) = [learn(params, packing.batch(fields)) for packing in packings]
    assert len(packings[0].source_RW) < len(packings[1].source_RW) == 16
    assert all(np.abs(leaf).max() > 1e-4 for leaf in (packed['policy']['embed']['tokens'],
                                                      packed['value']['scalar_head']['w']))
    for one, other in zip(jax.tree.leaves((packed, said)), jax.tree.leaves((alone, said_alone))):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)

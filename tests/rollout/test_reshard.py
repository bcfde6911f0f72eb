"""Answers sampled under other axis rules than those of training are the same answers."""

import dataclasses

import jax
import numpy as np
import pytest

from llm.execution import MeshConfig
from llm.pipeline import open_step
from llm.sharding import make_mesh
from llm.stages import ppo
from tests.stages import exactness

TRAINING = {'embed': ('fsdp', 'tensor'), 'batch': ('data', 'fsdp', 'tensor'), 'vocab': (), 'heads': (), 'kv_heads': (),
            'mlp': (), 'act_heads': (), 'act_kv_heads': (), 'act_mlp': (), 'act_vocab': ()}
SAMPLING = {'embed': (), 'batch': ('data', 'fsdp'),
            **{name: ('tensor',) for name, axes in TRAINING.items() if not axes}}


@pytest.mark.parametrize('temperature', [1.0, 1e-4])
def test_tensor_parallel_decoding_says_the_same(temperature, finished_pipeline):
    """At 1e-4 sampling is greedy but for ties of less than that."""
    folder = exactness.folder_of('ppo', finished_pipeline)
    opened, _, _ = open_step(f'{folder}@4', say=print, progress=lambda *of: None)
    prompts = {'tokens_BT': np.random.default_rng(0).integers(10, 300, (16, 24), dtype=np.int32),
               'length_B': np.arange(9, 25, dtype=np.int32), 'index_B': np.arange(16, dtype=np.int32)}
    made = []
    for rollout_rules in ({}, SAMPLING):
        mesh = MeshConfig(data=1, fsdp=4, tensor=2)
        config = dataclasses.replace(
            opened.config, temperature=temperature, rollout_rules=rollout_rules,
            exec=dataclasses.replace(opened.config.exec, mesh=mesh, rules=opened.config.exec.rules | TRAINING))
        run = dataclasses.replace(opened, config=config, mesh=make_mesh(mesh))
        with jax.set_mesh(run.mesh):
            models = ppo.models_of(run)
            policy = jax.tree.map(lambda x: 3 * x, run.load('init_from', models.policy))
            rollout = ppo.make_rollout(run, models, ppo.environment(run, models, None))
            spec = tuple(rollout.reshard(policy)['layers']['mlp']['up']['w'].sharding.spec)
            assert spec[:3] == (None, None, 'tensor') if rollout_rules else spec[:2] == (None, ('fsdp', 'tensor'))
            made.append(jax.device_get(rollout.sample(policy, prompts, jax.random.key(0))))
    one, other = made
    np.testing.assert_array_equal(one.tokens_BT, other.tokens_BT)
    np.testing.assert_array_equal(one.mask_BT, other.mask_BT)
    assert one.mask_BT.sum() > 16 and one.mask_BT[:, :9].sum() == 0
    np.testing.assert_allclose(one.logp_BT, other.logp_BT, rtol=0, atol=1e-5 / temperature)

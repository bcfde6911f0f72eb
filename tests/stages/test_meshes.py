"""The first 20 steps of every stage, from one parent: the same losses on every mesh and in micro-batches.

PPO: the same trajectories too, iteration by iteration, so that this is about learning alone. Evaluation and
samples are left out, as they would take most of the time to compile; `test_resume.py` has them.
"""

import contextlib
import shutil
from unittest import mock

import pytest

from llm import judges
from llm.stages import ppo, pretrain, reward, sft
from tests import tiny
from tests.stages import exactness

STEPS = 20
VARIANTS = (((8, 1, 1), 1), ((2, 2, 2), 1), ((1, 1, 1), 4))  # mesh, micro-batches
LOSSES = {'pretrain': ('loss', 'next_token', 'z_loss'), 'sft': ('loss',), 'reward': ('loss',),
          'ppo': ('loss', 'value', 'entropy', 'grad_norm', 'ptx')}
# No dropout: micro-batches draw their own.
OVERRIDES = {'pretrain': {'z_loss': 1e-2}, 'sft': {'dropout': 0.0}, 'reward': {'dropout': 0.0},
             'ppo': {'epochs': 1, 'ptx_coef': 0.5}}


@pytest.fixture(autouse=True)
def training_alone():
    """Stages without their held-out numbers and samples."""
    scores = {'bits_per_byte': 0.0, 'next_token': 0.0, 'k_wise': 0.0, 'reward': 0.0, 'kl': 0.0, 'gold': 0.0}
    with contextlib.ExitStack() as stack:
        for stage in (pretrain, sft, reward, ppo):
            stack.enter_context(mock.patch.object(stage, 'evaluator', lambda *of: lambda params, **_: scores))
            stack.enter_context(mock.patch.object(stage, 'samples', lambda *of: []))
        stack.enter_context(mock.patch.object(judges, 'eligible', lambda *of: True))
        stack.enter_context(mock.patch.object(reward, 'sft_answers', lambda run: None))
        stack.enter_context(mock.patch.object(
            reward, 'make_normalizer', lambda *of: lambda params: {'mean': 0.0, 'deviation': 1.0}))
        yield


@pytest.mark.slow
@pytest.mark.parametrize('name', exactness.NAMES)
def test_meshes_and_micro_batches_do_not_change_the_losses(name, finished_pipeline, tmp_path):
    workdir, tape = tmp_path / 'runs', []
    shutil.copytree(finished_pipeline, workdir)
    changes = OVERRIDES[name] | {'stop_step': STEPS, 'eval_every_steps': STEPS, 'save_every_steps': STEPS,
                                 'figures.rows': 0}
    config = tiny.pipeline_config(workdir, **{f'{name}.{key}': value for key, value in changes.items()})
    with exactness.recorded(tape):
        expected = exactness.run_again(name, config, workdir, mesh=(1, 1, 1))
    for mesh, micro_batches in VARIANTS:
        with exactness.replayed(tape):
            got = exactness.run_again(name, config, workdir, mesh=mesh, micro_batches=micro_batches)
        for key in LOSSES[name]:
            assert exactness.difference(got, expected, key) <= 1e-5, (mesh, micro_batches, key)
        # Advantages are whitened: over a whole rollout this term cancels, beside summands of size 1.
        for mine, theirs in zip(got, expected):
            assert mine.get('policy', 0.0) == pytest.approx(theirs.get('policy', 0.0), rel=0, abs=1e-5)
    assert sum(row['kind'] == 'train' for row in expected) == STEPS

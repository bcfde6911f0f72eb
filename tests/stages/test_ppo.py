"""PPO between its maths and its samples: minibatches, advantages, the value's warm-up, the end of the KL budget."""

import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.manifest import read
from llm.pipeline import parse
from llm.rollout.trajectories import Trajectories
from llm.stages import ppo
from tests import tiny
from tests.stages import exactness

CONFIG = dataclasses.replace(parse(tiny.pipeline_config(pathlib.Path('nowhere')))['ppo'],
                             epochs=3, rollout_batch=32, batch_size=8)
UPDATES = 3 * 32 // 8  # of an iteration


# Minibatches.

def rows_of(updates: int, seed: int = 0) -> np.ndarray:
    """rows[epoch, minibatch, :] of the iteration that begins after so many updates."""
    batches = list(ppo.minibatches(dataclasses.replace(CONFIG, seed=seed), updates))
    assert {rows_B.shape for rows_B in batches} == {(8,)}
    return np.stack(batches).reshape(3, 4, 8)


def test_minibatches_of_an_epoch_are_a_partition_of_the_rollout():
    for updates in range(0, 4 * UPDATES, UPDATES):
        for epoch in rows_of(updates):
            assert sorted(epoch.reshape(-1)) == list(range(32))


def test_minibatches_differ_between_epochs_iterations_and_seeds_and_are_the_same_again():
    epochs = {tuple(epoch.reshape(-1)) for updates in range(0, 4 * UPDATES, UPDATES) for seed in (0, 1)
              for epoch in rows_of(updates, seed)}
    assert len(epochs) == 4 * 2 * 3
    np.testing.assert_array_equal(rows_of(UPDATES), rows_of(UPDATES))


# What epochs train on.

MASK_BT = np.array([[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0], [0, 0, 1, 1, 1, 0]], np.float32)


def normal(seed: int) -> np.ndarray:
    return np.array(jax.random.normal(jax.random.key(seed), MASK_BT.shape) * MASK_BT)


OLD_BT, REF_BT, VALUE_BT, REWARD_BT = (normal(seed) for seed in range(4))
TRAJECTORIES = Trajectories(
    tokens_BT=np.arange(24, dtype=np.int32).reshape(4, 6), mask_BT=MASK_BT, logp_old_BT=OLD_BT, logp_ref_BT=REF_BT,
    value_BT=VALUE_BT, reward_BT=REWARD_BT, turn_BT=np.zeros((4, 6), np.int32), group_B=np.arange(4),
    weights_version_B=np.zeros(4, np.int32))


def batch(kl_coef: float = 0.3, **changes) -> dict[str, np.ndarray]:
    made = ppo.make_batch(dataclasses.replace(CONFIG, **changes), TRAJECTORIES, jnp.float32(kl_coef))
    return jax.tree.map(np.asarray, made)


def test_advantages_are_whitened_over_the_whole_rollout_before_minibatches_are_cut():
    advantage_BT = batch()['advantage_BT']
    chosen = advantage_BT[MASK_BT > 0]
    np.testing.assert_allclose([chosen.mean(), chosen.std()], [0, 1], atol=1e-5)
    assert not advantage_BT[MASK_BT == 0].any()
    half = advantage_BT[:2][MASK_BT[:2] > 0]
    assert abs(half.mean()) > 0.01 or abs(half.std() - 1) > 0.01


@pytest.mark.parametrize('kl_coef', [0.0, 0.3])
def test_return_is_all_that_is_still_to_come_less_the_penalty_of_each_token(kl_coef):
    made = batch(kl_coef, discount=1.0, gae_lambda=1.0)
    each_BT = REWARD_BT - kl_coef * (OLD_BT - REF_BT)
    return_BT = np.cumsum(each_BT[:, ::-1], axis=1)[:, ::-1] * MASK_BT
    np.testing.assert_allclose(made['return_BT'], return_BT, rtol=1e-5, atol=1e-6)
    advantage = (return_BT - VALUE_BT)[MASK_BT > 0]
    np.testing.assert_allclose(made['advantage_BT'][MASK_BT > 0], (advantage - advantage.mean()) / advantage.std(),
                               rtol=1e-4, atol=1e-5)


def test_return_is_the_unwhitened_advantage_and_the_value():
    made = batch(discount=0.5, gae_lambda=0.0)
    after_BT = np.roll(VALUE_BT, -1, axis=1)  # 0 after the last token
    return_BT = (REWARD_BT - 0.3 * (OLD_BT - REF_BT) + 0.5 * after_BT) * MASK_BT
    np.testing.assert_allclose(made['return_BT'], return_BT, rtol=1e-5, atol=1e-6)


def test_a_batch_has_all_that_the_trajectories_have():
    made = batch()
    for name, expected in TRAJECTORIES._asdict().items():
        np.testing.assert_array_equal(made[name], expected)


# A run whose policy rests for one iteration, and then soon leaves the budget.

BUDGET = 0.3
CHANGES = {'value_warmup_steps': 1, 'kl_budget': BUDGET, 'optim.learning_rate': 1e-2, 'stop_step': 8,
           'eval_every_steps': 1, 'save_every_steps': 1, 'keep_checkpoints': 9}


@pytest.fixture(scope='module')
def ended(finished_pipeline, tmp_path_factory):
    """The folder and the result of a run that ended before its time."""
    workdir = shutil.copytree(finished_pipeline, tmp_path_factory.mktemp('ppo') / 'runs')
    config = tiny.pipeline_config(workdir, **{f'ppo.{key}': value for key, value in CHANGES.items()})
    result = tiny.run(config, workdir)['ppo']
    return exactness.folder_of('ppo', workdir), result


def test_the_policy_rests_while_the_value_warms_up(ended):
    folder, _ = ended

    def weights(model: str, step: int) -> dict[str, list[int]]:
        leaves = read(folder / 'checkpoints', step).leaves['params']
        return {path: leaf['fingerprint'] for path, leaf in leaves.items() if path.startswith(f'{model}/')}
    assert weights('policy', 0) == weights('policy', 1) != weights('policy', 2)
    before, after = weights('value', 0), weights('value', 1)
    assert before.keys() == after.keys() and all(before[path] != after[path] for path in before)


def test_a_spent_budget_ends_the_run_and_the_best_step_within_it_is_chosen(ended):
    folder, result = ended
    rows = exactness.rows(folder)
    sampled = [row['kl'] for row in rows if row['kind'] == 'train']
    assert max(sampled[:-1]) <= BUDGET < sampled[-1]
    assert 0 < result.step < result.last_step == len(sampled) < 8
    assert result.why == f'kl {sampled[-1]:.1f} beyond kl_budget={BUDGET:g} nats an answer'
    held_out = {row['step']: row for row in rows if row['kind'] == 'evaluate'}
    within = {step: row['reward'] for step, row in held_out.items() if row['kl'] <= BUDGET}
    assert result.step == max(within, key=within.get) and result.after == within[result.step]
    assert max(row['reward'] for row in held_out.values()) > result.after  # tempting, and beyond the budget

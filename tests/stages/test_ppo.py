"""PPO between its maths and its samples: minibatches, advantages, how the value begins, what chooses and ends."""

import dataclasses
import functools
import itertools
import json
import pathlib
import shutil
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from llm.data.order import Mixture
from llm.data.prepare import prepare_chats
from llm.manifest import read
from llm.model.transformer import Transformer
from llm.pipeline import open_step, parse
from llm.rollout.trajectories import Trajectories
from llm.stages import ppo, pretrain
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


@pytest.mark.parametrize('gae_lambda', [0.0, 0.9])
def test_advantages_may_be_left_as_they_are(gae_lambda):
    made = batch(gae_lambda=gae_lambda, whiten_advantages=False)
    np.testing.assert_allclose(made['advantage_BT'], (made['return_BT'] - VALUE_BT) * MASK_BT, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(made['return_BT'], batch(gae_lambda=gae_lambda)['return_BT'])


# Runs, with held-out numbers from a script: the tiny models learn too little to show what happens when.

SCRIPT = {'kl': 0.1, 'ended': 0.5, 'distinct_share': 1.0, 'gold': 0.0}
SHORT = {'value_warmup_steps': 1, 'optim.learning_rate': 1e-2, 'stop_step': 8, 'eval_every_steps': 1,
         'save_every_steps': 1, 'keep_checkpoints': 9, 'min_distinct_share': 0.8, 'figures.rows': 0}


def scripted(held_out: list[dict[str, float]]):
    """While this context lasts, PPO's evaluations say this, one after the other, and the last one again and again."""
    numbers = itertools.chain(held_out, itertools.repeat(held_out[-1]))

    def evaluate(params, host):
        host['sft'] = {'ended': 0.5}
        return SCRIPT | next(numbers)
    return mock.patch.object(ppo, 'evaluator', lambda *of: evaluate)


@pytest.fixture(scope='module')
def run_short(finished_pipeline, tmp_path_factory):
    """Runs PPO with these changes from finished parents: (its folder, its result, what it said)."""
    def run(held_out: list[dict[str, float]], gold: bool = False, **changes):
        workdir = shutil.copytree(finished_pipeline, tmp_path_factory.mktemp('ppo') / 'runs')
        config = tiny.pipeline_config(workdir, **{f'ppo.{key}': value for key, value in (SHORT | changes).items()})
        if not gold:
            config.stages.ppo.gold_data = base.data()
        lines = []
        with scripted(held_out):
            result = tiny.run(config, workdir, say=lines.append)['ppo']
        return exactness.folder_of('ppo', workdir), result, lines
    return run


BUDGET = 0.3
HELD_OUT = [{'reward': 0.0}, {'reward': 1.0}, {'reward': 3.0, 'ended': 0.4}, {'reward': 4.0, 'kl': 0.31},
            {'reward': 2.0, 'distinct_share': 0.7}]


@pytest.fixture(scope='module')
def ended(run_short):
    """A run whose policy rests for one iteration, and then soon leaves the budget."""
    return run_short(HELD_OUT, kl_budget=BUDGET)


def weights(folder: pathlib.Path, step: int, model: str = '') -> dict[str, list[int]]:
    """Fingerprints of a model's parameters at a step."""
    leaves = read(folder / 'checkpoints', step).leaves['params']
    return {path.removeprefix(f'{model}/'): leaf['fingerprint'] for path, leaf in leaves.items()
            if not model or path.startswith(f'{model}/')}


def test_the_policy_rests_while_the_value_warms_up(ended):
    folder, *_ = ended
    assert weights(folder, 0, 'policy') == weights(folder, 1, 'policy') != weights(folder, 2, 'policy')
    before, after = weights(folder, 0, 'value'), weights(folder, 1, 'value')
    assert before.keys() == after.keys() and all(before[path] != after[path] for path in before)


def test_policy_begins_as_the_sft_model_and_value_as_the_scorer(ended):
    folder, *_ = ended
    for model, parent in (('policy', 'sft'), ('value', 'reward')):
        start = exactness.folder_of(parent, folder.parent)
        chosen = json.loads((start / 'result.json').read_text())['step']
        assert weights(folder, 0, model) == weights(start, chosen)


def test_a_spent_budget_ends_the_run_and_the_best_step_within_all_bounds_is_chosen(ended):
    folder, result, lines = ended
    sampled = [row['kl'] for row in exactness.rows(folder) if row['kind'] == 'train']
    assert max(sampled[:-1]) <= BUDGET < sampled[-1] and 1 < len(sampled) < 8
    assert (result.step, result.after, result.last_step) == (1, 1.0, len(sampled))
    assert result.why == f'kl {sampled[-1]:.1f} beyond kl_budget={BUDGET:g} nats an answer; step 1 kept'
    assert not any('step 0 is kept' in line for line in lines)


def test_over_optimisation_ends_the_run_and_the_step_with_the_best_gold_is_chosen(run_short):
    held_out = [{'gold': gold, 'reward': reward} for gold, reward in ((0, 0), (2, 1), (1, 2), (0.5, 3), (0, 4))]
    folder, result, _ = run_short(held_out, gold=True, gold_window=3, kl_budget=1e3)
    # Over steps 0 to 2 gold has risen.
    assert (result.metric, result.step, result.last_step, result.after) == ('gold', 1, 3, 2)
    assert result.why == ('over-optimised: gold 1.92 -> 0.42 while reward 1.00 -> 3.00 over steps 1..3; step 1 kept')
    assert weights(folder, 1, 'policy') != weights(folder, 3, 'policy')


def test_it_is_said_where_the_sft_policy_itself_is_kept(run_short):
    _, result, lines = run_short([{'reward': 0.0}, {'reward': -1.0}], stop_step=2, kl_budget=1e3)
    assert (result.step, result.why) == (0, 'stop_step')
    assert sum('step 0 is kept, the SFT policy itself' in line for line in lines) == 1


def test_value_may_begin_as_the_sft_trunk_and_chats_join_the_loss(run_short):
    """One minibatch an iteration and a policy at rest: the supervised term is the SFT model's loss on these chats."""
    folder, *_ = run_short([{'reward': 0.0}], stop_step=2, value_warmup_steps=2, value_from='sft', ptx_coef=0.5,
                           epochs=1, batch_size=16, kl_budget=1e3)
    start = exactness.folder_of('sft', folder.parent)
    opened, step, params = open_step(str(start), say=lambda line: None, progress=lambda *work: None)
    head = weights(folder, 0, 'value').keys() - weights(start, step).keys()
    assert [path.split('/')[0] for path in head] == ['scalar_head']
    assert weights(folder, 0, 'value').items() >= {
        path: leaf for path, leaf in weights(start, step).items() if not path.startswith('token_head')}.items()
    config = parse(tiny.pipeline_config(folder.parent))['ppo']
    chats = Mixture(opened.corpora(prepare_chats, 'train', config.ptx_data, seq_len=config.seq_len), {'chats': 1.0}, 0)
    losses = [row['ptx'] for row in exactness.rows(folder) if row['kind'] == 'train']
    model = Transformer(opened.model_config, opened.config.exec)
    read_loss = jax.jit(functools.partial(pretrain.language_loss, model, z_loss=0.0))
    for iteration, found in enumerate(losses):
        rows = chats.rows(np.arange(16 * iteration, 16 * (iteration + 1)))
        with jax.set_mesh(opened.mesh):
            loss = read_loss(params, None, rows, None).terms['next_token']
        assert found == pytest.approx(float(loss.sum / loss.weight), rel=1e-5)
    assert len(losses) == 2 and losses[0] != losses[1]

"""A scorer's manifest says what its scores of the SFT policy's answers are like: 0 is as good as SFT, 1 a deviation."""

import types

import jax
import numpy as np
import pytest

from llm.envs.preference import final_scores
from llm.errors import UserError
from llm.execution import MeshConfig
from llm.manifest import read, sealed_steps
from llm.model.transformer import Transformer
from llm.pipeline import open_step
from llm.rollout.generate import Generation
from llm.run import initializer, read_result
from llm.sharding import AxisRules, batch_sharding, make_mesh
from llm.stages import reward
from tests import tiny
from tests.stages import exactness

RUN = types.SimpleNamespace(model_config=tiny.model(),
                            config=types.SimpleNamespace(exec=tiny.execution(), normalize_samples=3))
ANSWERS = Generation(np.array([[1, 7], [1, 9], [1, 2]], np.int32), None, None, np.array([2, 1, 2], np.int32))


LENGTH_BR = np.array([[7, 3, 0], [12, 1, 5], [2, 9, 4], [6, 6, 6], [1, 2, 0], [11, 4, 3], [5, 5, 2], [3, 8, 1]])


@pytest.fixture(scope='module')
def scored():
    """Groups of up to three answers; the tiny scorer and its parameters; the score of each answer read alone."""
    model = Transformer(tiny.model(), tiny.execution(), head='scalar', dropout=0.5)
    params = jax.tree.map(lambda leaf: leaf.value, initializer(model)(jax.random.key(0)),
                          is_leaf=lambda leaf: hasattr(leaf, 'value'))
    tokens_BRT = np.random.default_rng(0).integers(3, 300, (*LENGTH_BR.shape, 12), np.int32)
    alone_A = final_scores(model, params, tokens_BRT.reshape(-1, 12), np.maximum(LENGTH_BR.reshape(-1), 1))
    groups = {'tokens_BRT': tokens_BRT, 'length_BR': LENGTH_BR, 'score_BR': np.float32(LENGTH_BR),
              'valid_BR': LENGTH_BR > 0}
    return model, params, groups, np.asarray(alone_A).reshape(LENGTH_BR.shape)


@pytest.fixture
def packing_run():
    execution = tiny.execution()
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield types.SimpleNamespace(
            model_config=tiny.model(), config=types.SimpleNamespace(exec=execution, seq_len=12),
            rows_sharding=batch_sharding(mesh, AxisRules.from_config(execution.rules)))


@pytest.mark.parametrize('micro_batches', [1, 2, 4])
def test_packed_answers_score_as_each_alone_whatever_the_micro_batches(packing_run, scored, micro_batches):
    model, params, groups, alone_BR = scored
    batch = reward.make_packed(packing_run, micro_batches)(groups)
    rows, width = batch['tokens_BT'].shape
    assert rows < LENGTH_BR.size and rows * width < 0.7 * LENGTH_BR.size * 12
    for part in range(micro_batches):
        score_BR = reward.group_scores(model, params, {name: x[part::micro_batches] for name, x in batch.items()}, None)
        there_BR = LENGTH_BR[part::micro_batches] > 0
        np.testing.assert_allclose(score_BR[there_BR], alone_BR[part::micro_batches][there_BR], rtol=0, atol=1e-5)
    assert alone_BR.std() > 0.1


def test_dropout_comes_with_its_key_alone(packing_run, scored):
    model, params, groups, _ = scored
    batch = reward.make_packed(packing_run, 1)(groups)
    kept_BR, dropped_BR = (reward.group_scores(model, params, batch, key) for key in (None, jax.random.key(0)))
    assert not np.allclose(kept_BR, dropped_BR)


@pytest.fixture
def sums(monkeypatch):
    """The score of an answer is that of its tokens within its length, times the only parameter."""
    def scores(model, params, tokens_BT, length_B):
        assert model.head == 'scalar'
        return params * ((np.arange(2)[None] < length_B[:, None]) * tokens_BT).sum(axis=1)
    monkeypatch.setattr(reward, 'final_scores', scores)


def test_normalizer_is_mean_and_population_deviation_of_the_scores(sums):
    mean, deviation = (8 + 1 + 3) / 3, ((4**2 + 3**2 + 1**2) / 3)**0.5
    assert reward.make_normalizer(RUN, ANSWERS)(np.float32(-2)) == {
        'mean': pytest.approx(-2 * mean), 'deviation': pytest.approx(2 * deviation)}


def test_scores_that_are_all_alike_cost_one_line(sums):
    with pytest.raises(UserError) as error:
        reward.make_normalizer(RUN, ANSWERS)(np.float32(0))
    assert str(error.value) == ('the scores of normalize_samples=3 answers are all alike; use more of them, or a lower '
                                'optim.learning_rate')


def test_every_manifest_holds_the_numbers_of_its_own_step(finished_pipeline):
    folder = exactness.folder_of('reward', finished_pipeline)
    chosen, kept = read_result(folder).step, {}
    for step in sealed_steps(folder / 'checkpoints'):
        kept[step] = read(folder / 'checkpoints', step).reward
        run, _, params = open_step(f'{folder}@{step}', say=print, progress=lambda *of: None)
        with jax.set_mesh(run.mesh):
            answers = reward.sft_answers(run)
            assert kept[step] == pytest.approx(reward.make_normalizer(run, answers)(params), rel=1e-6)
    assert len({value['mean'] for value in kept.values()}) == len(kept) > 1
    ppo, _, _ = open_step(str(exactness.folder_of('ppo', finished_pipeline)), say=print, progress=lambda *of: None)
    assert ppo.parents['reward_from'].manifest.reward == kept[chosen]

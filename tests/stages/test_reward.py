"""A scorer's manifest says what its scores of the SFT policy's answers are like: 0 is as good as SFT, 1 a deviation."""

import types

import jax
import numpy as np
import pytest

from llm.errors import UserError
from llm.manifest import read, sealed_steps
from llm.pipeline import open_step
from llm.rollout.generate import Generation
from llm.run import read_result
from llm.stages import reward
from tests import tiny
from tests.stages import exactness

RUN = types.SimpleNamespace(model_config=tiny.model(),
                            config=types.SimpleNamespace(exec=tiny.execution(), normalize_samples=3))
ANSWERS = Generation(np.array([[1, 7], [1, 9], [1, 2]], np.int32), None, None, np.array([2, 1, 2], np.int32))


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

"""The one-turn environment: what a finished answer is worth."""

import jax
import numpy as np
import pytest

from llm.envs.preference import final_scores, make_env, whole_rows
from llm.model.transformer import Transformer
from llm.rollout.packing import pack
from llm.run import initializer
from tests import tiny

PAD, EOS = 0, 2
MODEL = Transformer(tiny.model(), tiny.execution(), head='scalar')
TOKENS_BT = np.array([[1, 5, 6, EOS, PAD, PAD], [1, 5, 7, 8, 9, 10], [1, EOS, PAD, PAD, PAD, PAD]], np.int32)
LENGTH_B = np.array([4, 6, 2], np.int32)


@pytest.fixture(scope='module')
def params():
    return jax.tree.map(lambda leaf: leaf.value, initializer(MODEL)(jax.random.key(0)),
                        is_leaf=lambda leaf: hasattr(leaf, 'value'))


@pytest.fixture(scope='module')
def score_B(params):
    return np.asarray(final_scores(MODEL, params, TOKENS_BT, LENGTH_B))


def step(params, tokens_BT=TOKENS_BT, **changes):
    settings = {'mean': 0.0, 'deviation': 1.0, 'missing_eos_penalty': 0.0, 'eos_id': EOS} | changes
    packing = pack(np.arange(3)[None], LENGTH_B, LENGTH_B, length=6, most_chosen=6, price=float)
    return make_env(None, MODEL, **settings).step(params, tokens_BT, LENGTH_B, packing)


def test_score_is_that_of_the_last_token_alone(params, score_B):
    for row, length in enumerate(LENGTH_B):
        alone_BT = TOKENS_BT[row:row + 1, :length]
        score_BT = MODEL.apply({'params': params}, alone_BT, *whole_rows(alone_BT))
        np.testing.assert_allclose(score_B[row], score_BT[0, -1], rtol=1e-5, atol=1e-6)


def test_padding_changes_no_score(params, score_B):
    other_BT = np.where(np.arange(6) < LENGTH_B[:, None], TOKENS_BT, 11)
    assert np.array_equal(final_scores(MODEL, params, other_BT, LENGTH_B), score_B)


def test_answers_that_share_a_row_are_judged_one_by_one(params, score_B):
    tokens_BT = np.pad(np.concatenate([TOKENS_BT, TOKENS_BT[:1]]), ((0, 0), (0, 10)))
    length_B = np.append(LENGTH_B, LENGTH_B[0])
    packing = pack(np.arange(4)[None], length_B, length_B, length=16, most_chosen=16, price=lambda width: 1.0)
    assert packing.source_RW.shape == (1, 16)
    env = make_env(None, MODEL, mean=0.0, deviation=1.0, missing_eos_penalty=0.0, eos_id=EOS)
    judged = env.step(params, tokens_BT, length_B, packing)
    np.testing.assert_allclose(judged.score_B, np.append(score_B, score_B[0]), rtol=1e-5, atol=1e-6)
    assert judged.ended_B.tolist() == [True, False, True, True]


def test_score_is_in_deviations_from_the_mean(params, score_B):
    np.testing.assert_allclose(step(params, mean=0.5, deviation=0.25).score_B, (score_B - 0.5) / 0.25, rtol=1e-5)


def test_penalty_is_taken_where_the_end_token_is_missing(params):
    judged = step(params, missing_eos_penalty=0.7)
    assert judged.ended_B.tolist() == [True, False, True]
    np.testing.assert_allclose(judged.score_B - judged.reward_B, [0.0, 0.7, 0.0], atol=1e-6)


def test_end_token_after_the_answer_is_no_end(params):
    padded_BT = np.where(np.arange(6) == 5, EOS, TOKENS_BT)
    assert step(params, padded_BT).ended_B.tolist() == [True, True, True]
    inside_BT = np.where(np.arange(6) == 1, EOS, TOKENS_BT)
    assert step(params, inside_BT).ended_B.tolist() == [True, False, True]

"""The yardsticks: values worked by hand, and what each must be able to tell apart."""

import gzip
import itertools

import numpy as np
import pytest

from llm import yardsticks
from llm.yardsticks import calibration, distinct_n, in_order, rater_agreement, ridge

GOOD, BAD = 'a warm and moving film', 'a dull and tedious film'


def test_ridge_learns_which_words_people_like():
    scorer = ridge([GOOD, BAD] * 5 + ['a film'], [3.0, -3.0] * 5 + [0.0])
    good, bad, unknown = scorer.predict(['moving and warm', 'tedious', 'xyzzy'])
    assert bad < -0.5 < unknown < 0.5 < good


def test_ridge_is_the_same_at_every_fit():
    texts, scores = [GOOD, BAD, 'a film', 'warm'], [3.0, -3.0, 0.0, 1.0]
    assert (ridge(texts, scores).predict(texts) == ridge(texts, scores).predict(texts)).all()


def test_logistic_gives_labels():
    model = yardsticks.logistic([GOOD, BAD] * 5, ['yes', 'no'] * 5)
    assert model.predict(['warm', 'dull', 'moving film']).tolist() == ['yes', 'no', 'yes']


def test_lexicon_is_vaders():
    # The first example of the package's own README.
    assert yardsticks.lexicon(['VADER is smart, handsome, and funny.', 'the']).tolist() == [0.8316, 0.0]


def test_gzip_is_what_gzip_makes():
    text = b'to be or not to be ' * 50
    assert yardsticks.gzip_bits_per_byte(text) == 8 * len(gzip.compress(text, compresslevel=9)) / len(text)
    assert yardsticks.gzip_bits_per_byte(np.random.default_rng(0).bytes(5000)) > 8


# Distinct n-grams.

@pytest.mark.parametrize('answers, n, tokens, expected', [
    ([[1, 2, 3]], 2, 9, 1.0),
    ([[1, 2, 1, 2]], 2, 9, 2 / 3),  # 12 21 12
    ([[1, 2], [1, 2]], 2, 9, 1 / 2),
    ([[1, 2], [2, 1]], 2, 9, 1.0),  # 22 is not one: answers do not touch
    ([[1, 2, 1], [1, 2]], 2, 3, 1.0),  # the second is beyond the first three tokens
    ([[1, 2, 1], [1, 2]], 2, 5, 2 / 3),
    ([[1], [2]], 2, 9, 0.0), ([], 2, 9, 0.0), ([[1, 1, 2]], 1, 9, 2 / 3),
])
def test_distinct_n(answers, n, tokens, expected):
    assert distinct_n(answers, n, tokens) == expected


# Agreement between raters.

def slow_agreement(ratings, pairs) -> float:
    """The definition, drawn out: every rating of the one with every rating of the other."""
    found = []
    for one, two in pairs:
        each = []
        for a, b in itertools.product(range(len(ratings[one])), range(len(ratings[two]))):
            others = np.mean(np.delete(ratings[one], a)) - np.mean(np.delete(ratings[two], b))
            each.append(np.heaviside(np.sign(ratings[one][a] - ratings[two][b]) * np.sign(others), 0.5))
        found.append(np.mean(each))
    return float(np.mean(found))


def test_rater_agreement_is_its_definition():
    draw = np.random.default_rng(0)
    ratings = [draw.integers(-4, 5, draw.integers(2, 7)).tolist() for _ in range(8)]
    pairs = np.array(list(itertools.combinations(range(8), 2)))
    assert rater_agreement(ratings, pairs) == pytest.approx(slow_agreement(ratings, pairs), rel=1e-12)
    assert rater_agreement(ratings, pairs[:, ::-1]) == pytest.approx(slow_agreement(ratings, pairs), rel=1e-12)


def test_raters_who_agree_and_raters_who_cannot_tell():
    pairs = np.array([[0, 1]])
    assert rater_agreement([[3, 3, 3], [-3, -3]], pairs) == 1.0
    assert rater_agreement([[1, 1, 1], [1, 1]], pairs) == 0.5
    assert np.isnan(rater_agreement([[1, 1], [1, 1]], pairs[:0]))


def test_in_order_counts_ties_half():
    assert in_order(np.array([2.0, 0.1, -1.0, 0.0])) == 2.5 / 4
    assert np.isnan(in_order(np.zeros(0)))


# Calibration.

def drawn_margins(scale: float, seed: int, count: int = 20_000) -> np.ndarray:
    """Margins of a scorer that is right as often as sigmoid(scale * |margin|) says."""
    draw = np.random.default_rng(seed)
    size = draw.exponential(2.0, count)
    return np.where(draw.random(count) < 1 / (1 + np.exp(-scale * size)), size, -size)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
def test_temperature_is_found_again(temperature):
    found = calibration(drawn_margins(1 / temperature, 0), drawn_margins(1 / temperature, 1))
    assert found['temperature'] == pytest.approx(temperature, rel=0.05)
    assert found['ece_after'] < 0.015
    assert found['ece'] < 0.015 if temperature == 1.0 else found['ece'] > 0.05


def test_temperature_comes_from_the_other_pairs():
    one, two = drawn_margins(1.0, 0), drawn_margins(0.25, 1)
    assert calibration(one, two)['temperature'] == calibration(two, two)['temperature'] > 2


def test_bins_worked_by_hand():
    """Confidence .6 right twice of three, .95 always right: ECE = 3/5 |.6 - 2/3| + 2/5 |.95 - 1|."""
    low, high = (np.log(p / (1 - p)) for p in (0.6, 0.95))
    margins = np.array([low, low, -low, high, high]) * (1 + 1e-9)  # off the border between two bins
    found = calibration(margins, margins)
    assert found['ece'] == pytest.approx(0.6 * (2 / 3 - 0.6) + 0.4 * 0.05, rel=1e-6)
    bins = {round(each['low'], 2): each for each in found['bins'] if each['count']}
    assert {low: each['count'] for low, each in bins.items()} == {0.6: 3, 0.95: 2}
    assert bins[0.6]['accuracy'] == pytest.approx(2 / 3) and bins[0.95]['confidence'] == pytest.approx(0.95)
    assert len(found['bins']) == 10 and found['bins'][0]['low'] == 0.5 and found['bins'][-1]['high'] == 1.0
    assert found['bins'][0]['accuracy'] is None
    assert sum(each['count_after'] for each in found['bins']) == 5


def test_a_sure_scorer_is_in_the_last_bin():
    assert calibration(np.full(4, 1e6), np.full(4, 1e6))['bins'][-1]['count'] == 4

"""The n-gram yardstick: probabilities worked by hand, sums over all symbols, and what it must do with order in text."""

from fractions import Fraction
import math

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from llm.ngrams import KneserNey


def probabilities(model: KneserNey, history: list[int]) -> np.ndarray:
    """[symbols] of every symbol after that history."""
    return np.array([np.exp(-model.nats(np.array([*history, symbol]))[-1]) for symbol in range(model.symbols)])


# Symbols a, b, c = 0, 1, 2 and the document abab. Bigrams: ^a once, ab twice, ba once. So for bigrams n1 = 2, n2 = 1,
# Y = 2 / 4, D1 = 1 - 2 Y 1 / 2 = 1/2, D2 = 2 - 3 Y 0 = 2, which is not below 2: 1.
# One symbol: a follows ^ and b, b follows a. n1 = n2 = 1, Y = 1/3, D1 = 1 - 2 Y = 1/3, and D2 = 1 again; what is left,
# 4/3 of 3, goes to the uniform 1/3: p(a) = (1 + 4/9) / 3.
P_A, P_B, P_C = Fraction(13, 27), Fraction(10, 27), Fraction(4, 27)


@pytest.mark.parametrize('history, symbol, expected', [
    ([0], 1, (1 + 1 * P_B) / 2), ([0], 0, P_A / 2), ([0], 2, P_C / 2),
    ([1], 0, Fraction(1, 2) + P_A / 2), ([1], 1, P_B / 2),
    ([], 0, Fraction(1, 2) + P_A / 2),  # after the mark of the beginning
    ([2], 0, P_A), ([2], 2, P_C),  # c was never seen
])
def test_bigrams_worked_by_hand(history, symbol, expected):
    model = KneserNey([np.array([0, 1, 0, 1])], symbols=3, order=2)
    assert probabilities(model, history)[symbol] == pytest.approx(float(expected), rel=1e-12)


def test_discounts_are_those_of_the_paper():
    # 4 symbols seen once, 2 twice, 2 three times, 1 four times: Y = 4 / 8; D = 1 - 2Y 2/4, 2 - 3Y 2/2, 3 - 4Y 1/2.
    counts = {0: 1, 1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 7: 3, 8: 4}
    document = np.array([symbol for symbol, count in counts.items() for _ in range(count)])
    model = KneserNey([document], symbols=10, order=1)
    left = (4 * 0.5 + 2 * 0.5 + 3 * 2.0) / 18
    expected = [(count - {1: 0.5, 2: 0.5}.get(count, 2.0)) / 18 + left / 10 for count in counts.values()] + [left / 10]
    np.testing.assert_allclose(probabilities(model, []), expected, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=1, max_size=4),
       st.lists(st.integers(0, 4), max_size=4), st.integers(1, 4))
def test_probabilities_sum_to_one_in_every_context(documents, history, order):
    p = probabilities(KneserNey([np.array(document) for document in documents], symbols=5, order=order), history)
    assert p.sum() == pytest.approx(1.0, rel=1e-12) and (p > 0).all()


def test_nothing_before_the_context_counts():
    model = KneserNey([np.arange(60) % 7 % 5], symbols=5, order=3)
    assert model.nats(np.array([0, 1, 2, 3]))[-1] == model.nats(np.array([4, 4, 1, 2, 3]))[-1]


def test_documents_do_not_run_into_one_another():
    apart = KneserNey([np.array([0, 1]), np.array([2, 3])] * 5, symbols=4, order=2)
    joined = KneserNey([np.array([0, 1, 2, 3] * 5)], symbols=4, order=2)
    assert probabilities(apart, [1])[2] < probabilities(joined, [1])[2]


def test_a_learned_pattern_costs_little_and_noise_the_entropy():
    draw = np.random.default_rng(0)
    cycle, noise = np.tile([3, 1, 4, 1, 5], 2000), draw.integers(0, 8, 20_000)
    assert KneserNey([cycle], symbols=8).nats(cycle[:500])[3:].mean() < 0.02
    fresh = draw.integers(0, 8, 5000)
    assert KneserNey([noise], symbols=8).nats(fresh).mean() == pytest.approx(math.log(8), rel=0.02)


def test_bytes_and_large_vocabularies_give_the_same():
    """Keys in 32 bits and in 64."""
    document = np.frombuffer(b'to be, or not to be, that is the question', np.uint8)
    assert 257**3 < 2**31 < 2001**3
    small, large = KneserNey([document], symbols=256), KneserNey([document.astype(np.int64)], symbols=2000)
    # Only the uniform distribution at the bottom differs.
    assert np.all(small.nats(document) < large.nats(document))
    assert np.all(large.nats(document) - small.nats(document) < math.log(2000 / 256))

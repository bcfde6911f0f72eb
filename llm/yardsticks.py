"""Honest baselines on the same splits: what well-known methods without a neural network reach.

In: texts, ratings, labels, scores. Out: scores, shares, bits. numpy, scikit-learn and the VADER lexicon; no jax.
Left out: n-grams (`ngrams.py`); which splits and rows are measured (`figures.py` and the stages).

The libraries take most of a second to import: a function does that when it needs them, not a run before its first step.
"""

from collections.abc import Sequence
import gzip
from typing import Any, Protocol

import numpy as np


class Fitted(Protocol):
    """A model of texts."""

    def predict(self, texts: Sequence[str]) -> np.ndarray: ...


def ridge(texts: Sequence[str], scores: Sequence[float]) -> Fitted:
    """TF-IDF and ridge regression (alpha 1); `.predict(texts)` gives [texts] float64, in the scores' units.

    Raises ValueError where there is no text or no word in any.
    """
    from sklearn.linear_model import Ridge
    return _fitted(Ridge(alpha=1.0), texts, scores)


def logistic(texts: Sequence[str], labels: Sequence[str]) -> Fitted:
    """TF-IDF and logistic regression (scikit-learn's C = 1); `.predict(texts)` gives labels. Raises as `ridge`."""
    from sklearn.linear_model import LogisticRegression
    return _fitted(LogisticRegression(max_iter=1000), texts, labels)


def _fitted(model: Any, texts: Sequence[str], targets: Sequence[Any]) -> Fitted:
    """On words and pairs of words, 1 + log of their count, times their inverse document frequency."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    return make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), model).fit(texts, targets)


def lexicon(texts: Sequence[str]) -> np.ndarray:
    """[texts] VADER's compound in [-1, 1] (Hutto & Gilbert, ICWSM 2014): a lexicon and rules, not fitted here."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    analyzer = SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(text)['compound'] for text in texts])


def gzip_bits_per_byte(text: bytes) -> float:
    """Of the text compressed alone, at the highest level; its header and checksum (18 bytes) count."""
    return 8 * len(gzip.compress(text, 9, mtime=0)) / len(text)


def distinct_n(answers: Sequence[Sequence[int]], n: int, tokens: int) -> float:
    """Share of n-grams that are new (Li et al., arXiv:1510.03055), over the first `tokens` tokens, answer by answer.

    It falls with the number of tokens, so two sets of answers are compared at the same one. Deviations: n-grams do
    not reach over answers, and their own number divides, not the tokens': short answers lose nothing. 0 without any.
    """
    seen = []
    for answer in answers:
        part = tuple(answer[:tokens])
        tokens -= len(part)
        seen += [part[start:start + n] for start in range(len(part) - n + 1)]
    return len(set(seen)) / len(seen) if seen else 0.0


def rater_agreement(ratings: Sequence[Sequence[int]], pairs: np.ndarray) -> float:
    """How often one person's rating of each text puts a pair in the order of the other people's means; ties half.

    Exact, not drawn: the mean over all pairs of texts and, in each, over all pairs of a rating of the one and a rating
    of the other. (The data does not say which ratings are of the same person.)

    Args:
      ratings: whole numbers, two or more for each text; texts may have different numbers of them.
      pairs: [pairs, 2] indices of texts.
    """
    values = np.unique(np.concatenate([np.asarray(each) for each in ratings]))
    share = np.array([[np.mean(np.equal(each, value)) for value in values] for each in ratings])
    others = np.array([(np.sum(each) - values) / (len(each) - 1) for each in ratings])
    one, two = pairs.T
    agreed = np.zeros(len(pairs))
    for i, value in enumerate(values):
        for j, other in enumerate(values):
            same = np.sign(value - other) * np.sign(others[one, i] - others[two, j])
            agreed += share[one, i] * share[two, j] * np.heaviside(same, 0.5)
    return float(agreed.mean()) if len(pairs) else float('nan')


def in_order(margins: np.ndarray) -> float:
    """Share of pairs whose better one has the higher score; equal scores are half right. NaN without pairs."""
    return float(np.heaviside(margins, 0.5).mean()) if len(margins) else float('nan')


def calibration(margins: np.ndarray, fitted_on: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """Whether sigmoid(difference of scores) is how often the higher scored one of a pair is the better one.

    The temperature, by which all scores are divided, is the likeliest on other pairs (Guo et al., arXiv:1706.04599,
    section 4.2). ECE, the expected calibration error (its eq. 5), is the mean gap of confidence and accuracy over
    bins of equal width from .5 to 1, weighted by pairs.

    Args:
      margins: [pairs] score of the one that people rate higher, less that of the other.
      fitted_on: the same of other pairs.
    Returns: ece, ece_after, temperature, and bins: low, high, and count, confidence, accuracy of what is in it, before
      and after (None where nothing is).
    """
    from scipy import optimize
    # The likelihood is concave in 1 / temperature; the bounds are met where every pair is right, or most are wrong.
    found = optimize.minimize_scalar(lambda log: np.logaddexp(0, -fitted_on / np.exp(log)).mean(),
                                     bounds=np.log((0.01, 100.0)), method='bounded')
    temperature = float(np.exp(found.x))
    edges = np.linspace(0.5, 1.0, bins + 1)
    before, after = _reliability(margins, edges), _reliability(margins / temperature, edges)
    return {'ece': _ece(before), 'ece_after': _ece(after), 'temperature': temperature,
            'bins': [{'low': float(low), 'high': float(high), **one,
                      **{f'{key}_after': value for key, value in other.items()}}
                     for low, high, one, other in zip(edges, edges[1:], before, after)]}


def _reliability(margins: np.ndarray, edges: np.ndarray) -> list[dict[str, Any]]:
    """Of each bin: pairs in it, their mean confidence, and the share of them in the right order."""
    from scipy.special import expit
    confidence, right = expit(np.abs(margins)), np.heaviside(margins, 0.5)
    place = np.clip(np.searchsorted(edges, confidence, side='right') - 1, 0, len(edges) - 2)
    insides = [place == number for number in range(len(edges) - 1)]
    return [{'count': int(inside.sum()),
             'confidence': float(confidence[inside].mean()) if inside.any() else None,
             'accuracy': float(right[inside].mean()) if inside.any() else None} for inside in insides]


def _ece(bins: list[dict[str, Any]]) -> float:
    total = sum(each['count'] for each in bins)
    return sum(each['count'] * abs(each['confidence'] - each['accuracy']) for each in bins if each['count']) / total

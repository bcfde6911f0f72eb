"""Honest baselines on the same splits: what well-known methods without a neural network reach.

In: texts, ratings, labels. Out: scores, shares, bits. numpy, scikit-learn and the VADER lexicon; no jax.
Left out: n-grams (`ngrams.py`); which splits and rows are measured (`figures.py` and the stages).
"""

from collections.abc import Sequence
import gzip

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline, Pipeline
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


def _features() -> TfidfVectorizer:
    """Words and pairs of words, 1 + log of their count, times their inverse document frequency."""
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)


class GoldScorer:
    """TF-IDF and ridge regression (alpha 1), fitted on rated texts: no network, and a judge of what one says.

    Raises ValueError where there is no text or no word in any.
    """

    def __init__(self, texts: Sequence[str], scores: Sequence[float]):
        self._model = make_pipeline(_features(), Ridge(alpha=1.0)).fit(texts, scores)

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """[texts] float64, in the units of the ratings."""
        return self._model.predict(texts)


def logistic(texts: Sequence[str], labels: Sequence[str]) -> Pipeline:
    """TF-IDF and logistic regression (scikit-learn's C = 1); `.predict(texts)` gives labels."""
    return make_pipeline(_features(), LogisticRegression(max_iter=1000)).fit(texts, labels)


def lexicon(texts: Sequence[str]) -> np.ndarray:
    """[texts] VADER's compound in [-1, 1] (Hutto & Gilbert, ICWSM 2014): a lexicon and rules, fitted on nothing here."""
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

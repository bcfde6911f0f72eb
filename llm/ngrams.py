"""A Kneser-Ney n-gram model of whole numbers, in numpy: the yardstick that a language model has to be below.

In: documents as arrays of symbols (bytes, or token ids). Out: nats of every symbol of another document.
Left out: which documents (`figures.py`); text, tokenizers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class _Order(NamedTuple):
    """The n-grams of one order. A gram's key is its symbols as the digits of one number, the oldest first."""

    grams: np.ndarray  # [grams] keys, sorted
    counts: np.ndarray  # [grams] of occurrences in the highest order, of different symbols before it in the others
    contexts: np.ndarray  # [contexts] keys of all but a gram's last symbol, sorted
    totals: np.ndarray  # [contexts] sums of the counts of their grams
    left_over: np.ndarray  # [contexts] sums of the discounts of their grams
    discounts: np.ndarray  # [4] by a gram's count, 3 and more alike


class KneserNey:
    """Interpolated modified Kneser-Ney smoothing: section 4.1.6 and eqs. 26 to 28 of Chen & Goodman, "An empirical
    study of smoothing techniques for language modeling" (Harvard TR-10-98).

    The lowest order is interpolated with the uniform distribution over symbols; a context that was never seen leaves
    everything to the next lower order. So the probabilities of all symbols sum to 1 in every context, and none is 0.
    Where counts are too few for a discount (or give one that is not between 0 and the count it is of), it is .5, 1 or
    1.5, as in KenLM's fallback. Documents begin with marks that are symbols of contexts only, and have no end.

    Args:
      documents: integer arrays of symbols below `symbols`.
      order: n; (symbols + 1) ** order must fit 63 bits.
    """

    def __init__(self, documents: Sequence[np.ndarray], symbols: int, order: int = 3):
        assert (symbols + 1) ** order < 2**63, f'{symbols} symbols are too many for order {order}'
        self.symbols, self.order = symbols, order
        grams, counts = np.unique(np.concatenate([self._keys(document) for document in documents]), return_counts=True)
        orders = [_estimated(grams, counts, self._base)]
        for n in range(order - 1, 0, -1):
            grams, counts = np.unique(grams % self._base**n, return_counts=True)
            orders.insert(0, _estimated(grams, counts, self._base))
        self._orders = orders

    @property
    def _base(self) -> int:
        return self.symbols + 1

    def _keys(self, document: np.ndarray) -> np.ndarray:
        """[symbols] key of the n-gram that ends at each symbol of a document."""
        small = self._base ** self.order < 2**31
        padded = np.concatenate([np.full(self.order - 1, self.symbols), document])
        padded = padded.astype(np.int32 if small else np.int64)
        keys = padded[:len(document)]
        for place in range(1, self.order):
            keys = keys * self._base + padded[place:place + len(document)]
        return keys

    def nats(self, document: np.ndarray) -> np.ndarray:
        """[symbols] float64: -log p of every symbol of a document after those before it."""
        keys = self._keys(document)
        p = np.full(len(keys), 1 / self.symbols)
        for n, order in enumerate(self._orders, 1):
            grams = keys % self._base**n
            context, known = _find(order.contexts, grams // self._base)
            gram, seen = _find(order.grams, grams)
            count = np.where(seen, order.counts[gram], 0)
            kept = count - order.discounts[np.minimum(count, 3)]
            p = np.where(known, (kept + order.left_over[context] * p) / order.totals[context], p)
        return -np.log(p)


def _estimated(grams: np.ndarray, counts: np.ndarray, base: int) -> _Order:
    discounts = _discounts(counts)
    contexts, first = np.unique(grams // base, return_index=True)
    return _Order(grams, counts, contexts, np.add.reduceat(counts, first),
                  np.add.reduceat(discounts[np.minimum(counts, 3)], first), discounts)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """[4] float64: what is taken from a count of 0, 1, 2, and 3 or more."""
    n1, n2, n3, n4 = (int(np.sum(counts == count)) for count in (1, 2, 3, 4))
    found = [0.0]
    for count, here, above in ((1, n1, n2), (2, n2, n3), (3, n3, n4)):
        discount = count - (count + 1) * n1 / (n1 + 2 * n2) * above / here if n1 and here else 0.0
        found.append(discount if 0 < discount < count else count / 2)
    return np.array(found)


def _find(sorted_keys: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each key its place among the sorted ones and whether it is there; else the place means nothing."""
    places = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return places, sorted_keys[places] == keys

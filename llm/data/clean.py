"""What is left out of documents: which are near-copies of one another.

In: texts. Out: for each text the one that stands for it. Pure functions: no config, no disk, no order of processing.
"""

from collections.abc import Sequence
import re

from datasketch import MinHash, MinHashLSH
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_WORD = re.compile(r'\w+')
_PERMUTATIONS = 128  # of MinHash; they only propose pairs, which are then compared exactly


def fold(text: str) -> str:
    """The text without capitals, and with one space for every run of white space."""
    return ' '.join(text.casefold().split())


def shingles(text: str, words: int) -> set[str]:
    """Every phrase of `words` words, without capitals and punctuation; a shorter text is one phrase."""
    found = _WORD.findall(text.casefold()) or [fold(text)]
    return {' '.join(found[start:start + words]) for start in range(max(1, len(found) - words + 1))}


def clusters(texts: Sequence[str], similarity: float, words: int = 5) -> np.ndarray:
    """Groups near-copies: texts that are equal when folded, or whose shingles have this Jaccard similarity.

    Pairs come from MinHash (Broder, "On the resemblance and containment of documents", 1997) and are compared exactly;
    groups are connected components, so two texts of a group may differ by more.

    Returns [texts] int64: the index of the text that stands for its group, the first when folded texts are sorted.
    It does not depend on the order of `texts`, save that of equal ones.
    """
    index_of: dict[str, int] = {}
    for index, text in enumerate(texts):
        index_of.setdefault(fold(text), index)
    distinct = sorted(index_of)
    pairs = np.array(_alike(distinct, similarity, words), np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(distinct), len(distinct)))
    group = connected_components(graph, directed=False)[1]
    _, first = np.unique(group, return_index=True)  # the first of each group in sorted order
    stands_for = {text: index_of[distinct[first[number]]] for text, number in zip(distinct, group)}
    return np.array([stands_for[fold(text)] for text in texts], np.int64)


def _alike(texts: Sequence[str], similarity: float, words: int) -> list[tuple[int, int]]:
    """Pairs of indices whose shingles are similar enough."""
    # A missed pair is the worse mistake here, since proposed ones are compared: hence the weights.
    near = MinHashLSH(threshold=similarity, num_perm=_PERMUTATIONS, weights=(0.1, 0.9))
    phrases = ([phrase.encode() for phrase in shingles(text, words)] for text in texts)
    pairs = []
    for index, signature in enumerate(MinHash.generator(phrases, num_perm=_PERMUTATIONS)):
        for other in sorted(near.query(signature)):
            one, two = shingles(texts[index], words), shingles(texts[other], words)
            if len(one & two) >= similarity * len(one | two):
                pairs.append((other, index))
        near.insert(index, signature, check_duplication=False)
    return pairs

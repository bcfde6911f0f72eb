"""Which split a document is in, by a hash of what it says: the same on every machine and in every order.

In: a document's text, or of a group of near-copies the one that stands for all. Out: a number or the name of a split.
Left out: splits by name (whole works and books), which documents are near-copies (`clean.py`).
"""

from collections.abc import Mapping
import hashlib

SHARES = {'train': 0.90, 'validation': 0.05, 'test': 0.05}


def fraction(text: str) -> float:
    """A number in [0, 1), uniform over texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], 'big') / 2**48


def split_of(text: str, shares: Mapping[str, float] = SHARES) -> str:
    """One of the names in `shares`, each with its share of all texts; spellings in capitals go together."""
    place, end = fraction(text.strip().casefold()), 0.0
    for name, share in shares.items():
        end += share
        if place < end:
            return name
    return name  # the shares' sum may be a rounding error below 1

"""Which split a document is in, by a hash of what it says: the same on every machine and in every order.

In: a document's text. Out: a number or the name of a split. Left out: splits by name (whole works and books).
"""

import hashlib


def fraction(text: str) -> float:
    """A number in [0, 1), uniform over texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], 'big') / 2**48


def split_of(text: str) -> str:
    """'train' (90 %), 'validation' (5 %) or 'test' (5 %); spellings in capitals go together."""
    place = fraction(text.strip().casefold())
    return 'train' if place < 0.9 else 'validation' if place < 0.95 else 'test'

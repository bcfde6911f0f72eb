"""Lengths and tokens of the workloads, from a fixed seed: both sides draw the same. The standard library alone."""

import random


def lengths(count: int, least: int, most: int, mean: float, seed: int) -> list[int]:
    """So many lengths between two bounds, spread over all of them, with about that mean (a beta distribution)."""
    draw, share = random.Random(seed), (mean - least) / (most - least)
    return [least + round((most - least) * draw.betavariate(4 * share, 4 * (1 - share))) for _ in range(count)]


def tokens(sizes: list[int], vocab_size: int, seed: int) -> list[list[int]]:
    """A text of each of these lengths, of random tokens; the first sixteen of a vocabulary are left to marks."""
    draw = random.Random(seed)
    least = min(16, vocab_size // 2)
    return [[draw.randrange(least, vocab_size) for _ in range(size)] for size in sizes]

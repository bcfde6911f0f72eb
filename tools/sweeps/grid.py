"""Rows of a sweep from axes: product, zip_, chain. A row is a dict of overrides, {'optim.learning_rate': 1e-3}.

In: axes, {key: values}, or rows that another of these functions made. Out: a list of rows, in reading order.
Left out: what the keys mean (`rows`).
"""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any

from llm.errors import UserError

Row = dict[str, Any]
Axes = Mapping[str, Sequence[Any]]


def product(*parts: Axes | Sequence[Row]) -> list[Row]:
    """Every combination of one row of each part; the last varies fastest."""
    lists = [axis for part in parts for axis in (_single(part) if isinstance(part, Mapping) else [list(part)])]
    return [_merged(rows) for rows in itertools.product(*lists)]


def zip_(axes: Axes) -> list[Row]:
    """The first values of all axes, the second ones, and so on."""
    lengths = {key: len(values) for key, values in axes.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f'zip_: axes are of different lengths, {lengths}; make them equal')
    return [dict(zip(axes, values)) for values in zip(*axes.values())]


def chain(*parts: Axes | Sequence[Row]) -> list[Row]:
    """The rows of the first part, then those of the second, and so on; each row once."""
    rows: list[Row] = []
    for part in parts:
        rows += [row for row in product(part) if row not in rows]
    return rows


def _single(axes: Axes) -> list[list[Row]]:
    return [[{key: value} for value in values] for key, values in axes.items()]


def _merged(rows: Sequence[Row]) -> Row:
    merged: Row = {}
    for row in rows:
        if twice := merged.keys() & row.keys():
            raise UserError(f'product: {min(twice)} is in two parts; leave it out of one')
        merged |= row
    return merged

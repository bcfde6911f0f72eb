"""The order of rows: position -> row, a pure function of (seed, epoch, index), for mixtures too.

In: rows by source name, weights, a seed. Out: for any positions, the rows that stand there.
Left out: keeping the position. It is one integer, the number of rows consumed, and the stage keeps it.
"""

from collections.abc import Mapping
import functools
import sys

import grain
import numpy as np

from llm.config import DataConfig
from llm.errors import UserError


class Mixture:
    """An endless stream of rows from several sources, each shuffled anew in every epoch of its own.

    Args:
      rows: source name -> rows (any class of `rows.py`, the same in all sources).
      weights: source name -> share of the stream's rows, relative to the others.
      seed: of the shuffles.
      late_weights, late_from: the weights from this position on, if it is not 0. Every source goes on with the row
        that it had come to: nothing is repeated, nothing is lost.
    """

    def __init__(self, rows: Mapping, weights: Mapping[str, float], seed: int, *,
                 late_weights: Mapping[str, float] | None = None, late_from: int = 0):
        self._rows = dict(rows)
        self._names = list(self._rows)
        for name, part in self._rows.items():
            assert len(part), f'{name} has no rows'
        # Repeat comes before mix: a mix of finite sets ends with the shortest.
        self._streams = [grain.MapDataset.source(range(len(part))).seed(seed + number).shuffle().repeat()
                         for number, part in enumerate(self._rows.values())]
        self._turns = _turns([_positive(weights, name, 'weight') for name in self._names])
        self._late_from = late_from if late_weights else 0
        if self._late_from:
            self._late_turns = _turns([_positive(late_weights, name, 'late_weight') for name in self._names])
            self._taken = _taken(self._turns, late_from, len(self._names))

    @classmethod
    def from_config(cls, rows: Mapping, data: DataConfig, seed: int, rows_per_step: int) -> 'Mixture':
        """The mixture that a config asks for, in a stage that reads so many rows a step."""
        early = {name: source.weight for name, source in data.sources.items()}
        late = {name: source.late_weight for name, source in data.sources.items() if source.late_weight is not None}
        return cls(rows, early, seed, late_weights=early | late, late_from=data.late_from_step * rows_per_step)

    def sources(self, positions: np.ndarray) -> list[str]:
        """The name of the source that each position reads."""
        return [self._names[number] for number, _ in self._places(positions)]

    def rows(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """The rows at these positions, each field with the row axis first, in the order of `positions`."""
        places = self._places(positions)
        fields = None
        for number in np.unique(places[:, 0]):
            here = np.flatnonzero(places[:, 0] == number)
            part = self._rows[self._names[number]].rows(places[here, 1])
            fields = fields or {key: np.empty((len(places), *value.shape[1:]), value.dtype)
                                for key, value in part.items()}
            for key, value in part.items():
                fields[key][here] = value
        return fields

    def _places(self, positions: np.ndarray) -> np.ndarray:
        """[positions, 2]: the source's number and the row's index in it."""
        return np.array([self._place(int(position)) for position in positions], np.int64).reshape(-1, 2)

    def _place(self, position: int) -> tuple[int, int]:
        if self._late_from and position >= self._late_from:
            number, turn = self._late_turns[position - self._late_from]
            turn += self._taken[number]
        else:
            number, turn = self._turns[position]
        return number, self._streams[number][turn]


def _positive(weights: Mapping[str, float], name: str, key: str) -> float:
    if not weights[name] > 0:
        raise UserError(f'source {name} has {key}={weights[name]}, which is not positive; '
                        'use more than 0, or leave the source out')
    return weights[name]


def _turns(weights: list[float]) -> grain.MapDataset:
    """Position -> whose turn it is, and which turn of that source it is, from 0."""
    endless = grain.MapDataset.range(sys.maxsize)
    return grain.MapDataset.mix([endless.map(functools.partial(_numbered, number)) for number in range(len(weights))],
                                weights=weights)


def _numbered(number: int, turn: int) -> tuple[int, int]:
    return number, turn


def _taken(turns: grain.MapDataset, position: int, sources: int) -> dict[int, int]:
    """By source, how many of the first `position` turns were its own."""
    taken: dict[int, int] = {}
    while len(taken) < sources:
        number, turn = turns[position]
        taken.setdefault(number, turn)  # a source's next turn tells how many it has had
        position += 1
    return taken

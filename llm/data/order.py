"""The order of rows: position -> row, a pure function of (seed, epoch, index), for mixtures too.

In: rows by source name, weights, a seed. Out: for any positions, the rows that stand there.
Left out: keeping the position. It is one integer, the number of rows consumed, and the stage keeps it.
"""

from collections.abc import Mapping

import grain
import numpy as np

from llm.config import UserError


class Mixture:
    """An endless stream of rows from several sources, each shuffled anew in every epoch of its own.

    Args:
      rows: source name -> rows (any class of `rows.py`, the same in all sources).
      weights: source name -> share of the stream's rows, relative to the others.
      seed: of the shuffles.
    """

    def __init__(self, rows: Mapping, weights: Mapping[str, float], seed: int):
        self._rows = dict(rows)
        self._names = list(self._rows)
        for name, part in self._rows.items():
            if not weights[name] > 0:
                raise UserError(f'data.sources.{name}.weight={weights[name]} is not positive; '
                                'use more than 0, or leave the source out')
            assert len(part), f'{name} has no rows'
        # Repeat comes before mix: a mix of finite sets ends with the shortest.
        streams = [_shuffled(number, len(part), seed) for number, part in enumerate(self._rows.values())]
        self._order = grain.MapDataset.mix(streams, weights=[weights[name] for name in self._names])

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
        return np.array([self._order[int(position)] for position in positions], np.int64).reshape(-1, 2)


def _shuffled(number: int, length: int, seed: int) -> grain.MapDataset:
    dataset = grain.MapDataset.source(range(length)).seed(seed + number).shuffle().repeat()
    return dataset.map(lambda index: (number, index))

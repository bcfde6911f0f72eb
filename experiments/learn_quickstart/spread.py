"""How far pair accuracy depends on the snippets drawn: python experiments/learn_quickstart/spread.py WORKDIR...

In: workdirs of finished quickstarts. Out: a line for each scorer and for the ridge: its share of the test pairs more
than 1 apart in people's order, and the standard error of it over snippets, by 200 bootstrap draws of them.
Left out: the spread over seeds (`tools/compare.py`).
"""

import functools
import pathlib
import sys

import jax
import numpy as np

from llm import pairs
from llm.pipeline import open_step
from llm.stages import reward
from llm.yardsticks import in_order

_DRAWS, _GAP = 200, 1.0


def main() -> None:
    for workdir in map(pathlib.Path, sys.argv[1:]):
        run, _, params = open_step(str(next(workdir.glob('reward-*'))), say=lambda text: None,
                                   progress=lambda name, done, total: None)
        with jax.set_mesh(run.mesh):
            test = pairs.measured(run).test
            scores = {workdir.name: reward.answer_scores(run)(params, pairs.rows_of(run, test)),
                      'ridge': pairs.ridge(run, test.texts)}
        for name, score_A in scores.items():
            of = functools.partial(share, test.score_A, score_A)
            draws = np.random.default_rng(0).integers(0, len(score_A), (_DRAWS, len(score_A)))
            print(f'{name}  {of(np.arange(len(score_A))):.4f}  '
                  f'standard error {np.std([of(draw) for draw in draws]):.4f}')


def share(human_A: np.ndarray, score_A: np.ndarray, draw: np.ndarray) -> float:
    apart = human_A[draw][:, None] - human_A[draw] > _GAP
    return in_order((score_A[draw][:, None] - score_A[draw])[apart])


if __name__ == '__main__':
    main()

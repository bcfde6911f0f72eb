"""python -m tools.evaluate FOLDER[@STEP]: the held-out numbers of any step of any stage, as JSON.

In: a run's folder, which knows its config, data and parents; without a step, the one that the run chose.
Out: one JSON object on standard output; with `--figures=ROWS` also what that many rows of each source's test split say
beside yardsticks, as `figures.json` has it of the chosen step. Left out: training.
"""

import argparse
import contextlib
import dataclasses
import json
import sys

import jax

from configs import base
from llm import metrics
from llm.config import FiguresConfig
from llm.journal import finite
from llm.main import guarded
from llm.pipeline import STAGES, open_step
from llm.resolve import bring
from llm.run import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help="a run's folder, e.g. runs/quickstart/sft-1234abcd@100")
    parser.add_argument('--figures', type=int, default=0, metavar='ROWS', help='measure figures too, on so many rows')
    arguments = parser.parse_args()
    run, step, params = open_step(arguments.checkpoint, say=lambda text: None, progress=metrics.progress)
    stage = STAGES[run.config.stage]
    # What preparing data says goes beside the numbers: standard output is theirs alone.
    with contextlib.redirect_stdout(sys.stderr), jax.set_mesh(run.mesh):
        values = stage.evaluator(run)(params)
        if arguments.figures:
            bring(run.config, run.progress)
            values = values | {'figures': finite(stage.figures(with_figures(run, arguments.figures), params))}
    print(json.dumps({'run': run.folder.name, 'step': step, **values}))


def with_figures(run: Run, rows: int) -> Run:
    """The run as if its config asked for figures of that many rows; its own yardsticks, if it asked for any."""
    asked = FiguresConfig(rows, run.config.figures.yardstick_bytes or base.stage('').figures.yardstick_bytes)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, figures=asked))


if __name__ == '__main__':
    sys.exit(guarded(main))

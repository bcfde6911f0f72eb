"""python -m tools.evaluate FOLDER[@STEP]: the held-out numbers of any step of any stage, as JSON.

In: a run's folder, which knows its config, data and parents; without a step, the one that the run chose.
Out: one JSON object on standard output. Left out: training.
"""

import argparse
import contextlib
import json
import sys

import jax

from llm import metrics
from llm.main import guarded
from llm.pipeline import STAGES, open_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help="a run's folder, e.g. runs/quickstart/sft-1234abcd@100")
    run, step, params = open_step(parser.parse_args().checkpoint, say=lambda text: None, progress=metrics.progress)
    # What preparing data says goes beside the numbers: standard output is theirs alone.
    with contextlib.redirect_stdout(sys.stderr), jax.set_mesh(run.mesh):
        values = STAGES[run.config.stage].evaluator(run)(params)
    print(json.dumps({'run': run.folder.name, 'step': step, **values}))


if __name__ == '__main__':
    sys.exit(guarded(main))

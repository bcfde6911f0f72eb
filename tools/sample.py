"""python -m tools.sample FOLDER[@STEP] [--prompt=TEXT ...]: what any step of any stage says, a JSON line a sample.

In: a run's folder, which knows its config, data and parents; prompts, else those of the run.
Out: continuations (pretrain), answers (sft), answers with scores (reward), answers beside the reference's (ppo).
Left out: a conversation; each prompt is answered on its own.
"""

import argparse
import contextlib
import dataclasses
import json
import sys

import jax

from llm import metrics
from llm.errors import UserError
from llm.main import guarded
from llm.pipeline import STAGES, open_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help="a run's folder, e.g. runs/quickstart/sft-1234abcd@100")
    parser.add_argument('--prompt', action='append', help='may be given several times')
    flags = parser.parse_args()
    run, _, params = open_step(flags.checkpoint, say=lambda text: None, progress=metrics.progress)
    if flags.prompt and run.config.stage == 'reward':
        raise UserError(f'--prompt={flags.prompt[0]!r}: a scorer says nothing itself; leave --prompt out to score '
                        f'the answers of its SFT parent')
    if flags.prompt:
        samples = dataclasses.replace(run.config.samples, prompts=tuple(flags.prompt))
        run = dataclasses.replace(run, config=dataclasses.replace(run.config, samples=samples))
    # What preparing data says goes beside the samples: standard output is theirs alone.
    with contextlib.redirect_stdout(sys.stderr), jax.set_mesh(run.mesh):
        rows = STAGES[run.config.stage].samples(run, params)
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))


if __name__ == '__main__':
    sys.exit(guarded(main))

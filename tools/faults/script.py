"""What the scripts of faults have in common: their flags, the one line with the figure, the exit code."""

import argparse
from collections.abc import Callable
import json
import pathlib
import shutil
import signal
import sys
from typing import Any

Figure = tuple[str, bool, dict[str, Any]]  # the line, whether it is as wanted, and what it was made of, as JSON


def run(about: str, trials: int, measure: Callable[[int, int, pathlib.Path], Figure]) -> int:
    """The exit code of a script: 0, or 1 where its figure is missed.

    Args:
      about: the docstring of the script.
      trials: how many, unless a flag says otherwise.
      measure: (number of trials, seed, empty folder) -> the figure.
    """
    signal.signal(signal.SIGTERM, _stop)  # a script that is told to stop ends what it has started
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument('--trials', type=int, default=trials)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--workdir', required=True, help='folder for the trials; what they leave there is deleted')
    parser.add_argument('--json', metavar='FILE', help='where to keep what the figure was made of')
    parser.add_argument('--keep', action='store_true', help='what the trials left behind')
    arguments = parser.parse_args()
    workdir = pathlib.Path(arguments.workdir).absolute() / pathlib.Path(sys.argv[0]).stem
    if workdir.exists():
        parser.error(f'{workdir} is there already; move it away')
    workdir.mkdir(parents=True)
    try:
        line, reached, parts = measure(arguments.trials, arguments.seed, workdir)
    finally:
        if not arguments.keep:
            shutil.rmtree(workdir)
    print(line)
    if arguments.json:
        asked = {'trials': arguments.trials, 'seed': arguments.seed}
        pathlib.Path(arguments.json).write_text(json.dumps({'figure': line, 'reached': reached, **asked, **parts}))
    return 0 if reached else 1


def _stop(number: int, frame) -> None:
    signal.signal(number, signal.SIG_IGN)  # `timeout` says it twice, and the second would break off the end
    raise SystemExit(128 + number)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

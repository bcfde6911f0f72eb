"""SIGTERM to one process of a job: python -m tools.faults.preempt --trials=20 --seed=0 --workdir=DIR [--json=FILE]

A job of 1, 2, 3 and 4 processes trains, each process under its own supervisor. Again and again, at random instants, one
process gets SIGTERM, by which machines say that they will be taken away. All processes have to save one common step and
end with 42; the next row of training is of the step after it, and at most one step is done twice.

Prints the figure, and exits with 1 unless every trial went so.
"""

import pathlib
import random
import signal
import sys
import time
from typing import NamedTuple

from llm.errors import Preempted
from llm.manifest import sealed_steps
from tools.faults import script
from tools.faults.peers import alive, Crew, in_crews, wait_for

COUNTS = (1, 2, 3, 4)  # of processes


class Trial(NamedTuple):
    processes: int
    asked: int  # the process that got SIGTERM
    codes: tuple[int, ...]  # with which the processes ended, as the supervisors said
    saved: int  # the newest sealed step afterwards
    redone_steps: int  # done before the end and not in that step
    went_on_at: int  # the first step of the next start
    seconds: float  # until the last process had ended

    @property
    def right(self) -> bool:
        return (set(self.codes) == {Preempted.exit_code} and self.redone_steps <= 1
                and self.went_on_at == self.saved + 1)


def trials(count: int, seed: int, workdir: pathlib.Path, counts: tuple[int, ...] = COUNTS) -> list[Trial]:
    """That many, shared among jobs of these sizes; one that hangs ends the trials of its job."""
    draw = random.Random(seed)
    return in_crews(count, workdir, counts, lambda crew, number: trial(crew, draw))[0]


def trial(crew: Crew, draw: random.Random) -> Trial:
    time.sleep(draw.uniform(0, 3))
    members, before, asked = crew.members(), crew.codes(), draw.randrange(crew.size)
    began = time.time()
    members[asked].send_signal(signal.SIGTERM)
    wait_for(lambda: not any(alive(member) for member in members))
    ended = time.time()
    rows, saved = crew.rows(), sealed_steps(crew.checkpoints)[-1]
    again = wait_for(lambda: crew.trained_since(ended))
    codes = tuple(after[len(earlier)] for after, earlier in zip(crew.codes(), before))
    return Trial(crew.size, asked, codes, saved, rows[-1]['step'] - saved, again['step'], ended - began)


def figure(count: int, seed: int, workdir: pathlib.Path) -> script.Figure:
    done = trials(count, seed, workdir)
    right = sum(trial.right for trial in done)
    line = (f'SIGTERM: {right} of {count} saved at one common step and ended with 42; at most '
            f'{max((trial.redone_steps for trial in done), default=0)} steps redone, ended within '
            f'{max((trial.seconds for trial in done), default=0.0):.1f} s')
    return line, right == count > 0, {'trials_done': [trial._asdict() for trial in done]}


if __name__ == '__main__':
    sys.exit(script.run(__doc__, 20, figure))

"""Processes that die in a job of several: python -m tools.faults.peers --trials=30 --seed=0 --workdir=DIR [--json=FILE]

A job of 2, then 3, then 4 processes trains, each process under its own supervisor. Again and again, at random instants,
a peer is killed, a peer is stopped, the coordinator (process 0) is killed or stopped. Each time all processes have to
end (the fault is noticed) within 15 s, and a row of training has to be written within 60 s.

Prints the figure, and exits with 1 unless every trial kept to both. A trial in which no row came in two minutes is a
hang, and ends the job of its processes.
"""

from collections.abc import Callable
import contextlib
import json
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
from typing import Any, NamedTuple

import psutil

from tools.faults import job, script

NOTICED_SECONDS = 15.0
AGAIN_SECONDS = 60.0
HANG_SECONDS = 120.0
COUNTS = (2, 3, 4)  # of processes
SAVE_EVERY_STEPS = 5
FAULTS = {'peer killed': (False, signal.SIGKILL), 'peer stopped': (False, signal.SIGSTOP),
          'coordinator killed': (True, signal.SIGKILL), 'coordinator stopped': (True, signal.SIGSTOP)}


class Trial(NamedTuple):
    processes: int
    fault: str
    noticed_seconds: float  # until the last process of before had ended
    again_seconds: float  # until the first new row of training
    codes: tuple[int, ...]  # with which the processes ended, as the supervisors said


class Hang(Exception):
    """What should have happened by now has not."""


class Crew(contextlib.AbstractContextManager):
    """A job of several processes, each under its own supervisor, which trains for ever; as a context, it runs."""

    def __init__(self, folder: pathlib.Path, processes: int):
        self._folder, self.size = folder, processes
        config = job.first(job.pipeline_config(folder, mesh=(processes, 1, 1), **{
            'pretrain.stop_step': 10**6, 'pretrain.eval_every_steps': 500, 'pretrain.log_every_steps': 1,
            'pretrain.save_every_steps': SAVE_EVERY_STEPS, 'pretrain.batch_size': 12}), 1)
        job.write_data(folder)
        job.write_config(config, folder)
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            self._coordinator = f'127.0.0.1:{free.getsockname()[1]}'
        self._supervisors: list[subprocess.Popen] = []

    def __enter__(self) -> 'Crew':
        for index in range(self.size):
            several = [f'--coordinator={self._coordinator}', f'--processes={self.size}', f'--process={index}']
            command = job.command(self._folder, *(several if self.size > 1 else ()))
            with self._said(index).open('w') as said:
                self._supervisors.append(subprocess.Popen(
                    [sys.executable, '-m', 'tools.supervise', '--', *command], cwd=job.ROOT, stdout=said,
                    stderr=subprocess.STDOUT, env=job.environment(1)))
        return self

    def __exit__(self, *error) -> None:
        for supervisor in self._supervisors:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(supervisor.pid).children(recursive=True):
                    process.kill()
            supervisor.kill()
            supervisor.wait()

    def members(self) -> list[psutil.Process]:
        """The processes of the job, by index."""
        return [wait_for(lambda: next(iter(psutil.Process(supervisor.pid).children()), None))
                for supervisor in self._supervisors]

    def codes(self) -> list[list[int]]:
        """With what each process has ended so far, in the supervisors' own words."""
        return [[int(line.split(' ended with ')[1].split(';')[0]) for line in self._said(index).read_text(
            errors='replace').splitlines() if line.startswith('supervise') and ' ended with ' in line]
            for index in range(self.size)]

    def rows(self) -> list[dict]:
        """The rows of training, in the order of the file; one that is being written is left out."""
        paths = list(self._folder.glob('pretrain-*/metrics.jsonl'))
        lines = paths[0].read_text().split('\n')[:-1] if paths else []
        return [row for row in map(json.loads, lines) if row['kind'] == 'train']

    def trained_since(self, moment: float, step: int = 0) -> dict | None:
        """The first row of training written after that moment for a step beyond that one."""
        rows = [row for row in self.rows() if row['time']['unix_seconds'] > moment and row['step'] > step]
        return rows[0] if rows else None

    @property
    def checkpoints(self) -> pathlib.Path:
        return next(self._folder.glob('pretrain-*')) / 'checkpoints'

    def _said(self, index: int) -> pathlib.Path:
        return self._folder / f'said{index}.log'


def wait_for(condition, seconds: float = HANG_SECONDS):
    """What the condition returns, once that is true. Raises Hang."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise Hang()
        time.sleep(0.05)
    return found


def in_crews(count: int, workdir: pathlib.Path, counts: tuple[int, ...], one: Callable[[Crew, int], Any]
             ) -> tuple[list[Any], int]:
    """That many trials, shared among jobs of these sizes; and how many ended in a hang, which ends those of its job.

    `one` is given the job and the number of the trial.
    """
    done: list[Any] = []
    hangs = 0
    for place, processes in enumerate(counts):
        share = count * (place + 1) // len(counts) - count * place // len(counts)
        folder = workdir / f'crew{processes}'
        folder.mkdir(parents=True)
        with Crew(folder, processes) as crew:
            try:
                wait_for(lambda: crew.trained_since(0.0), 5 * HANG_SECONDS)  # maybe nothing is compiled yet
                for number in range(share):
                    done.append(one(crew, number + place))
                    script.say(str(done[-1]))
            except Hang:
                script.say(f'{processes} processes: a hang; so far they ended with {crew.codes()}')
                hangs += 1
    return done, hangs


def trials(count: int, seed: int, workdir: pathlib.Path, counts: tuple[int, ...] = COUNTS) -> tuple[list[Trial], int]:
    """That many faults, the kinds in turn; and how many of them ended in a hang."""
    draw = random.Random(seed)
    return in_crews(count, workdir, counts, lambda crew, number: trial(crew, list(FAULTS)[number % len(FAULTS)], draw))


def trial(crew: Crew, fault: str, draw: random.Random) -> Trial:
    # A step was sealed since the last fault, so that all processes came further than ever: their supervisors count from
    # 0 again. One row is not enough, for a process may have been ahead of the rows when it died.
    furthest = crew.rows()[-1]['step']
    wait_for(lambda: crew.trained_since(0.0, furthest + SAVE_EVERY_STEPS))
    time.sleep(draw.uniform(0, 5))
    first, number = FAULTS[fault]
    members, before = crew.members(), crew.codes()
    began = time.time()
    members[0 if first else draw.randrange(1, crew.size)].send_signal(number)
    wait_for(lambda: not any(alive(member) for member in members))
    noticed = time.time()
    again = wait_for(lambda: crew.trained_since(noticed))['time']['unix_seconds']
    codes = [after[len(earlier)] for after, earlier in zip(crew.codes(), before)]
    return Trial(crew.size, fault, noticed - began, again - began, tuple(codes))


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def figure(count: int, seed: int, workdir: pathlib.Path) -> script.Figure:
    done, hangs = trials(count, seed, workdir)
    noticed = [trial.noticed_seconds for trial in done] or [float('inf')]
    again = [trial.again_seconds for trial in done] or [float('inf')]
    line = (f'peers: {len(done)} of {count} faults outlived, {hangs} hangs; noticed within {max(noticed):.1f} s '
            f'(median {sorted(noticed)[len(noticed) // 2]:.1f}), training again within {max(again):.1f} s (median '
            f'{sorted(again)[len(again) // 2]:.1f})')
    reached = len(done) == count and max(noticed) <= NOTICED_SECONDS and max(again) <= AGAIN_SECONDS
    return line, reached, {'trials_done': [trial._asdict() for trial in done]}


if __name__ == '__main__':
    sys.exit(script.run(__doc__, 30, figure))

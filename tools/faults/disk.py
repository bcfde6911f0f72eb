"""A disk that fails under a run: python -m tools.faults.disk --trials=9 --seed=0 --workdir=DIR [--json=FILE]

A job trains on a small disk of its own (a tmpfs, in a mount namespace of its own: Linux, no rights needed). At a random
instant the disk is taken away, filled, or turned read-only. The job has to end with 44 and one line that says so,
before it has done as many steps as lie between two saves, twice; with the disk back, it goes on from a step sealed
before.

Prints the figure, and exits with 1 unless every trial went so.
"""

from collections.abc import Callable
import json
import os
import pathlib
import random
import subprocess
import sys
import time
from typing import Any, NamedTuple

from llm.errors import StorageError
from llm.manifest import sealed_steps
from tools.faults import job, script
from tools.faults.peers import wait_for

SAVE_EVERY, MOST_SECONDS = 10, 60.0
NAMESPACE = 'QUARTET_FAULTS_NAMESPACE'  # in the environment: this process may mount


class Trial(NamedTuple):
    fault: str
    code: int
    said: list[str]  # on standard error
    steps: int  # done after the fault
    seconds: float  # from the fault to the end of the process
    sealed: int  # the newest step before it
    went_on_at: int  # the first step with the disk back

    @property
    def right(self) -> bool:
        # Within the next save: one may have been on its way. A thread of Orbax's that dies later may add to the line.
        errors = [line for line in self.said if line.startswith('error: ')]
        return (self.code == StorageError.exit_code and len(errors) == 1 and self.steps <= 2 * SAVE_EVERY
                and self.seconds <= MOST_SECONDS and self.went_on_at > self.sealed)


class Disk:
    """A tmpfs, seen at `path` and kept at `behind`."""

    def __init__(self, folder: pathlib.Path):
        self.path, self.behind, self.aside = folder / 'disk', folder / 'behind', folder / 'aside'
        for path in self.path, self.behind, self.aside:
            path.mkdir(parents=True)
        _mount('-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', self.behind)
        _mount('--bind', self.behind, self.path)

    def fill(self) -> None:
        with (self.behind / 'ballast').open('wb', buffering=0) as ballast:
            try:
                while ballast.write(bytes(2**16)):
                    pass
            except OSError:  # full
                pass

    def freeze(self) -> None:
        # Another view on top: the one below has files open for writing. It is made elsewhere, where nobody opens any.
        _mount('--bind', self.behind, self.aside)
        _mount('-o', 'remount,bind,ro', self.aside)
        _mount('--move', self.aside, self.path)

    def vanish(self) -> None:
        _unmount(self.path)

    def mend(self) -> None:
        (self.behind / 'ballast').unlink(missing_ok=True)
        self.detach()
        _mount('--bind', self.behind, self.path)

    def detach(self) -> None:
        while os.path.ismount(self.path):
            _unmount(self.path)


FAULTS = {'vanished': Disk.vanish, 'full': Disk.fill, 'read-only': Disk.freeze}


def _mount(*words) -> None:
    subprocess.run(['mount', *words], check=True)


def _unmount(path: pathlib.Path) -> None:
    subprocess.run(['umount', '-l', path], check=True)  # at once, whatever is open


def trials(count: int, seed: int, workdir: pathlib.Path) -> list[Trial]:
    """That many faults of one job's disk, the kinds in turn."""
    draw, disk, done = random.Random(seed), Disk(workdir), []
    job.write_data(disk.path)
    job.write_config(job.first(job.pipeline_config(disk.path, **{
        'pretrain.stop_step': 10**6, 'pretrain.save_every_steps': SAVE_EVERY, 'pretrain.log_every_steps': 1,
        'pretrain.eval_every_steps': 10**5}), 1), disk.path)
    process = _start(disk)
    try:
        for number in range(count):
            _until(lambda: len(sealed_steps(_folder(disk) / 'checkpoints')) > 1, process)
            before = sealed_steps(_folder(disk) / 'checkpoints')[-1]
            _until(lambda: sealed_steps(_folder(disk) / 'checkpoints')[-1] > before, process)  # by this process
            time.sleep(draw.uniform(0, 1))
            fault = list(FAULTS)[number % len(FAULTS)]
            sealed, step = sealed_steps(_folder(disk) / 'checkpoints')[-1], _rows(disk)[-1]['step']
            began = time.monotonic()
            FAULTS[fault](disk)
            said, code = process.communicate(timeout=900)[1], process.returncode
            seconds = time.monotonic() - began
            disk.mend()
            steps, began, process = _rows(disk)[-1]['step'] - step, time.time(), _start(disk)
            again = _until(lambda: [row for row in _rows(disk) if row['time']['unix_seconds'] > began], process)[0]
            done.append(Trial(fault, code, said.splitlines(), steps, seconds, sealed, again['step']))
            script.say(str(done[-1]))
    finally:
        process.kill()
        process.wait()
        disk.detach()
        _unmount(disk.behind)
    return done


def _start(disk: Disk) -> subprocess.Popen:
    return subprocess.Popen(job.command(disk.path), cwd=job.ROOT, env=job.environment(1), stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)


def _until(condition: Callable[[], Any], process: subprocess.Popen) -> Any:
    """What the condition returns, once that is true, as long as the job runs."""
    def found() -> Any:
        if process.poll() is not None:
            raise RuntimeError(f'the job ended with {process.returncode} by itself: {process.stderr.read()}')
        return condition()
    return wait_for(found, 600)


def _folder(disk: Disk) -> pathlib.Path:
    return next(disk.behind.glob('pretrain-*'), disk.behind)


def _rows(disk: Disk) -> list[dict]:
    """The rows of training; one that was torn is left out."""
    path = _folder(disk) / 'metrics.jsonl'
    lines = path.read_text().split('\n')[:-1] if path.exists() else []
    return [row for row in map(json.loads, lines) if row['kind'] == 'train']


def figure(count: int, seed: int, workdir: pathlib.Path) -> script.Figure:
    done = trials(count, seed, workdir)
    right = sum(trial.right for trial in done)
    line = (f'disk full, read-only, vanished: {right} of {count} ended with 44 and one line within '
            f'{max((trial.steps for trial in done), default=0)} steps (a save every {SAVE_EVERY}) and '
            f'{max((trial.seconds for trial in done), default=0):.1f} s, the old step intact')
    return line, right == count > 0, {'trials_done': [trial._asdict() for trial in done]}


if __name__ == '__main__':
    if NAMESPACE not in os.environ:
        os.execvpe('unshare', ['unshare', '--user', '--map-root-user', '--mount', sys.executable, '-m',
                               'tools.faults.disk', *sys.argv[1:]], os.environ | {NAMESPACE: '1'})
    sys.exit(script.run(__doc__, 9, figure))

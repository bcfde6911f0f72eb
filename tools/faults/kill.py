"""SIGKILL at random instants: python -m tools.faults.kill --trials=100 --seed=0 --workdir=DIR [--json=FILE]

A pipeline runs once to its end, and then again and again, killed at instants drawn from the whole time that it takes,
imports included, and started again after each, until it has come to its end. That end must be the first one's, bit for
bit: fingerprints of all kept steps, every row of metrics, samples, figures. Saves are short, and what a kill could
break: every second kill waits for the first save after its instant, and comes within `SAVE_SECONDS` of its start.

A trial is a kill. It counts as survived when the run that it hit ended so; a run is hit two or three times. Prints the
figure and where the kills came, and exits with 1 unless all were survived.
"""

import collections
import contextlib
import itertools
import json
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tools.faults import job, script


SAVE_SECONDS = 0.3  # about what a save takes, from its first file to its seal


class Kill(NamedTuple):
    run: int
    where: str  # what the pipeline did
    seconds: float  # after its start
    survived: bool


def trials(count: int, seed: int, workdir: pathlib.Path, *, stages: int = len(job.NAMES), steps: int = 8) -> list[Kill]:
    """That many kills, over as many runs as it takes."""
    draw = random.Random(seed)
    job.write_data(workdir)
    config = job.first(job.pipeline_config(workdir, **job.every_step(steps)), stages)
    for name in ('compiling', 'whole'):  # the first one also fills the cache of compiled programs
        began = time.monotonic()
        attempt(config, workdir / name)
        seconds = time.monotonic() - began
    expected = job.outcome(workdir / 'whole', stages)
    kills: list[Kill] = []
    for run in itertools.count():
        if len(kills) >= count:
            return kills
        hit, folder = [], workdir / f'run{run}'
        while True:
            instant = draw.uniform(0, seconds)
            into_save = draw.uniform(0, SAVE_SECONDS) if draw.random() < 0.5 else None
            where = attempt(config, folder, instant, into_save)
            if where is None:
                break
            hit.append((where, instant))
        different = job.differences(expected, job.outcome(folder, stages))
        script.say(f'run {run}: killed in {[where for where, _ in hit]}: {different or "the same"}')
        kills += [Kill(run, where, instant, not different) for where, instant in hit]


def attempt(config: ConfigDict, workdir: pathlib.Path, kill_after: float = float('inf'),
            into_save: float | None = None) -> str | None:
    """Starts the pipeline, and returns what it did when it was killed; None where it came to its end before.

    Args:
      kill_after: seconds after its start.
      into_save: seconds after the start of the first save after that; None: it is killed without waiting for one.
    """
    job.write_config(config, workdir)
    began = time.time()
    with (workdir / 'said.log').open('a') as said, subprocess.Popen(
            job.command(workdir), cwd=job.ROOT, stdout=said, stderr=said, env=job.environment(1)) as process:
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(None if kill_after == float('inf') else kill_after)
            if into_save is not None:
                before = unsealed(workdir)  # of earlier kills
                while process.poll() is None and not unsealed(workdir) - before:
                    time.sleep(0.002)
                time.sleep(into_save)
        finally:
            process.kill()
        code = process.wait()
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f'the pipeline ended with {code} by itself; {workdir / "said.log"} says why')
    return None if code == 0 else phase(workdir, began)


def unsealed(workdir: pathlib.Path) -> set[pathlib.Path]:
    """Folders of steps, temporary ones too, that have no manifest."""
    return {path for path in workdir.glob('*/checkpoints/*') if '.manifest.json' not in path.name and
            not (path.parent / f'{path.name}.manifest.json').exists()}


def phase(workdir: pathlib.Path, began: float) -> str:
    """What a process that began then was doing when it was killed, from what it left behind."""
    running = [path.parent for path in workdir.glob('*/identity.json') if path.stat().st_mtime >= began]
    if not running:
        return 'start'
    folder = max(running, key=lambda path: (path / 'identity.json').stat().st_mtime_ns)
    name, checkpoints = folder.name.split('-')[0], folder / 'checkpoints'
    if (folder / 'result.json').exists():
        return f'after {name}'
    if any(path.parent == checkpoints for path in unsealed(workdir)):
        return f'{name} saves'
    metrics = folder / 'metrics.jsonl'
    trained = metrics.exists() and any(moment >= began for moment in _moments(metrics))
    return f'{name} trains' if trained else f'{name} begins'


def _moments(path: pathlib.Path) -> list[float]:
    lines = path.read_text().split('\n')[:-1]  # the last row may be torn
    return [json.loads(line)['time']['unix_seconds'] for line in lines]


def figure(kills: list[Kill]) -> tuple[str, bool, dict[str, Any]]:
    survived, runs = sum(kill.survived for kill in kills), len({kill.run for kill in kills})
    where = collections.Counter(kill.where for kill in kills)
    saves = sum(number for name, number in where.items() if name.endswith('saves'))
    line = (f'SIGKILL: {survived} of {len(kills)} kills in {runs} runs resumed bit-exact, {saves} of them in a save; '
            + ', '.join(f'{name} {number}' for name, number in sorted(where.items())))
    return line, survived == len(kills) > 0, {'kills': [kill._asdict() for kill in kills]}


if __name__ == '__main__':
    sys.exit(script.run(__doc__, 100, lambda count, seed, workdir: figure(trials(count, seed, workdir))))

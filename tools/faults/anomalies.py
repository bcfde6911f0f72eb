"""Numbers made wrong on purpose: python -m tools.faults.anomalies --seed=0 --workdir=DIR [--only=sft,ppo] [--json=FILE]

In: a seed, which draws the batches that go wrong; an empty folder.
Out: a table, a row for each fault: was it caught before it was saved, where did the run go back to, which batch does it
leave out; is it then, bit for bit, the run that never met that batch, also if it is killed on the way. Exit code 1
if not all of them are.
Left out: faults of machines and disks; the rule itself (`llm/guard.py`).

Faults are put in by wrapping functions inside this process. The batch carries them, as a factor that is 1 where nothing
is wrong, so the same batch goes wrong in every run. What a run ought to be is known from another one, with the same
wrapping, which leaves the batch out from its start.
"""

import argparse
from collections.abc import Callable, Iterator
import contextlib
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
from typing import Any, NamedTuple
from unittest import mock

import jax
from ml_collections import ConfigDict
import numpy as np

from llm import metrics
from llm import pipeline
from llm import processes
from llm import run as run_lib
from llm import train_step
from llm.errors import Diverged, UserError
from llm.journal import Journal
from llm.main import enable_compilation_cache
from llm.manifest import read, sealed_steps
from llm.stages import ppo
from tools.faults import job
from tools.flags import ended, Parser

FACTORS = {'nan': np.nan, 'inf': np.inf, 'spike': 1e4}
# Ratings that are no numbers order no answers: such a batch of the reward stage teaches nothing, and harms nothing.
PLACES = {'pretrain': ('loss', 'gradient', 'batch'), 'sft': ('loss', 'gradient', 'batch'),
          'reward': ('loss', 'gradient'), 'ppo': ('loss', 'gradient', 'reward', 'kl')}
KILLS = ('before it is recorded', 'when it is recorded', 'on the way back')
STEPS, SAVES, LOGS = 12, 4, 5
REWINDS = 3


class Fault(NamedTuple):
    """What goes wrong in the batches from `first` to `last`, counted from 0."""

    stage: str
    place: str
    kind: str
    first: int
    last: int


def config_of(folder: pathlib.Path, **changes) -> ConfigDict:
    """Four tiny stages, on the data in that folder, whose steps are looked at when they are logged or saved."""
    keys = {'stop_step': STEPS, 'eval_every_steps': SAVES, 'save_every_steps': SAVES, 'log_every_steps': LOGS,
            'keep_checkpoints': STEPS, 'figures.rows': 0, 'samples.prompts': (), 'guard.spike': 40.0, 'guard.window': 8,
            'guard.rewinds': REWINDS}
    changes = {f'{name}.{key}': value for name in job.NAMES for key, value in keys.items()} | changes
    # What is learned fast can be told from what is not; a KL coefficient that moves would keep a NaN.
    return job.pipeline_config(folder, **{'ppo.kl_horizon': 100.0, 'sft.patience': STEPS}, **changes)


def alone(name: str, config: ConfigDict, base: pathlib.Path, workdir: pathlib.Path) -> ConfigDict:
    """That stage, to be run in a workdir of its own from the parents in `base`."""
    stage = config.stages[name].copy_and_resolve_references()
    for key in ('init_from', 'reward_from'):
        if stage.get(key):
            stage[key] = str(job.folder_of(stage[key].removeprefix('stage:'), base))
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / 'data').exists():
        (workdir / 'data').symlink_to(base / 'data')  # prepared rows
    return ConfigDict({'stages': {name: stage}})


# Faults.

@contextlib.contextmanager
def injected(fault: Fault) -> Iterator[None]:
    """While this context lasts, those batches go wrong."""
    factor = np.float32(FACTORS[fault.kind])
    make_batches, gradient, make_rollout = run_lib.batches, train_step._gradient, ppo.make_rollout

    def batches(rows: Callable, *, batch_size: int, **where):
        def marked(indices: np.ndarray) -> dict[str, np.ndarray]:
            number_B = indices // batch_size
            wrong_B = (fault.first <= number_B) & (number_B <= fault.last)
            fields = rows(indices)
            if fault.place == 'batch':
                return spoilt(fields, wrong_B, factor)
            factor_B = np.where(wrong_B, factor, np.float32(1))
            return fields | {'fault_B': factor_B, 'ptx_fault_B': factor_B}  # the latter reaches PPO's minibatches
        return make_batches(marked, batch_size=batch_size, **where)

    def wrong_gradient(objective, params, frozen, batch, *more):
        grads, loss = gradient(objective, params, frozen, batch, *more)
        by = batch['ptx_fault_B'][0]
        if fault.place == 'gradient':
            return jax.tree.map(lambda leaf: leaf * by, grads), loss
        return grads, loss._replace(terms={
            name: term._replace(sum=term.sum * by) for name, term in loss.terms.items()})

    def wrong_rollout(*of):
        rollout, by = make_rollout(*of), [1.0]

        def generate(policy, prompts, key):
            by[0] = prompts.get('fault_B', np.ones(1, np.float32))[0]  # held-out prompts are as they were
            return rollout.generate(policy, prompts, key)

        def read(*args):
            trajectories, seen = rollout.read(*args)
            field = {'reward': 'reward_BT', 'kl': 'logp_ref_BT'}[fault.place]
            return (trajectories._replace(**{field: getattr(trajectories, field) * by[0]}),
                    seen | {fault.place: seen[fault.place] * by[0]})
        return rollout._replace(generate=generate, read=read)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(run_lib, 'batches', batches))
        if fault.place in ('loss', 'gradient'):
            stack.enter_context(mock.patch.object(train_step, '_gradient', wrong_gradient))
        if fault.place in ('reward', 'kl'):
            stack.enter_context(mock.patch.object(ppo, 'make_rollout', wrong_rollout))
        yield


def spoilt(fields: dict[str, np.ndarray], wrong_B: np.ndarray, factor: np.float32) -> dict[str, np.ndarray]:
    """Rows whose weights are no numbers."""
    return fields | {'mask_BT': np.where(wrong_B[:, None], factor, fields['mask_BT']).astype(np.float32)}


@contextlib.contextmanager
def killed(when: str, fault: Fault) -> Iterator[None]:
    """While this context lasts, this process is killed when it has gone wrong, before or after that is written down."""
    write_json, saw = pipeline.write_json, Journal.saw

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write(path, value) -> None:
        if path.name == 'rewinds.json' and when == KILLS[0]:
            kill()
        write_json(path, value)
        if path.name == 'rewinds.json' and when == KILLS[1]:
            kill()

    def watch(journal: Journal, step: int, seen: dict[str, Any]) -> None:
        saw(journal, step, seen)
        if when == KILLS[2] and journal._run.rewinds and step > fault.first:
            kill()
    with mock.patch.object(pipeline, 'write_json', write), mock.patch.object(Journal, 'saw', watch):
        yield


# Runs and what they leave behind.

def left(name: str, workdir: pathlib.Path) -> dict[str, Any]:
    """All of a run that ought to be the same again: rows, and every sealed step's fingerprints and host state."""
    folder = job.folder_of(name, workdir)
    steps = {step: read(folder / 'checkpoints', step) for step in sealed_steps(folder / 'checkpoints')}
    return {'rows': job.rows(folder),
            'steps': {step: (manifest.leaves, manifest.files) for step, manifest in steps.items()}}


def rewinds(name: str, workdir: pathlib.Path) -> list[dict[str, Any]]:
    path = job.folder_of(name, workdir) / 'rewinds.json'
    return json.loads(path.read_text()) if path.exists() else []


def run(fault: Fault, base: pathlib.Path, workdir: pathlib.Path) -> str:
    """Runs the stage in which that goes wrong; returns 'done', or the exit code and the line that it ended with."""
    config = alone(fault.stage, config_of(base), base, workdir)
    with injected(fault):
        try:
            job.run(config, workdir)
        except Diverged as error:
            return f'{error.exit_code}: {error}'
    return 'done'


def expected(fault: Fault, base: pathlib.Path, workdir: pathlib.Path) -> dict[str, Any]:
    """What is left of a run that has left those batches out from its start; whatever is wrong in them, the same."""
    other = workdir.with_name('-'.join(map(str, ('without', fault.stage, fault.place, fault.first, fault.last))))
    folder = other / job.folder_of(fault.stage, workdir).name
    if not folder.exists():
        folder.mkdir(parents=True)
        shutil.copy(job.folder_of(fault.stage, workdir) / 'rewinds.json', folder)
        assert run(fault, base, other) == 'done'
    return left(fault.stage, other)


def run_killed(fault: Fault, when: str, base: pathlib.Path, workdir: pathlib.Path) -> dict[str, Any]:
    """What is left of a run that is killed, in a process of its own, and started again."""
    command = [sys.executable, '-m', 'tools.faults.anomalies', f'--workdir={workdir}', f'--base={base}',
               f'--fault={json.dumps(fault)}', f'--kill={when}']
    code = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, cwd=job.ROOT,
                          env=os.environ | {'JAX_NUM_CPU_DEVICES': str(jax.device_count())}).returncode
    assert code == -signal.SIGKILL, f'{command} was not killed but ended with {code}'
    assert run(fault, base, workdir) == 'done'
    return left(fault.stage, workdir)


def try_out(fault: Fault, base: pathlib.Path, workdir: pathlib.Path, kill: str | None) -> dict[str, Any]:
    """The row of one fault."""
    workdir = workdir / '-'.join(map(str, fault))
    ended = run(fault, base, workdir)
    went = rewinds(fault.stage, workdir)
    row = {'stage': fault.stage, 'in': fault.place, 'what': fault.kind,
           'batches': f'{fault.first}' if fault.first == fault.last else f'{fault.first}..{fault.last}',
           'seen in': ', '.join(dict.fromkeys(one['metric'] for one in went)) or 'nothing',
           'back to': ', '.join(str(one['sealed']) for one in went),
           'left out': ', '.join(str(one['batch']) for one in went), 'ended': ended.partition(':')[0]}
    if fault.last - fault.first >= REWINDS:
        steps = left(fault.stage, workdir)['steps']
        good = ended.startswith('43:') and len(went) == REWINDS and max(steps) <= fault.first
        return row | {'as without': '', 'killed': '', 'good': good}
    batches = list(range(fault.first, fault.last + 1))
    same = ended == 'done' and bool(went) and left(fault.stage, workdir) == expected(fault, base, workdir)
    good = same and [one['batch'] for one in went] == batches
    if kill:
        again = workdir.with_name(f'{workdir.name}-killed')
        survived = run_killed(fault, kill, base, again) == left(fault.stage, workdir)
        good &= survived and rewinds(fault.stage, again) == went
    return row | {'as without': _yes(same), 'killed': f'{kill}: {_yes(survived)}' if kill else '', 'good': good}


def faults(draw: random.Random, names: list[str]) -> Iterator[Fault]:
    """Every place and kind, two batches in one run, and a fault that stays."""
    for name in names:
        for place in PLACES[name]:
            batch = draw.randrange(6, STEPS - 1)
            for kind in FACTORS:
                if (place, kind) != ('batch', 'spike'):  # after a dozen steps a model is surprised by no batch
                    yield Fault(name, place, kind, batch, batch)
        first = draw.randrange(5, STEPS - 3)
        yield Fault(name, PLACES[name][1], 'nan', first, first + 1)
        yield Fault(name, PLACES[name][1], 'nan', first, 10 ** 6)


def prepare(base: pathlib.Path) -> pathlib.Path:
    """Four finished stages to start from."""
    base.mkdir(parents=True, exist_ok=True)
    job.write_data(base)
    job.run(config_of(base), base)
    return base


def _yes(truth: bool) -> str:
    return 'yes' if truth else 'NO'


def main() -> int:
    parser = Parser(prog='tools.faults.anomalies', description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', required=True, type=pathlib.Path)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', default=','.join(job.NAMES), help='stages, with commas between')
    parser.add_argument('--json', type=pathlib.Path, help='where the table goes, too')
    for name in ('base', 'fault', 'kill'):  # of one run, to be killed
        parser.add_argument(f'--{name}', help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.only.split(',')
    if unknown := set(names) - set(job.NAMES):
        raise UserError(f'--only={args.only}: no stage is called {", ".join(sorted(unknown))}; use some of '
                        f'{",".join(job.NAMES)}')
    processes.choose_platform()
    enable_compilation_cache()
    if args.kill:
        fault = Fault(*json.loads(args.fault))
        with killed(args.kill, fault):
            run(fault, pathlib.Path(args.base), args.workdir)
        return 0
    metrics.console.quiet = True
    base, draw, rows = prepare(args.workdir.absolute() / 'base'), random.Random(args.seed), []
    kills = itertools.cycle(KILLS)
    for fault in faults(draw, names):
        kill = next(kills) if fault.kind == 'nan' and fault.first == fault.last else None
        rows.append(try_out(fault, base, base.parent, kill))
        print(json.dumps(rows[-1]), flush=True)
    metrics.console.quiet = False
    metrics.table(f'{sum(row["good"] for row in rows)} of {len(rows)} faults caught before they were saved', rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return 0 if all(row['good'] for row in rows) else 1


if __name__ == '__main__':
    sys.exit(ended(main))

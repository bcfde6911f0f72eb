"""Runs of a stage that ought to be equal (on another mesh, in micro-batches, killed), and their comparison.

In: a pipeline's config, a workdir in which the stages before the one in question are finished.
Out: a run's rows and fingerprints, and by how much two runs differ.
Left out: which runs are compared and how close they have to be (the tests here, `experiments/`).
"""

from collections.abc import Callable
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types
from typing import Any
from unittest import mock

import jax
from ml_collections import ConfigDict

from llm.stages import ppo
from tests import tiny
from tools.faults import job

NAMES, folder_of, rows, last_manifest = job.NAMES, job.folder_of, job.rows, job.last_manifest


def up_to(name: str, config: ConfigDict) -> ConfigDict:
    """A copy of a four-stage config that ends with that stage."""
    return ConfigDict({'stages': {kept: config.stages[kept].copy_and_resolve_references()
                                  for kept in NAMES[:NAMES.index(name) + 1]}})


def run_again(name: str, config: ConfigDict, workdir: pathlib.Path, *, mesh: tuple[int, int, int],
              micro_batches: int = 1) -> list[dict[str, Any]]:
    """Runs that stage alone from the parents in the workdir, and returns its rows."""
    config = up_to(name, config)
    execute_on(config.stages[name], mesh, micro_batches)
    tiny.run(config, workdir, rerun=name)
    return rows(folder_of(name, workdir))


def execute_on(stage: ConfigDict, mesh: tuple[int, int, int], micro_batches: int = 1) -> None:
    stage.exec.mesh.update(dict(zip(('data', 'fsdp', 'tensor'), mesh)))
    stage.exec.micro_batches = micro_batches


def difference(one: list[dict[str, Any]], other: list[dict[str, Any]], key: str) -> float:
    """The largest relative difference of that number over all rows that have it."""
    assert [(row['step'], row['kind']) for row in one] == [(row['step'], row['kind']) for row in other]
    pairs = [(mine[key], yours[key]) for mine, yours in zip(one, other) if key in mine]
    return max(abs(mine - yours) / max(abs(mine), abs(yours), sys.float_info.min) for mine, yours in pairs)


def recorded(tape: list[Any]):
    """While this context lasts, PPO's rollouts are kept on the tape."""
    return _rollouts(lambda rollout, run: rollout._replace(read=lambda *args: _kept(rollout.read(*args), tape)))


def replayed(tape: list[Any]):
    """While this context lasts, PPO's rollouts are those on the tape, whatever the policy has become."""
    again = iter(tape)

    def replay(rollout: ppo.Rollout, run: Any) -> ppo.Rollout:
        def generate(*args):
            trajectories, seen = next(again)
            return types.SimpleNamespace(seen=seen, mask_BT=trajectories.mask_BT, made=jax.device_put(
                trajectories, run.rows_sharding))
        return rollout._replace(generate=generate, read=lambda value, frozen, kept, *args: (kept.made, kept.seen))
    return _rollouts(replay)


def _rollouts(change: Callable[[ppo.Rollout, Any], ppo.Rollout]):
    make_rollout = ppo.make_rollout
    return mock.patch.object(ppo, 'make_rollout', lambda run, *of: change(make_rollout(run, *of), run))


def _kept(made: Any, tape: list[Any]) -> Any:
    tape.append(jax.device_get(made))
    return made


def drive(config: ConfigDict, workdir: pathlib.Path, *, kill_in: str | None = None, beyond: int = 0) -> None:
    """The driver as a process of its own, which sees as many devices as this one.

    Args:
      kill_in: the stage in which it gets a SIGKILL; None: it is left to its end.
      beyond: the kill comes when this step is sealed and a row of a later one is written.
    """
    workdir.mkdir(exist_ok=True)
    job.write_config(config, workdir)
    with (workdir / 'said.log').open('w') as said, subprocess.Popen(
            job.command(workdir), cwd=job.ROOT, stdout=said, stderr=said,
            env=os.environ | {'JAX_NUM_CPU_DEVICES': str(jax.device_count()),
                              'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir}) as process:
        while process.poll() is None:
            if kill_in is not None and _has_passed(beyond, kill_in, workdir):
                process.kill()
            time.sleep(0.002)
    expected = 0 if kill_in is None else -signal.SIGKILL
    assert process.returncode == expected, (workdir / 'said.log').read_text()


def _has_passed(step: int, name: str, workdir: pathlib.Path) -> bool:
    for path in workdir.glob(f'{name}-*/checkpoints/{step}.manifest.json'):
        *whole, _ = (path.parents[1] / 'metrics.jsonl').read_text().split('\n')  # the last row may be torn
        return json.loads(whole[-1])['step'] > step
    return False

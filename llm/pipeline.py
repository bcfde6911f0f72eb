"""A pipeline is a small graph of stages: who is finished, who runs next.

In: stage configs by name, whose `init_from` and `reward_from` are `stage:NAME` or `PATH[@step]`; a workdir.
Out: a folder `<workdir>/<name>-<hash8>` for each stage, and a `Result` for each.
Left out: what a stage does (stages/), what a checkpoint is (checkpoint.py, manifest.py).

The hash is over the keys that change the result, the content of the data, the tokenizer, and the parents'
identities and steps (`llm.config.identity_dict`). Nothing else decides whether a stage is run again.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from llm import config as config_lib
from llm.config import PPOConfig, PretrainConfig, RewardConfig, StageConfig, UserError, nearest
from llm.data import sources
from llm.manifest import check_parent, parse_reference
from llm.manifest import read as read_manifest
from llm.owner import Owner
from llm.run import Parent, Result, Run, provenance, read_result
from llm.sharding import make_mesh
from llm.stages import ppo, pretrain, reward, sft

STAGES = {'pretrain': pretrain, 'sft': sft, 'reward': reward, 'ppo': ppo}

# What a stage asks of the checkpoint behind each of its config keys: allowed stages, and the head.
PARENTS = {
    'pretrain': {'init_from': (('pretrain',), 'token')},
    'sft': {'init_from': (('pretrain', 'sft'), 'token')},
    'reward': {'init_from': (('sft',), 'token')},
    'ppo': {'init_from': (('sft', 'ppo'), 'token'), 'reward_from': (('reward',), 'scalar')},
}


def run_pipeline(config, workdir: str, *, rerun: str | None, say: Callable[[str], None],
                 progress: Callable[[str, int, int], None]) -> dict[str, Result]:
    """Brings every stage of a config to its end, in the order of their parents, and returns their results."""
    stages = parse(config)
    if rerun is not None and rerun not in stages:
        raise UserError(f'--rerun={rerun} is not a stage of this pipeline{nearest(rerun, stages)}')
    root = epath.Path(os.path.abspath(workdir) if '://' not in workdir else workdir)
    done: dict[str, tuple[epath.Path, Result]] = {}
    for name in topological(stages):
        run = resolve(name, stages[name], root, done, say=say, progress=progress)
        result = None if name == rerun else finished(run)
        done[name] = run.folder, result or execute(run, afresh=name == rerun)
    return {name: result for name, (_, result) in done.items()}


def parse(config) -> dict[str, StageConfig]:
    """Stage configs by name; a config of one stage is a pipeline of one, named after it."""
    if 'stages' in config:
        if len(config) > 1:
            extra = sorted(set(config) - {'stages'})[0]
            raise UserError(f'unknown config key {extra}; a pipeline has one key, stages, e.g. stages.sft.{extra}')
        return {name: config_lib.stage_config(stage) for name, stage in config.stages.items()}
    stage = config_lib.stage_config(config)
    return {stage.stage: stage}


def references(config: StageConfig) -> dict[str, str]:
    """The parents that a stage names, by config key; raises UserError where a needed one is missing."""
    named = {key: getattr(config, key) for key in PARENTS[config.stage] if getattr(config, key)}
    for key in PARENTS[config.stage]:
        if key not in named and config.stage != 'pretrain':
            raise UserError(f'{config.stage} needs a parent: {key} is empty; set it to stage:NAME or PATH[@step]')
    return named


def topological(stages: dict[str, StageConfig]) -> list[str]:
    """Names in an order in which every stage comes after its parents; raises UserError on a cycle."""
    order: list[str] = []

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            raise UserError(f'stages wait for each other: {" -> ".join((*trail, name))}; break the circle')
        for key, reference in references(stages[name]).items():
            parent = reference.removeprefix('stage:')
            if parent == reference:
                continue
            if parent not in stages:
                raise UserError(f'{name}.{key}={reference} names no stage{nearest(parent, stages)}')
            visit(parent, (*trail, name))
        if name not in order:
            order.append(name)

    for name in stages:
        visit(name, ())
    return order


def resolve(name: str, config: StageConfig, root: epath.Path, done: dict[str, tuple[epath.Path, Result]], *,
            say, progress) -> Run:
    """Everything that a run is, before it starts: parents checked, data there, identity, folder, mesh."""
    parents = {}
    for key, reference in references(config).items():
        parents[key] = _parent(config.stage, key, reference, done)
    _same_tokenizer(parents)
    mesh = make_mesh(config.exec.mesh)
    identity = _identity(config, parents, progress)
    folder = root / f'{name}-{config_lib.digest(identity)[:8]}'
    run = Run(name=name, config=config, folder=folder, identity=identity, parents=parents, mesh=mesh,
              cache_dir=str(root / 'data'), say=say, progress=progress)
    _compare_with_stored(run)
    return run


def finished(run: Run) -> Result | None:
    """The stored result, if the run has ended, its parents are still what it started from, and it is long enough."""
    result = read_result(run.folder)
    if result is None:
        return None
    if result.why == 'stop_step' and result.last_step < run.config.stop_step:
        run.say(f'{run.name}: goes on from step {result.last_step} to stop_step={run.config.stop_step}')
        return None
    for key, parent in run.parents.items():
        if result.parents[key] != parent.manifest.fingerprint():
            run.say(f'{run.name}: {key} was made again with other weights, so this stage is too')
            _set_aside(run)
            return None
    if result.code != provenance()['code']:
        run.say(f'{run.name}: finished under other source code; reused, --rerun={run.name} makes it again')
    run.say(f'{run.name}: finished at step {result.step} ({result.why}); {run.folder}')
    return result


def execute(run: Run, *, afresh: bool) -> Result:
    """Runs a stage to its end, or on from its newest sound step, and writes `result.json` last."""
    if afresh:
        _set_aside(run)
    if not run.folder.exists():
        _name_differences(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    with Owner(run.folder):
        write_json(run.folder / 'identity.json',
                   {'identity': run.identity, 'config': config_lib.to_dict(run.config), 'parents': {
                       key: f'{parent.folder}@{parent.step}' for key, parent in run.parents.items()}})
        with jax.set_mesh(run.mesh):
            result = STAGES[run.config.stage].run(run)
        write_json(run.folder / 'result.json', dataclasses.asdict(result))
    return result


def open_run(reference: str, *, mesh=None, say, progress) -> Run:
    """A run from its folder alone, to evaluate or sample from a step of it, or to go on (`PATH[@step]`)."""


def _parent(stage: str, key: str, reference: str, done: dict[str, tuple[epath.Path, Result]]) -> Parent:
    if reference.startswith('stage:'):
        folder, result = done[reference.removeprefix('stage:')]
        step = result.step
    else:
        path, step = parse_reference(reference)
        folder = epath.Path(path)
        step = chosen_step(folder, key) if step is None else step
    manifest = read_manifest(folder / 'checkpoints', step)
    allowed, head = PARENTS[stage][key]
    check_parent(manifest, where=f'{folder}@{step}', key=key, stages=allowed, head=head)
    return Parent(folder, step, manifest)

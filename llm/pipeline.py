"""A pipeline is a small graph of stages: who is finished, who runs next.

In: stage configs by name, whose `init_from` and `reward_from` are `stage:NAME` or `PATH[@step]`; a workdir.
Out: a folder `<workdir>/<name>-<hash8>` for each stage, and a `Result` for each.
Left out: what a stage does (stages/), what it leaves in its folder (run.py), what a checkpoint is (checkpoint.py).

The hash is over the keys that change the result, the content of the data, the tokenizer, and the parents'
identities and steps. Nothing else decides whether a stage is run again.
"""

from collections.abc import Callable
import dataclasses
import itertools
import json
import os
from typing import Any

from etils import epath
import jax

from llm import config as config_lib
from llm import provenance
from llm import train_state
from llm.checkpoint import load_params
from llm.config import DataConfig, StageConfig, UserError, nearest
from llm.data import sources
from llm.data import tokenizer as tokenizer_lib
from llm.data.sources import BadRows
from llm.data.tokenizer import Tokenizer
from llm.manifest import check_parent, parse_reference, sealed_steps
from llm.manifest import read as read_manifest
from llm.owner import Owner
from llm.run import Parent, Result, Run
from llm.sharding import AxisRules, check_batch, make_mesh
from llm.stages import ppo, pretrain, reward, sft

# Each has run(run) -> Result, and for one of its checkpoints initial(run), evaluator(run) and samples(run, params).
STAGES = {'pretrain': pretrain, 'sft': sft, 'reward': reward, 'ppo': ppo}

# What a stage asks of the checkpoint behind each of its config keys: allowed stages, and the head.
PARENTS = {
    'pretrain': {'init_from': (('pretrain',), 'token')},
    'sft': {'init_from': (('pretrain', 'sft'), 'token')},
    'reward': {'init_from': (('sft',), 'token')},
    'ppo': {'init_from': (('sft',), 'token'), 'reward_from': (('reward',), 'scalar')},
}


def run_pipeline(config, workdir: str, *, rerun: str | None, say: Callable[[str], None],
                 progress: Callable[[str, int, int], None]) -> dict[str, Result]:
    """Brings every stage of a config to its end, parents first, and returns the results by stage name.

    Raises UserError for whatever a user can mend; what was finished before stays finished.
    """
    stages = parse(config)
    if rerun is not None and rerun not in stages:
        raise UserError(f'--rerun={rerun} is not a stage of this pipeline{nearest(rerun, stages)}')
    for name, config in stages.items():
        check_execution(name, config)
    root = epath.Path(workdir if '://' in workdir else os.path.abspath(workdir))
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--workdir={workdir} cannot be made ({error.strerror}); name a folder you may write') from None
    done: dict[str, tuple[epath.Path, Result]] = {}
    for name in topological(stages):
        run = resolve(name, stages[name], root, done, say=say, progress=progress)
        if name == rerun:
            set_aside(run)
        done[name] = run.folder, finished(run) or execute(run)
    return {name: result for name, (_, result) in done.items()}


def parse(config) -> dict[str, StageConfig]:
    """Stage configs by name; a config of one stage is a pipeline of one, named after its stage."""
    if 'stages' not in config:
        stage = config_lib.stage_config(config)
        return {stage.stage: stage}
    for key in config:
        if key != 'stages':
            raise UserError(f'unknown config key {key}; in a pipeline, keys belong to a stage: stages.NAME.{key}')
    return {name: config_lib.stage_config(stage) for name, stage in config.stages.items()}


def check_execution(name: str, config: StageConfig) -> None:
    """Raises UserError for a mesh, rules or batch sizes that do not go together, before any stage runs."""
    try:
        mesh, rules = make_mesh(config.exec.mesh), AxisRules.from_config(config.exec.rules)
        for key in ('batch_size', 'rollout_batch', 'normalize_samples'):
            if hasattr(config, key):
                check_batch(key, getattr(config, key), mesh, rules)
        check_batch('batch_size / exec.micro_batches', config.batch_size // config.exec.micro_batches, mesh, rules)
    except UserError as error:
        raise UserError(f'stage {name}: {error}') from None


def references(name: str, config: StageConfig) -> dict[str, str]:
    """The parents that a stage names, by config key; raises UserError where a needed one is missing."""
    named = {key: getattr(config, key) for key in PARENTS[config.stage] if getattr(config, key)}
    for key in PARENTS[config.stage]:
        if key not in named and config.stage != 'pretrain':
            raise UserError(f'{name} needs a parent and {key} is empty; set {key} to stage:NAME or PATH[@step]')
    return named


def topological(stages: dict[str, StageConfig]) -> list[str]:
    """Names in an order in which every stage comes after its parents; raises UserError on a circle."""
    order: list[str] = []

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            raise UserError(f'stages wait for each other: {" -> ".join((*trail, name))}; change one init_from')
        for key, reference in references(name, stages[name]).items():
            parent = reference.removeprefix('stage:')
            if parent != reference and parent not in stages:
                raise UserError(f'{name}.{key}={reference} names no stage{nearest(parent, stages)}')
            if parent != reference:
                visit(parent, (*trail, name))
        if name not in order:
            order.append(name)

    for name in stages:
        visit(name, ())
    return order


def resolve(name: str, config: StageConfig, root: epath.Path, done: dict[str, tuple[epath.Path, Result]], *,
            say: Callable[[str], None], progress: Callable[[str, int, int], None]) -> Run:
    """Everything that a run is before it starts: its mesh, parents that fit, data, and so its identity."""
    mesh = make_mesh(config.exec.mesh)
    parents = {key: find_parent(config.stage, key, reference, done)
               for key, reference in references(name, config).items()}
    if 'reward_from' in parents:
        manifest = parents['reward_from'].manifest
        check_parent(manifest, key='reward_from', where=config.reward_from, stages=('reward',), head='scalar',
                     tokenizer=parents['init_from'].manifest.tokenizer)
    identity = {'config': config_lib.identity_dict(config), 'data': content(config, progress),
                'tokenizer': tokenizer_identity(config, parents),
                'parents': {key: {'identity': parent.manifest.identity, 'step': parent.step}
                            for key, parent in parents.items()}}
    return Run(name=name, config=config, folder=root / f'{name}-{config_lib.digest(identity)[:8]}',
               identity=identity, parents=parents, mesh=mesh, cache_dir=str(root / 'data'), say=say,
               progress=progress)


def open_step(reference: str, *, say: Callable[[str], None],
              progress: Callable[[str, int, int], None]) -> tuple[Run, int, Any]:
    """A run from its folder alone, a step of it, and that step's parameters (`PATH[@step]`; else the chosen step)."""
    path, step = parse_reference(reference, '--checkpoint')
    folder = epath.Path(os.path.abspath(path) if '://' not in path else path)
    step = chosen_step(folder, f'--checkpoint={reference}') if step is None else step
    stored = json.loads((folder / 'identity.json').read_text())
    config = config_lib.from_dict(config_lib.STAGES[stored['config']['stage']], stored['config'])
    parents = {key: find_parent(config.stage, key, parent, {}) for key, parent in stored['parents'].items()}
    run = Run(name=stored['name'], config=config, folder=folder, identity=stored['identity'], parents=parents,
              mesh=make_mesh(config.exec.mesh), cache_dir=str(folder.parent / 'data'), say=say, progress=progress)
    shapes = train_state.abstract_params(STAGES[config.stage].initial(run), run.mesh, run.rules)
    return run, step, load_params(folder / 'checkpoints', step, shapes)[0]


def find_parent(stage: str, key: str, reference: str, done: dict[str, tuple[epath.Path, Result]]) -> Parent:
    """The checkpoint that a reference names; raises UserError unless it can be a parent in this role."""
    if reference.startswith('stage:'):
        folder, result = done[reference.removeprefix('stage:')]
        step = result.step
    else:
        path, step = parse_reference(reference, key)
        folder = epath.Path(os.path.abspath(path) if '://' not in path else path)
        step = chosen_step(folder, f'{key}={reference}') if step is None else step
    manifest = read_manifest(folder / 'checkpoints', step)
    stages, head = PARENTS[stage][key]
    check_parent(manifest, key=key, where=reference, stages=stages, head=head)
    return Parent(folder, step, manifest)


def chosen_step(folder: epath.Path, where: str) -> int:
    """The step that a finished run chose, or the newest sealed one of a run that has not ended."""
    result = read_result(folder)
    steps = sealed_steps(folder / 'checkpoints')
    if not steps:
        raise UserError(f'{where} has no checkpoint; name the folder of a run, e.g. runs/x/sft-1234abcd')
    return steps[-1] if result is None else result.step


def content(config: StageConfig, progress: Callable[[str, int, int], None]) -> dict[str, dict[str, str]]:
    """SHA-256 of the data, by source and split, brought here first where it has to be."""
    named = dict(config.data.sources)
    if config.stage == 'reward':
        named |= {f'prompts/{name}': source for name, source in config.prompt_data.sources.items()}
    hashes: dict[str, dict[str, str]] = {}
    for name, source in named.items():
        sources.materialize(source, config.data.data_dir, progress)
        hashes[name] = {split: sources.content_sha256(source, split, config.data.data_dir)
                        for split in ('train', 'validation')}
    if not hashes:
        raise UserError('data.sources is empty; name at least one source, e.g. data.sources.mine.jsonl=FILE')
    return hashes


def tokenizer_identity(config: StageConfig, parents: dict[str, Parent]) -> str | None:
    """SHA-256 of the tokenizer that is given; None for one that the stage will train from its data."""
    if parents:
        return parents['init_from'].manifest.tokenizer['sha256']
    return Tokenizer.from_file(config.tokenizer.path).sha256 if config.tokenizer.path else None


def provide_tokenizer(run: Run) -> None:
    """Puts the run's own `tokenizer.model` into its folder: the parent's, the configured one, or a new one."""
    target, config = run.folder / 'tokenizer.model', run.config
    given = run.parents['init_from'].folder / 'tokenizer.model' if run.parents else config.tokenizer.path
    if target.exists():
        pass
    elif given:
        Tokenizer.from_file(str(given))
        target.write_bytes(epath.Path(given).expanduser().read_bytes())
    else:
        share = config.tokenizer.train_bytes // len(config.data.sources)
        texts = (text for source in config.data.sources.values() for text in first_bytes(source, config.data, share))
        tokenizer_lib.train(texts, config.model.vocab_size, config.tokenizer.train_bytes, str(target))
    if run.parents and run.tokenizer.sha256 != run.identity['tokenizer']:
        raise UserError(f'{target} has SHA-256 {run.tokenizer.sha256[:8]}, the parent was trained with '
                        f'{run.identity["tokenizer"][:8]}; restore the parent\'s tokenizer.model')
    if run.tokenizer.vocab_size != run.model_config.vocab_size:
        raise UserError(f'model.vocab_size={run.model_config.vocab_size} is not the tokenizer\'s '
                        f'{run.tokenizer.vocab_size}; make them equal')


def first_bytes(source, data: DataConfig, limit: int):
    """Training texts of one source, up to its share of what the tokenizer is trained on."""
    for record in sources.records(source, 'train', data.data_dir, BadRows(data.max_bad_percent)):
        yield record['text'][:limit]
        limit -= len(record['text'].encode())
        if limit <= 0:
            return


def finished(run: Run) -> Result | None:
    """The stored result, where the run has ended, is long enough, and its parents are still what they were."""
    result = read_result(run.folder)
    if result is None:
        return None
    if result.why == 'stop_step' and result.last_step < run.config.stop_step:
        run.say(f'{run.name}  goes on from step {result.last_step} to stop_step={run.config.stop_step}')
        return None
    for key, parent in run.parents.items():
        if result.parents[key] != parent.manifest.fingerprint:
            run.say(f'{run.name}  {key} was made again with other weights, so this stage is too')
            set_aside(run)
            return None
    if result.code != provenance.code():
        run.say(f'{run.name}  finished under other source code, reused; --rerun={run.name} makes it again')
    run.say(f'{run.name}  finished at step {result.step} ({result.why})  {run.folder}')
    return result


def execute(run: Run) -> Result:
    """Runs a stage to its end, from its newest sound step on, and writes `result.json` last."""
    if not run.folder.exists():
        name_differences(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    with Owner(run.folder) as owner:
        run = dataclasses.replace(run, owner=owner)
        write_json(run.folder / 'identity.json', {
            'name': run.name, 'identity': run.identity, 'config': dataclasses.asdict(run.config),
            'parents': {key: f'{parent.folder}@{parent.step}' for key, parent in run.parents.items()}})
        provide_tokenizer(run)
        with jax.set_mesh(run.mesh):
            result = STAGES[run.config.stage].run(run)
        write_json(run.folder / 'result.json', dataclasses.asdict(result))
    run.say(f'{run.name}  {result.metric} {result.before:.4f} -> {result.after:.4f} at step {result.step}  {run.folder}')
    return result


def set_aside(run: Run) -> None:
    """Renames a run's folder, so that the stage starts anew and nothing is lost."""
    if run.folder.exists():
        with Owner(run.folder):
            pass  # refused while another process works on it
        number = next(n for n in itertools.count(1) if not _aside(run, n).exists())
        run.folder.rename(_aside(run, number))
        run.say(f'{run.name}  the earlier run is now {_aside(run, number)}')


def _aside(run: Run, number: int) -> epath.Path:
    return run.folder.parent / f'{run.folder.name}.replaced-{number}'


def name_differences(run: Run) -> None:
    """Says which keys set a new run apart from the most similar one beside it."""
    mine = dict(_flat(run.identity))
    others = {}
    for folder in run.folder.parent.glob(f'{run.name}-*'):
        if (folder / 'identity.json').exists():
            theirs = dict(_flat(json.loads((folder / 'identity.json').read_text())['identity']))
            others[folder.name] = [(key, theirs.get(key), mine.get(key)) for key in sorted(mine.keys() | theirs.keys())
                                   if theirs.get(key) != mine.get(key)]
    if others:
        folder, differences = min(others.items(), key=lambda item: len(item[1]))
        run.say(f'{run.name}  a new run; {folder} differs in ' + ', '.join(
            f'{key.removeprefix("config.")}: {old!r} -> {new!r}' for key, old, new in differences))


def _flat(value: Any, path: str = ''):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f'{path}.{key}' if path else key)
    else:
        yield path, value


def read_result(folder: epath.Path) -> Result | None:
    path = folder / 'result.json'
    return Result(**json.loads(path.read_text())) if path.exists() else None


def write_json(path: epath.Path, value: Any) -> None:
    """Atomically: a reader finds the whole file or none."""
    partial = path.parent / f'{path.name}.partial'
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False))
    partial.replace(path)

"""A pipeline is a small graph of stages: who is finished, who runs next.

In: stage configs by name, whose `init_from` and `reward_from` are `stage:NAME` or `PATH[@step]`; a workdir.
Out: a folder `<workdir>/<name>-<hash8>` for each stage, and a `Result` for each.
Left out: what a stage does (`stages`), what it is given (`resolve`), what it leaves in its folder (`run`, `journal`).

The hash is over the keys that change the result, the content of the data, the tokenizer, and the parents'
identities and steps. Nothing else decides whether a stage is run again.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import gc
import itertools
import json
import os
from typing import Any

from etils import epath
import jax

from llm import guard
from llm import processes
from llm import provenance
from llm import train_state
from llm.checkpoint import load_params
from llm.config import stage_config, StageConfig
from llm.config import STAGES as STAGE_CONFIGS
from llm.door import from_dict, nearest
from llm.errors import StorageError, UserError
from llm.execution import MeshConfig
from llm.loop import batch_of
from llm.manifest import parse_reference, sealed_steps
from llm.manifest import read as read_manifest
from llm.owner import Owner
from llm.phases import Phases
from llm.processes import barrier, first_then_others, is_first, Notice
from llm.resolve import check, chosen_step, content, find_parent, provide_tokenizer, references, resolve
from llm.run import read_result, Result, Run, write_json
from llm.sharding import make_mesh
from llm.stages import ppo, pretrain, reward, sft

# Each has run(run) -> Result, and for one of its checkpoints initial(run), evaluator(run), samples(run, params) and
# figures(run, params).
STAGES = {'pretrain': pretrain, 'sft': sft, 'reward': reward, 'ppo': ppo}


def run_pipeline(config, workdir: str, *, rerun: str | None, say: Callable[[str], None],
                 progress: Callable[[str, int, int], None]) -> dict[str, tuple[epath.Path, Result]]:
    """Brings every stage of a config to its end, parents first; returns folders and results by stage name.

    Raises UserError for whatever a user can mend; what was finished before stays finished.
    """
    stages = parse(config)
    if rerun is not None and rerun not in stages:
        raise UserError(f'--rerun={rerun} is not a stage of this pipeline{nearest(rerun, stages)}')
    order = topological(stages)
    for name in order:
        check(name, stages[name])
    root = epath.Path(os.path.abspath(workdir))
    if os.environ.get(processes.GOES_ON) and not (root.exists() and any(root.iterdir())):
        raise StorageError(f'--workdir={workdir} is gone since this run began; bring its disk back')
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--workdir={workdir} cannot be made ({error.strerror}); name a folder you may write') from None
    with first_then_others('data'):
        data = {name: content(name, stages[name], progress) for name in order}
    done: dict[str, tuple[epath.Path, Result]] = {}
    with Notice() as notice:
        for name in order:
            run = resolve(name, stages[name], data[name], root, done, notice=notice, say=say, progress=progress)
            remade = remade_parent(run)
            if remade:
                say(f'{name}  {remade} was made again with other weights, so this stage is too')
            ended = None if remade or name == rerun else finished(run)
            barrier(f'{name} resolved')  # all have looked, before any of it is changed
            if remade or name == rerun:
                set_aside(run)
            done[name] = run.folder, ended or execute(run)
    return done


def parse(config) -> dict[str, StageConfig]:
    """Stage configs by name; a config of one stage is a pipeline of one, named after its stage."""
    if 'stages' not in config:
        stage = stage_config(config)
        return {stage.stage: stage}
    for key in config:
        if key != 'stages':
            raise UserError(f'unknown config key {key}; in a pipeline, keys belong to a stage: stages.NAME.{key}')
    return {name: stage_config(stage) for name, stage in config.stages.items()}


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


def open_step(reference: str, *, say: Callable[[str], None],
              progress: Callable[[str, int, int], None]) -> tuple[Run, int, Any]:
    """A run from its folder alone, a step of it, and that step's parameters (`PATH[@step]`; else the chosen step)."""
    path, step = parse_reference(reference, '--checkpoint')
    folder = epath.Path(os.path.abspath(path) if '://' not in path else path)
    step = chosen_step(folder, f'--checkpoint={reference}') if step is None else step
    if not (folder / 'identity.json').exists():
        raise UserError(f'--checkpoint={reference} is not the folder of a run; name one, e.g. runs/x/sft-1234abcd')
    stored = json.loads((folder / 'identity.json').read_text())
    stored['config']['exec'].pop('logits_chunk_tokens', None)  # earlier runs cut logits so: no matter to a checkpoint
    config = from_dict(STAGE_CONFIGS[stored['config']['stage']], stored['config'])
    parents = {key: find_parent(config.stage, key, parent, {}) for key, parent in stored['parents'].items()}
    try:
        mesh = make_mesh(config.exec.mesh)
    except UserError:  # trained on more devices than there are here
        mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
    run = Run(name=stored['name'], config=config, folder=folder, identity=stored['identity'], parents=parents,
              mesh=mesh, cache_dir=str(folder.parent / 'data'), say=say, progress=progress)
    if remade := remade_parent(run):
        raise UserError(f'--checkpoint={reference}: its {remade}={stored["parents"][remade]} was made again with other '
                        f'weights; run this stage again, too')
    shapes = train_state.abstract_params(STAGES[config.stage].initial(run), run.mesh, run.rules)
    return run, step, load_params(folder / 'checkpoints', step, shapes)[0]


def remade_parent(run: Run) -> str | None:
    """The config key of a parent whose weights are not those that this run's newest step says it began with."""
    for step in reversed(sealed_steps(run.folder / 'checkpoints')):
        try:
            began = read_manifest(run.folder / 'checkpoints', step).parents
        except UserError:  # damaged: the restore will say so
            continue
        return next((key for key, parent in run.parents.items()
                     if began[key]['fingerprint'] != parent.manifest.fingerprint), None)
    return None


def finished(run: Run) -> Result | None:
    """The stored result, where the run has ended and is long enough."""
    result = read_result(run.folder)
    if result is None:
        return None
    if result.why == 'stop_step' and result.last_step < run.config.stop_step:
        run.say(f'{run.name}  goes on from step {result.last_step} to stop_step={run.config.stop_step}')
        return None
    if result.code != provenance.code():
        run.say(f'{run.name}  finished under other source code, reused; --rerun={run.name} makes it again')
    run.say(f'{run.name}  finished at step {result.step} ({result.why})  {run.folder}')
    return result


def execute(run: Run) -> Result:
    """Runs a stage to its end, from its newest sound step on, and writes `result.json` last."""
    with contextlib.ExitStack() as stack:
        with first_then_others(f'{run.name} begins'):
            owner = begin(run, stack) if is_first() else None
        run = dataclasses.replace(run, owner=owner)
        try:
            while (result := attempt(run)) is None:
                gc.collect()  # of the state that went wrong: there may be no room for two
        except FileNotFoundError as error:
            if (run.folder / 'identity.json').exists():  # what is still being written may make the folder anew
                raise
            raise StorageError(f'{run.folder} is gone; bring it back and start again, which continues from the last '
                               f'sealed step') from error
        with first_then_others(f'{run.name} ends'):
            if is_first():
                write_json(run.folder / 'result.json', dataclasses.asdict(result))
    run.say(f'{run.name}  {result.metric} {result.before:.4f} -> {result.after:.4f} at step {result.step}  '
            f'{run.folder}')
    return result


def begin(run: Run, stack: contextlib.ExitStack) -> Owner:
    """Makes a run's folder, owns it while the stack lasts, and puts in what the run is."""
    if not run.folder.exists():
        name_differences(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    owner = stack.enter_context(Owner(run.folder))
    write_json(run.folder / 'identity.json', {
        'name': run.name, 'identity': run.identity, 'config': dataclasses.asdict(run.config),
        'parents': {key: f'{parent.folder}@{parent.step}' for key, parent in run.parents.items()}})
    for name in ('result.json', 'figures.json', 'samples.jsonl'):  # of a shorter run: this one is not finished
        (run.folder / name).unlink(missing_ok=True)
    provide_tokenizer(run)
    return owner


def attempt(run: Run) -> Result | None:
    """The end of a stage, run from its newest sound step on; None where it has to go back to one."""
    with Phases() as phases, jax.set_mesh(run.mesh):
        run = dataclasses.replace(run, phases=phases, rewinds=guard.rewinds(run.folder))
        try:
            return STAGES[run.config.stage].run(run)
        except guard.Rewind as rewind:
            guard.check_rewinds(run.name, run.config.guard, run.rewinds, rewind)
            with first_then_others(f'{run.name} goes back'):
                if is_first():
                    rewound = guard.entry(rewind, batch=batch_of(rewind.step, run.skipped),
                                          sealed=sealed_steps(run.folder / 'checkpoints')[-1])
                    run.say(f'{run.name}  {rewind}; goes back to step {rewound.sealed}, without batch {rewound.batch}')
                    write_json(run.folder / 'rewinds.json', [one._asdict() for one in (*run.rewinds, rewound)])
    return None


def set_aside(run: Run) -> None:
    """Renames a run's folder, so that the stage starts anew and nothing is lost."""
    with first_then_others(f'{run.name} is set aside'):
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
        named = ', '.join(f'{key.removeprefix("config.")}: {old!r} -> {new!r}' for key, old, new in differences)
        if named:  # none: the same run, set aside
            run.say(f'{run.name}  a new run; {folder} differs in {named}')


def _flat(value: Any, path: str = ''):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f'{path}.{key}' if path else key)
    else:
        yield path, value

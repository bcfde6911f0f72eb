"""From a stage's config to a run: its mesh, parents that fit, its data, its tokenizer, and so its identity.

In: a stage's config; the folders and results of the stages before it. Out: a `Run` that is ready to start.
Left out: the order of stages, whether a run is needed at all (`pipeline`).
"""

from collections.abc import Callable, Iterator
import contextlib
import os
from typing import Any

from etils import epath

from llm.config import DataConfig, StageConfig
from llm.data import corpus
from llm.data import sources
from llm.data import tokenizer as tokenizer_lib
from llm.data.sources import BadRows
from llm.data.tokenizer import Tokenizer
from llm.errors import UserError
from llm.identity import digest, identity_dict
from llm.manifest import check_parent, parse_reference, sealed_steps
from llm.manifest import read as read_manifest
from llm.optim import schedule
from llm.processes import Notice
from llm.run import Parent, read_result, Result, Run
from llm.sharding import AxisRules, check_batch, make_mesh

# What a stage asks of the checkpoint behind each of its config keys: allowed stages, and the head.
# An import (`interop`) may stand for any of them: what its weights were trained for, only its user knows.
PARENTS = {
    'pretrain': {'init_from': (('pretrain', 'import'), 'token')},
    'sft': {'init_from': (('pretrain', 'sft', 'import'), 'token')},
    'reward': {'init_from': (('sft', 'import'), 'token')},
    'ppo': {'init_from': (('sft', 'import'), 'token'), 'reward_from': (('reward', 'import'), 'scalar')},
}
# Config keys that hold a DataConfig. `choices` is only measured on, so its content is no part of a run's identity.
_DATA_KEYS = ('data', 'prompt_data', 'ptx_data', 'gold_data', 'choices')


def check(name: str, config: StageConfig, devices: list | None = None) -> None:
    """Whatever can be found wrong with a stage before any stage runs, but for its data; raises UserError."""
    with _of_stage(name):
        mesh, rules = make_mesh(config.exec.mesh, devices), AxisRules.from_config(config.exec.rules)
        for key in ('batch_size', 'rollout_batch', 'normalize_samples'):
            if hasattr(config, key):
                check_batch(key, getattr(config, key), mesh, rules)
        check_batch('batch_size / exec.micro_batches', config.batch_size // config.exec.micro_batches, mesh, rules)
        if config.stage == 'ppo':
            check_batch('rollout_batch', config.rollout_batch, mesh,
                        AxisRules.from_config(config.exec.rules | config.rollout_rules))
        schedule(config.optim)
        for key, reference in references(name, config).items():
            if not reference.startswith('stage:'):
                find_parent(config.stage, key, reference, {})


@contextlib.contextmanager
def _of_stage(name: str) -> Iterator[None]:
    """Errors in here say which stage they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f'stage {name}: {error}') from None


def references(name: str, config: StageConfig) -> dict[str, str]:
    """The parents that a stage names, by config key; raises UserError where a needed one is missing."""
    named = {key: getattr(config, key) for key in PARENTS[config.stage] if getattr(config, key)}
    for key in PARENTS[config.stage]:
        if key not in named and config.stage != 'pretrain':
            raise UserError(f'{name} needs a parent and {key} is empty; set {key} to stage:NAME or PATH[@step]')
    return named


def resolve(name: str, config: StageConfig, data: dict[str, dict[str, str]], root: epath.Path,
            done: dict[str, tuple[epath.Path, Result]], *, notice: Notice, say: Callable[[str], None],
            progress: Callable[[str, int, int], None]) -> Run:
    """Everything that a run is before it starts: its mesh, parents that fit, data, and so its identity."""
    mesh = make_mesh(config.exec.mesh)
    parents: dict[str, Parent] = {}
    for key, reference in references(name, config).items():
        # The scorer reads the policy's tokens; a pretraining run goes on with the weights it asks for.
        wanted = {'tokenizer': parents['init_from'].manifest.tokenizer} if key == 'reward_from' else (
            {'model': config.model.stored()} if config.stage == 'pretrain' else {})
        parents[key] = find_parent(config.stage, key, reference, done, **wanted)
    check_length(name, config, parents)
    if parents and config.stage == 'pretrain' and config.tokenizer.path:
        raise UserError(f'{name}: tokenizer.path={config.tokenizer.path} and init_from={config.init_from} exclude each '
                        f'other, because the parent has a tokenizer; leave tokenizer.path empty')
    identity, folder = identify(name, config, data, root, parents)
    return Run(name=name, config=config, folder=folder, identity=identity, parents=parents, mesh=mesh,
               cache_dir=str(root / 'data'), notice=notice, say=say, progress=progress)


def identify(name: str, config: StageConfig, data: dict[str, dict[str, str]], root: epath.Path,
             parents: dict[str, Parent]) -> tuple[dict[str, Any], epath.Path]:
    """What a run's hash is made of, and the folder that the hash names; needs no device."""
    identity = {'config': identity_dict(config), 'data': data,
                'tokenizer': tokenizer_identity(config, parents),
                'parents': {key: {'identity': parent.manifest.identity, 'step': parent.step}
                            for key, parent in parents.items()}}
    return identity, root / f'{name}-{digest(identity)[:8]}'


def check_length(name: str, config: StageConfig, parents: dict[str, Parent]) -> None:
    """Refuses rows that are longer than a model can read."""
    for model in [parent.model_config for parent in parents.values()] or [config.model]:
        if config.seq_len > model.max_positions:
            raise UserError(f'{name}: seq_len={config.seq_len} is more than model.max_positions='
                            f'{model.max_positions}; use shorter rows')


def find_parent(stage: str, key: str, reference: str, done: dict[str, tuple[epath.Path, Result]],
                **wanted: Any) -> Parent:
    """The checkpoint that a reference names; raises UserError unless it can be a parent in this role.

    `wanted`: the model or the tokenizer that it must have, for `check_parent`.
    """
    if reference.startswith('stage:'):
        folder, result = done[reference.removeprefix('stage:')]
        step = result.step
    else:
        path, step = parse_reference(reference, key)
        folder = epath.Path(os.path.abspath(path) if '://' not in path else path)
        step = chosen_step(folder, f'{key}={reference}') if step is None else step
    manifest = read_manifest(folder / 'checkpoints', step)
    stages, head = PARENTS[stage][key]
    check_parent(manifest, key=key, where=reference, stages=stages, head=head, **wanted)
    if manifest.model.get('kind', 'decoder') != 'decoder':  # XLNet has a head of tokens, too
        raise UserError(f'{key}={reference}: model.kind={manifest.model["kind"]!r} does not predict the next token; '
                        f'give a decoder')
    return Parent(folder, step, manifest)


def chosen_step(folder: epath.Path, where: str) -> int:
    """The step that a finished run chose, or the newest sealed one of a run that has not ended."""
    result = read_result(folder)
    steps = sealed_steps(folder / 'checkpoints')
    if not steps:
        raise UserError(f'{where} has no checkpoint; name the folder of a run, e.g. runs/x/sft-1234abcd')
    return steps[-1] if result is None else result.step


def bring(config: StageConfig, progress: Callable[[str, int, int], None]) -> None:
    """Builds whatever of a stage's data is not there yet."""
    for data in (getattr(config, key) for key in _DATA_KEYS if hasattr(config, key)):
        for source in data.sources.values():
            sources.materialize(source, data.data_dir, progress)


def content(name: str, config: StageConfig, progress: Callable[[str, int, int], None]) -> dict[str, dict[str, str]]:
    """SHA-256 of the data that makes a stage's parameters, by source and split; all its data is brought here first."""
    hashes: dict[str, dict[str, str]] = {}
    needed = ['data', 'prompt_data'] if config.stage == 'reward' else ['data']
    with _of_stage(name):
        for key in needed:
            if not getattr(config, key).sources:
                raise UserError(f'{key}.sources is empty; name at least one source in the config')
        bring(config, progress)
        for key in (key for key in _DATA_KEYS if hasattr(config, key) and key != 'choices'):
            data = getattr(config, key)
            for source_name, source in data.sources.items():
                hashes[f'{key}.{source_name}'] = {split: sources.content_sha256(source, split, data.data_dir)
                                                  for split in corpus.splits_that_count(source, data)}
    return hashes


def tokenizer_identity(config: StageConfig, parents: dict[str, Parent]) -> str | None:
    """SHA-256 of the tokenizer that is given; None for one that the stage will train from its data."""
    if parents:
        return parents['init_from'].manifest.tokenizer['sha256']
    return Tokenizer.from_path(config.tokenizer.path).sha256 if config.tokenizer.path else None


def provide_tokenizer(run: Run) -> None:
    """Puts the run's own tokenizer into its folder: the parent's, the configured one, or a new one."""
    config, place = run.config, tokenizer_lib.place
    given = place(run.parents['init_from'].folder) if run.parents else config.tokenizer.path
    if place(run.folder).exists():
        pass
    elif given:
        tokenizer_lib.install(str(given), run.folder)
    else:
        run.progress(f'{run.name} tokenizer', 0, 1)
        share = config.tokenizer.train_bytes // len(config.data.sources)
        texts = (text for name in config.data.sources for text in first_bytes(name, config.data, share))
        tokenizer_lib.train(texts, config.model.vocab_size, config.tokenizer.train_bytes, str(place(run.folder)),
                            kind=config.tokenizer.kind)
        run.progress(f'{run.name} tokenizer', 1, 1)
    if run.parents and run.tokenizer.sha256 != run.identity['tokenizer']:
        raise UserError(f'{place(run.folder)} has SHA-256 {run.tokenizer.sha256[:8]}, the parent was trained with '
                        f'{run.identity["tokenizer"][:8]}; restore the parent\'s {place(run.folder).name}')
    # Released models have more rows than tokens, to be a multiple of something.
    spare = run.model_config.vocab_size - run.tokenizer.vocab_size
    if spare < 0 or spare and not run.tokenizer.foreign:
        raise UserError(f'model.vocab_size={run.model_config.vocab_size} is not the tokenizer\'s '
                        f'{run.tokenizer.vocab_size}; make them equal')


def first_bytes(name: str, data: DataConfig, limit: int) -> Iterator[str]:
    """Training texts of one source, cleaned, up to its share of what the tokenizer is trained on."""
    bad = BadRows(data.max_bad_percent)
    for record in corpus.read(data.sources[name], 'train', data, bad)[0]:
        if 'text' not in record:
            raise UserError(f'data.sources.{name} has records of {", ".join(sorted(record))}, but a tokenizer is '
                            f'trained on text; use another source, or set its fields')
        yield record['text'][:limit]
        limit -= len(record['text'].encode())
        if limit <= 0:
            return
    bad.check()

"""What to change where a stage does not fit: kinds of changes of how it is run, from the cheapest to the dearest.

In: a `Run` on paper and its plan. Out: flags, for a person to type. Left out: changes of what is learned, but for the
sizes of batches, which come last.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

from llm.config import StageConfig
from llm.errors import UserError
from llm.pipeline import STAGES
from llm.plan.compile import plan_stage, StagePlan
from llm.plan.pods import Pod
from llm.resolve import check
from llm.run import Run
from llm.sharding import make_mesh

# Each kind from its mildest form to its strongest: factors of what is, sizes of an axis, or names.
_KINDS = {
    'micro_batches': (2, 4, 8),
    'remat': ('minimal', 'qkv', 'full'),  # a step becomes longer by about 8, 20, 33 %
    'fsdp': (-1,),  # what no other axis takes, of `data` too but for the slices
    'offload': ('offload',),
    'context': (2, 4, 8),
    'tensor': (2, 4, 8),
    'rollout_batch': (2, 4),
    'batch_size': (2, 4),
}
_REMAT = ('none', *_KINDS['remat'], *_KINDS['offload'])
_MESH = ('fsdp', 'context', 'tensor')
_CONCERN = {'reshard': ('fsdp', 'tensor'), 'rollout': ('fsdp', 'tensor', 'rollout_batch'),
            'score': (*_MESH, 'rollout_batch')}
_UPDATE = tuple(kind for kind in _KINDS if kind != 'rollout_batch')

Changes = dict[str, Any]  # kind -> how strong


def advice(run: Run, plan: StagePlan, pod: Pod, prefix: str) -> str:
    """The first change that can be made and concerns the program that needs most; not compiled."""
    for kind in _concerning(plan.worst):
        for how in _KINDS[kind]:
            if changed := _changed(run, {kind: how}, pod):
                return f'try {_flags(run, changed, prefix)}, or let --suggest try'
    return 'use a larger pod'


def suggestion(run: Run, plan: StagePlan, pod: Pod, prefix: str) -> str:
    """The cheapest changes with which the stage fits, compiled.

    Every kind at its strongest, alone and then beside those that are cheaper; of what fits first, as little as does.
    """
    tried: list[StageConfig] = []

    def fitting(changes: Changes) -> str | None:
        changed = _changed(run, changes, pod)
        if not changed or changed.config in tried:
            return None
        tried.append(changed.config)
        try:
            found = plan_stage(changed, pod)
        except UserError:  # the compiler has its own limits
            return None
        return f'{_flags(run, changed, prefix)} makes it fit: {found.peak_gib:.2f} GiB' if found.fits else None

    misfits = [name for name, program in plan.programs.items() if not program.fits]
    kinds = [kind for kind in _KINDS if any(kind in _concerning(name) for name in misfits)]
    for changes in _strongest(run, kinds, pod):
        if said := fitting(changes):
            # The dearest is the first to be spared; twice, because one may have made room for another.
            for kind in 2 * [*reversed(changes)]:
                if kind not in changes:
                    continue
                without = {name: how for name, how in changes.items() if name != kind}
                for milder in (without, *(changes | {kind: how} for how in _KINDS[kind])):
                    if milder == changes:
                        break
                    if less := fitting(milder):
                        changes, said = milder, less
                        break
            return said
    return f'none of {len(tried)} changes makes it fit; use a larger pod'


def _strongest(run: Run, kinds: list[str], pod: Pod) -> Iterator[Changes]:
    """Each kind alone, then more and more of them together, each as strong as it can be beside the others."""
    def with_kind(changes: Changes, kind: str) -> Changes:
        before = _changed(run, changes, pod) or run
        for how in reversed(_KINDS[kind]):
            if how == changes.get(kind):
                break
            found = _changed(run, changes | {kind: how}, pod)
            if found and found.config != before.config:
                return changes | {kind: how}
        return changes
    yield from filter(None, (with_kind({}, kind) for kind in kinds))
    together: Changes = {}
    for count, kind in enumerate(kinds):
        wider = with_kind(together, kind)
        if wider != together:
            for other in kinds[:count]:  # with fewer rows at a time on longer axes, say
                wider = with_kind(wider, other)
            together = wider
            yield together


def _concerning(program: str) -> tuple[str, ...]:
    """Kinds of changes by which that program needs less."""
    return _CONCERN.get(program, _UPDATE)


def _changed(run: Run, changes: Changes, pod: Pod) -> Run | None:
    """The run with these changes; None where they change nothing or are refused."""
    config, devices = run.config, pod.devices()
    try:
        for kind, how in changes.items():
            config = _apply(config, kind, how, pod)
        check(run.name, config, devices)
        changed = dataclasses.replace(run, config=config, mesh=make_mesh(config.exec.mesh, devices))
        if config.exec.mesh != run.config.exec.mesh:
            STAGES[config.stage].programs(changed)  # heads, say, may not divide
    except UserError:
        return None
    return changed if config != run.config else None


def _apply(config: StageConfig, kind: str, how: Any, pod: Pod) -> StageConfig:
    if kind in ('batch_size', 'rollout_batch'):
        return dataclasses.replace(config, **{kind: getattr(config, kind) // how})
    if kind == 'micro_batches':
        change = {kind: config.exec.micro_batches * how}
    elif kind == 'fsdp' and 'data' in config.exec.rules['embed']:  # weights are split over both already
        return config
    elif kind in _MESH:
        change = {'mesh': _mesh(config.exec.mesh, kind, how, pod)}
    else:
        change = {'remat': max(config.exec.remat, how, key=_REMAT.index)}
    return dataclasses.replace(config, exec=dataclasses.replace(config.exec, **change))


def _mesh(now, kind: str, how: int, pod: Pod):
    """That axis of at least that size; `fsdp` takes what is left."""
    sizes = {axis: max(1, getattr(now, axis)) for axis in ('data', 'tensor', 'context')}
    if kind == 'fsdp' or now.data == -1:
        sizes['data'] = pod.slices
    if kind != 'fsdp':
        sizes[kind] = max(sizes[kind], how)
    same = all(getattr(now, axis) == size for axis, size in sizes.items())
    return now if same else dataclasses.replace(now, **sizes, fsdp=-1)


def _flags(run: Run, changed: Run, prefix: str) -> str:
    """What is new in the config, as a command takes it."""
    before, after = ({f'{where}{key}': value for where, values in (
        ('', vars(one.config)), ('exec.', vars(one.config.exec)), ('exec.mesh.', vars(one.config.exec.mesh)))
        for key, value in values.items() if not dataclasses.is_dataclass(value)} for one in (run, changed))
    return ' '.join(f'--{prefix}.{key}={value}' for key, value in after.items() if value != before[key])

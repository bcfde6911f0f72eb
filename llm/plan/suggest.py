"""What to change where a stage does not fit: changes of how it is run, from the cheapest to the dearest.

In: a `Run` on paper and its plan. Out: flags, for a person to type. Left out: changes of what is learned, but for
`batch_size`, which comes last.
"""

from collections.abc import Iterator
import dataclasses
import itertools

from llm.config import StageConfig
from llm.errors import UserError
from llm.plan.compile import plan_stage, StagePlan
from llm.plan.pods import Pod
from llm.resolve import check
from llm.run import Run
from llm.sharding import make_mesh

# What the backward pass computes again, and by about how much that makes a step longer.
_REMAT = {'none': 1.0, 'minimal': 1.08, 'qkv': 1.2, 'full': 1.33, 'offload': 1.4}
_TENSOR = (1, 4, 8)  # devices that share a layer; every doubling costs wires
_MICRO_BATCHES = (1, 2, 4, 8)
_SMALLER = (1, 2, 4)  # by which the batch is divided: another result, and the dearest change
_MOST_TRIES = 16

Changes = dict[str, object]  # by dotted key


def advice(run: Run, plan: StagePlan, prefix: str) -> str:
    """The cheapest change that was not tried."""
    first = next(changes(run.config, plan.devices), None)
    return f'try {_flags(first, prefix)}, or let --suggest try' if first else 'use a larger pod'


def suggestion(run: Run, plan: StagePlan, pod: Pod, prefix: str) -> str:
    """The cheapest changes with which the stage fits, compiled."""
    tries = 0
    for one in changes(run.config, plan.devices):
        try:
            changed = _changed(run, one, pod)
        except UserError:  # it does not divide, or is not known
            continue
        tries += 1
        found = plan_stage(changed, pod)
        if found.fits:
            return f'{_flags(one, prefix)} makes it fit: {found.peak_gib:.2f} GiB'
        if tries == _MOST_TRIES:
            break
    return f'none of {tries} changes makes it fit; use a larger pod'


def changes(config: StageConfig, devices: int) -> Iterator[Changes]:
    """Sets of changes, cheapest first; the config as it is is not among them."""
    now, order = config.exec, list(_REMAT)
    data = max(now.mesh.data, 1)  # of several slices a multiple of their number, so it stays
    meshes = [None, *({'data': data, 'fsdp': devices // tensor // data, 'tensor': tensor, 'context': 1}
                      for tensor in _TENSOR if devices % (tensor * data) == 0)]
    remats = order[order.index(now.remat):]
    found = []
    for mesh, remat, micro, smaller in itertools.product(meshes, remats, _MICRO_BATCHES, _SMALLER):
        one: Changes = {}
        if mesh and mesh != _shape(now.mesh, devices):
            one |= {f'exec.mesh.{axis}': size for axis, size in mesh.items()}
        elif mesh:
            continue
        if remat != now.remat:
            one['exec.remat'] = remat
        if micro > 1:
            one['exec.micro_batches'] = now.micro_batches * micro
        if smaller > 1:
            one['batch_size'] = config.batch_size // smaller
        cost = _REMAT[remat] * (1.03 if mesh else 1.0) * (1.1 ** (mesh['tensor'].bit_length() - 1) if mesh else 1.0)
        found.append((cost * 1.02 ** (micro.bit_length() - 1) * 2.0 ** (smaller - 1), len(found), one))
    yield from (one for _, _, one in sorted(found) if one)


def _shape(mesh, devices: int) -> dict[str, int]:
    sizes = dataclasses.asdict(mesh)
    rest = devices
    for size in sizes.values():
        rest //= max(size, 1)
    return {axis: rest if size == -1 else size for axis, size in sizes.items()}


def _changed(run: Run, changes: Changes, pod: Pod) -> Run:
    devices = pod.devices()
    mesh = {key.removeprefix('exec.mesh.'): value for key, value in changes.items() if key.startswith('exec.mesh.')}
    rest = {key.removeprefix('exec.'): value for key, value in changes.items()
            if key.startswith('exec.') and not key.startswith('exec.mesh.')}
    shape = dataclasses.replace(run.config.exec.mesh, **mesh)
    config = dataclasses.replace(run.config, exec=dataclasses.replace(run.config.exec, mesh=shape, **rest),
                                 **{key: value for key, value in changes.items() if '.' not in key})
    check(run.name, config, devices)
    return dataclasses.replace(run, config=config, mesh=make_mesh(shape, devices))


def _flags(changes: Changes, prefix: str) -> str:
    return ' '.join(f'--{prefix}.{key}={value}' for key, value in changes.items())

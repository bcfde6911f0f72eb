"""Runs of the workloads: a real config through the same door, on paper but for its mesh.

In: a job (`workloads.py`). Out: a `Run` of the job's stage, with no folder, and parents that are made up.
Left out: arrays (the other files here).
"""

from typing import Any

import jax
from ml_collections import ConfigDict

from configs import base
from llm.plan.paper import paper_runs
from llm.run import Run

_PARENTS = {'sft': ('pretrain',), 'reward': ('pretrain', 'sft'), 'ppo': ('pretrain', 'sft', 'reward')}
_AFTER = {'sft': 'pretrain', 'reward': 'sft', 'ppo': 'sft'}


def paper_run(job: dict[str, Any]) -> Run:
    """The run of the job's stage, on the mesh of all devices, which is set for this process."""
    stages = {name: stage(name, job) for name in (*_PARENTS.get(job['stage'], ()), job['stage'])}
    stages[job['stage']].update_from_flattened_dict(job['config'])
    run = paper_runs(ConfigDict({'stages': stages}), jax.devices())[job['stage']]
    jax.set_mesh(run.mesh)
    return run


def stage(name: str, job: dict[str, Any]) -> ConfigDict:
    """A stage's config as `configs/base.py` has it, after the stages that it starts from."""
    if name == 'pretrain':
        return base.pretrain(base.model(**job['model']))
    config = getattr(base, name)()
    config.init_from = f'stage:{_AFTER[name]}'
    if name == 'ppo':
        config.reward_from = 'stage:reward'
    return config

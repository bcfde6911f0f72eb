"""Runs on paper: all that a stage's programs depend on, with no folder, no data and no device behind it.

In: a config of one stage or of a pipeline, devices that need not be there. Out: a `Run` for every stage.
Left out: what the run of a `stage:NAME` parent would have learned; its model, its special tokens and the two numbers of
its scores are made up here, and change no shape. A parent that is named by its path is read.
"""

from typing import Any

from etils import epath

from llm.config import StageConfig
from llm.manifest import Manifest
from llm.pipeline import parse, topological
from llm.resolve import check, check_length, find_parent, references
from llm.run import Parent, Run
from llm.sharding import make_mesh

_NOWHERE = epath.Path('nowhere')


def paper_runs(config: Any, devices: list) -> dict[str, Run]:
    """A run of every stage by name, parents first; raises UserError for what can be found wrong without data."""
    stages, runs = parse(config), {}
    for name in topological(stages):
        check(name, stages[name], devices)
        runs[name] = _paper_run(name, stages[name], devices, runs)
    return runs


def _paper_run(name: str, config: StageConfig, devices: list, done: dict[str, Run]) -> Run:
    parents = {}
    for key, reference in references(name, config).items():
        parent = reference.removeprefix('stage:')
        parents[key] = (find_parent(config.stage, key, reference, {}) if parent == reference else
                        Parent(_NOWHERE, 0, _manifest(done[parent])))
    check_length(name, config, parents)
    return Run(name=name, config=config, folder=_NOWHERE, identity={}, parents=parents,
               mesh=make_mesh(config.exec.mesh, devices), cache_dir='', say=_silent, progress=_silent)


def _manifest(run: Run) -> Manifest:
    return Manifest(stage=run.config.stage, identity='', model=run.model_config.stored(),
                    tokenizer={'special_ids': {'pad': 0, 'bos': 1, 'eos': 2}}, heads=[],
                    reward={'mean': 0.0, 'deviation': 1.0}, objective='', data={}, seed=0, mesh={}, packages={},
                    git_commit='', parents={})


def _silent(*said: Any) -> None:
    """There is nothing to say of a run that is not run."""

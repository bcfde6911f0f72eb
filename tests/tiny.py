"""The one tiny config that tests share: its model, how it is run on the mesh under test, and four stages of it."""

from collections.abc import Callable
import dataclasses
import pathlib

from ml_collections import ConfigDict

from configs import base
from configs import sizes
from llm.config import ExecConfig, MeshConfig, ModelConfig
from llm.door import from_dict
from llm.pipeline import run_pipeline
from llm.run import Result
from tools.faults import job

MODEL = from_dict(ModelConfig, sizes.tiny().to_dict())
EXEC = from_dict(ExecConfig, base.execution().to_dict())
MESHES = ((1, 1, 1), (8, 1, 1), (2, 2, 2))  # data, fsdp, tensor
# Faults are done to the same four stages by hand, too.
WORDS, write_data, pipeline_config = job.WORDS, job.write_data, job.pipeline_config


def model(**changes) -> ModelConfig:
    return dataclasses.replace(MODEL, **changes)


def execution(mesh: tuple[int, int, int] = (1, 1, 1), **changes) -> ExecConfig:
    return dataclasses.replace(EXEC, mesh=MeshConfig(*mesh), **changes)


def run(config: ConfigDict, workdir: pathlib.Path, *, rerun: str | None = None,
        say: Callable[[str], None] = lambda line: None) -> dict[str, Result]:
    """The real pipeline, silent."""
    done = run_pipeline(config, str(workdir), rerun=rerun, say=say, progress=lambda what, done, total: None)
    return {name: result for name, (_, result) in done.items()}

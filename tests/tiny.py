"""The one tiny config that tests share: its model, how it is run on the mesh under test, and four stages of it."""

import dataclasses

from configs import base
from configs import sizes
from llm.config import ModelConfig
from llm.door import from_dict
from llm.execution import ExecConfig, MeshConfig
from tools.faults import job

MODEL = from_dict(ModelConfig, sizes.tiny().to_dict())
EXEC = from_dict(ExecConfig, base.execution().to_dict())
MESHES = ((1, 1, 1), (8, 1, 1), (2, 2, 2))  # data, fsdp, tensor
# Faults are done to the same four stages by hand, too.
WORDS, write_data, pipeline_config, run = job.WORDS, job.write_data, job.pipeline_config, job.run


def model(**changes) -> ModelConfig:
    return dataclasses.replace(MODEL, **changes)


def execution(mesh: tuple[int, int, int] = (1, 1, 1), **changes) -> ExecConfig:
    return dataclasses.replace(EXEC, mesh=MeshConfig(*mesh), **changes)

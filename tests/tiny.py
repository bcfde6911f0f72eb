"""The one tiny config that tests share: its model, and how it is run on the mesh under test."""

import dataclasses

from configs import base
from configs import sizes
from llm.config import ExecConfig, MeshConfig, ModelConfig, from_dict

MODEL = from_dict(ModelConfig, sizes.tiny().to_dict())
EXEC = from_dict(ExecConfig, base.execution().to_dict())
MESHES = ((1, 1, 1), (8, 1, 1), (2, 2, 2))  # data, fsdp, tensor


def model(**changes) -> ModelConfig:
    return dataclasses.replace(MODEL, **changes)


def execution(mesh: tuple[int, int, int] = (1, 1, 1), **changes) -> ExecConfig:
    return dataclasses.replace(EXEC, mesh=MeshConfig(*mesh), **changes)

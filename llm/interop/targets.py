"""The leaves of our tree for a model and a head: shape, dtype and place of each, of any kind of model.

In: a `ModelConfig`, a head, an `ExecConfig`, a mesh. Out: path -> ShapeDtypeStruct with a NamedSharding; no memory.
Left out: what is put there (`stream.py`), what is taken from there (`export_hf.py`).
"""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from llm import train_state
from llm.architecture import ModelConfig
from llm.execution import ExecConfig
from llm.fingerprint import flatten
from llm.model.make import init_inputs, make_model
from llm.sharding import AxisRules


def targets(model: ModelConfig, head: str, exec_config: ExecConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    exec_config = dataclasses.replace(exec_config, scan_unroll=1)  # one layer is traced, not all
    module = make_model(model, exec_config, head)

    def init(key: jax.Array) -> Any:
        inputs, named = init_inputs(model)  # traced in here: an image of the size that a file claims is not made
        return module.init(key, *inputs, **named)['params']
    return flatten(train_state.abstract_params(init, mesh, AxisRules.from_config(exec_config.rules)))


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """A tree, from path -> leaf."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *above, last = path.split('/')
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree

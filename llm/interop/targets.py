"""The leaves of our tree for a model and a head: shape, dtype and place of each, of any kind of model.

In: a `ModelConfig`, a head, an `ExecConfig`, a mesh. Out: path -> ShapeDtypeStruct with a NamedSharding; no memory.
Left out: what is put there (`stream.py`), what is taken from there (`export_hf.py`).
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from llm import train_state
from llm.architecture import ModelConfig
from llm.config import ExecConfig
from llm.fingerprint import flatten
from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from llm.model.xlnet import XLNet
from llm.sharding import AxisRules


def targets(model: ModelConfig, head: str, exec_config: ExecConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    rules = AxisRules.from_config(exec_config.rules)
    return flatten(train_state.abstract_params(_initializer(model, head, exec_config), mesh, rules))


def _initializer(model: ModelConfig, head: str, exec_config: ExecConfig) -> Callable[[jax.Array], Any]:
    """key -> parameters, boxed with their logical axes, drawn for the smallest input that such a model reads."""
    exec_config = dataclasses.replace(exec_config, scan_unroll=1)  # one layer is traced, not all
    positions_BT = np.zeros((1, model.max_positions if model.kind == 'vision' else 2), np.int32)
    inputs: Any = positions_BT
    mask = MaskSpec(causal=model.kind == 'decoder')
    if model.kind == 'vision':
        inputs = np.zeros((1, model.image_size, model.image_size, model.image_channels), np.float32)
    if model.kind == 'two_stream':  # all that it may be given: what is not read has no parameters
        two_streams = XLNet(model, exec_config, head=head)
        return lambda key: two_streams.init(key, inputs, mask, types_BT=inputs, targets_BP=positions_BT)['params']
    module = Transformer(model, exec_config, head=head)
    return lambda key: module.init(key, inputs, positions_BT, mask)['params']


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

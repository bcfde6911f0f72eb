"""The module of a model config, and arguments to make its parameters from.

In: a `ModelConfig`. Out: a `Transformer` or an `XLNet`; the smallest inputs that its `init` takes.
Left out: parameters (`llm.train_state`, `llm.run.initializer`).
"""

from typing import Any

import jax.numpy as jnp

from llm.architecture import ModelConfig
from llm.execution import ExecConfig
from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from llm.model.xlnet import XLNet


def make_model(config: ModelConfig, exec_config: ExecConfig, head: str = 'token',
               dropout: float = 0.0) -> Transformer | XLNet:
    """XLNet has all its parameters only where `init_inputs` makes them: bare text meets no types and no targets."""
    return (XLNet if config.kind == 'two_stream' else Transformer)(config, exec_config, head, dropout)


def init_inputs(config: ModelConfig) -> tuple[tuple, dict[str, Any]]:
    """Positional and named arguments of the module's `init`, after the key."""
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    both_ways = MaskSpec(causal=False)
    if config.kind == 'two_stream':
        return (tokens_BT, both_ways), {'types_BT': tokens_BT, 'targets_BP': tokens_BT}
    if config.kind == 'vision':
        image_BYXC = jnp.zeros((1, config.image_size, config.image_size, config.image_channels))
        return (image_BYXC, jnp.arange(config.max_positions)[None], both_ways), {}
    return (tokens_BT, tokens_BT, MaskSpec() if config.kind == 'decoder' else both_ways), {}

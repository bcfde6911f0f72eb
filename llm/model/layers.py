"""The small parts of a Transformer: matmul, norm, feed-forward, embedding tables, dropout.

In: activations whose first two axes are batch and position. Out: the same, transformed.
Left out: attention (`attention.py`), the order of the parts (`transformer.py`), sharding of parameters: each
one is boxed with its logical axis names where its shape is declared, and `llm.sharding` reads them from there.
"""

import math
import re

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm.config import ExecConfig, ModelConfig
from llm.sharding import AxisRules, constrain

INIT_STDDEV = 0.02  # GPT-2's, for every matrix and table


def boxed_normal(stddev: float, axes: tuple[str | None, ...]):
    return nn.with_logical_partitioning(nn.initializers.normal(stddev), axes)


def residual_stddev(config: ModelConfig) -> float:
    """Of matrices that write into the residual stream: its variance then does not grow with depth (GPT-2)."""
    return INIT_STDDEV / math.sqrt(2 * config.num_layers)


class Einsum(nn.Module):
    """A matmul with a named weight: `equation` is like 'BTD,DNH->BTNH', its first two axes batch and position.

    The product itself is done on two-dimensional arrays: the weight gradient of the equation as written
    contracts B and T at once, which XLA's CPU back end keeps off its fast path (942 -> 1,571 tokens/s on a 14M
    model). That holds while no rule splits the length of activations.
    """

    equation: str
    shape: tuple[int, ...]  # of the weight, in the equation's order
    axes: tuple[str | None, ...]  # logical names of these dimensions
    dtype: str
    use_bias: bool = False
    stddev: float = INIT_STDDEV

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x_letters, w_letters, y_letters = re.split(',|->', self.equation)
        inner, outer = x_letters[2:], y_letters[2:]
        assert x_letters[:2] == y_letters[:2] == 'BT' and w_letters == inner + outer, self.equation
        w = self.param('w', boxed_normal(self.stddev, self.axes), self.shape)
        in_size = math.prod(self.shape[:len(inner)])
        y = x.reshape(-1, in_size).astype(self.dtype) @ w.reshape(in_size, -1).astype(self.dtype)
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[len(inner):])
            bias = self.param('bias', zeros, self.shape[len(inner):])
            y += bias.reshape(1, -1).astype(self.dtype)
        return y.reshape(*x.shape[:2], *self.shape[len(inner):])


class Norm(nn.Module):
    """LayerNorm (arXiv:1607.06450) or RMSNorm (arXiv:1910.07467) over the width, computed in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        shape = (self.config.model_dim,)
        ones = nn.with_logical_partitioning(nn.initializers.ones, ('norm',))
        scale_D = self.param('scale', ones, shape)
        y_BTD = x_BTD.astype(jnp.float32)
        if self.config.norm == 'layernorm':
            y_BTD -= y_BTD.mean(-1, keepdims=True)
        y_BTD *= jax.lax.rsqrt(jnp.square(y_BTD).mean(-1, keepdims=True) + self.config.norm_eps)
        y_BTD *= scale_D[None, None]
        if self.config.norm == 'layernorm' and self.config.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('norm',))
            y_BTD += self.param('bias', zeros, shape)[None, None]
        return y_BTD.astype(x_BTD.dtype)


class FeedForward(nn.Module):
    """GELU with the tanh approximation (GPT-2), or SwiGLU (arXiv:2002.05202; Llama)."""

    config: ModelConfig
    exec: ExecConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        config, rules = self.config, AxisRules.from_config(self.exec.rules)
        shared = dict(dtype=self.exec.compute_dtype, use_bias=config.use_bias)

        def widen(name: str) -> jax.Array:
            layer = Einsum('BTD,DF->BTF', (config.model_dim, config.mlp_dim), ('embed', 'mlp'), name=name, **shared)
            return constrain(layer(x_BTD), ('batch', 'length', 'act_mlp'), rules)
        up_BTF = widen('up')
        if config.mlp == 'swiglu':
            h_BTF = nn.silu(widen('gate')) * up_BTF
        else:
            h_BTF = nn.gelu(up_BTF, approximate=True)
        return Einsum('BTF,FD->BTD', (config.mlp_dim, config.model_dim), ('mlp', 'embed'), name='down',
                      stddev=residual_stddev(config), **shared)(h_BTF)


class Embed(nn.Module):
    """Token table, and position table where positions are learned (GPT-2)."""

    config: ModelConfig

    def setup(self):
        config = self.config
        self.tokens = self.param('tokens', boxed_normal(INIT_STDDEV, ('vocab', 'embed')),
                                 (config.vocab_size, config.model_dim))
        if config.positions == 'learned':
            self.positions = self.param('positions', boxed_normal(INIT_STDDEV, ('positions', 'embed')),
                                        (config.max_positions, config.model_dim))

    def __call__(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        x_BTD = self.tokens[tokens_BT]
        return x_BTD + self.positions[positions_BT] if self.config.positions == 'learned' else x_BTD


class TokenHead(nn.Module):
    """The output table of a model whose embeddings are not tied."""

    config: ModelConfig

    def setup(self):
        self.w = self.param('w', boxed_normal(INIT_STDDEV, ('vocab', 'embed')),
                            (self.config.vocab_size, self.config.model_dim))


def dropout(x: jax.Array, rate: float, name: str) -> jax.Array:
    """Drops elements at `rate`, drawn from the stream 'dropout'; at rate 0 nothing is drawn and no key is needed."""
    return nn.Dropout(rate, name=name)(x, deterministic=False) if rate else x

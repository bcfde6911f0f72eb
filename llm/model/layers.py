"""The small parts of a Transformer: matmul, norm, feed-forward, embeddings of text and of images, dropout.

In: activations whose first two axes are batch and position. Out: the same, transformed.
Left out: attention (`attention.py`), the order of the parts (`transformer.py`), sharding of parameters: each
one is boxed with its logical axis names where its shape is declared, and `llm.sharding` reads them from there.
"""

import math
import re

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm.architecture import GATED, ModelConfig
from llm.execution import ExecConfig
from llm.sharding import AxisRules, constrain, with_gathered

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
    model). Several devices keep the equation, each for its own rows: TPUs then fuse it better.
    """

    equation: str
    shape: tuple[int, ...]  # of the weight, in the equation's order
    axes: tuple[str | None, ...]  # logical names of these dimensions
    dtype: str
    rules: AxisRules
    use_bias: bool = False
    stddev: float = INIT_STDDEV

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x_letters, w_letters, y_letters = re.split(',|->', self.equation)
        inner, outer = x_letters[2:], y_letters[2:]
        assert x_letters[:2] == y_letters[:2] == 'BT' and w_letters == inner + outer, self.equation
        w = self.param('w', boxed_normal(self.stddev, self.axes), self.shape)

        def product(w, x):
            if self.rules.ways('batch') > 1:
                return jnp.einsum(self.equation, x, w)
            in_size = math.prod(self.shape[:len(inner)])
            return (x.reshape(-1, in_size) @ w.reshape(in_size, -1)).reshape(*x.shape[:2], *self.shape[len(inner):])
        y = with_gathered(product, w, self.axes, self.rules, self.dtype, x.astype(self.dtype))
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[len(inner):])
            y += self.param('bias', zeros, self.shape[len(inner):])[None, None].astype(self.dtype)
        return y


class Norm(nn.Module):
    """LayerNorm (arXiv:1607.06450) or RMSNorm (arXiv:1910.07467) over the last axis, computed in float32."""

    config: ModelConfig
    width: int = 0  # of that axis; 0: model_dim

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, shape = self.config, (self.width or self.config.model_dim,)
        lead = (None,) * (x.ndim - 1)
        neutral = nn.with_logical_partitioning(nn.initializers.constant(1.0 - config.norm_offset), ('norm',))
        scale_D = self.param('scale', neutral, shape)
        y = x.astype(jnp.float32)
        if config.norm == 'layernorm':
            y -= y.mean(-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + config.norm_eps)
        y *= (scale_D + config.norm_offset if config.norm_offset else scale_D)[lead]
        if config.norm == 'layernorm' and config.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('norm',))
            y += self.param('bias', zeros, shape)[lead]
        return y.astype(x.dtype)


def activate(x: jax.Array, mlp: str) -> jax.Array:
    """The non-linearity of a kind of feed-forward: SiLU, GELU (arXiv:1606.08415), or GELU's tanh approximation."""
    return nn.silu(x) if mlp == 'swiglu' else nn.gelu(x, approximate=mlp != 'gelu_exact')


class FeedForward(nn.Module):
    """Two matrices (GPT-2, BERT), or three: the gate through the non-linearity, times the rest (arXiv:2002.05202)."""

    config: ModelConfig
    exec: ExecConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        config, rules = self.config, AxisRules.from_config(self.exec.rules)
        shared = dict(dtype=self.exec.compute_dtype, rules=rules, use_bias=config.use_bias)

        def widen(name: str) -> jax.Array:
            layer = Einsum('BTD,DF->BTF', (config.model_dim, config.mlp_dim), ('embed', 'mlp'), name=name, **shared)
            return constrain(layer(x_BTD), ('batch', 'length', 'act_mlp'), rules)
        up_BTF = widen('up')
        h_BTF = activate(widen('gate'), config.mlp) * up_BTF if config.mlp in GATED else activate(up_BTF, config.mlp)
        return Einsum('BTF,FD->BTD', (config.mlp_dim, config.model_dim), ('mlp', 'embed'), name='down',
                      stddev=residual_stddev(config), **shared)(h_BTF)


class Embed(nn.Module):
    """Token table, and tables of positions (GPT-2, BERT) and token types (BERT) where there are any; their sum."""

    config: ModelConfig
    exec: ExecConfig

    def setup(self):
        config = self.config
        self.tokens = self.param('tokens', boxed_normal(INIT_STDDEV, ('vocab', 'embed')),
                                 (config.vocab_size, config.model_dim))
        if config.positions == 'learned':
            self.positions = position_table(self)
        if config.token_types:
            self.token_types = self.param('token_types', boxed_normal(INIT_STDDEV, (None, 'embed')),
                                          (config.token_types, config.model_dim))
        if config.embed_norm:
            self.norm = Norm(config)

    def __call__(self, tokens_BT: jax.Array, positions_BT: jax.Array, types_BT: jax.Array | None) -> jax.Array:
        """types_BT: each token's type; None: type 0."""
        config = self.config
        # The width of what is looked up is split: first it moves to the rows, then to the length, for both at once XLA
        # would hold the whole batch on every device.
        x_BTD = constrain(self.tokens[tokens_BT], ('batch', None, 'length'), AxisRules.from_config(self.exec.rules))
        if config.embed_scale != 1:
            x_BTD *= config.embed_scale
        if config.positions == 'learned':
            x_BTD += self.positions[positions_BT + config.position_offset]
        if config.token_types:
            x_BTD += self.token_types[jnp.zeros_like(tokens_BT) if types_BT is None else types_BT]
        return self.norm(x_BTD) if config.embed_norm else x_BTD


class ImageEmbed(nn.Module):
    """A class token, then one token for each square patch, by rows of patches (arXiv:2010.11929, eq. 1)."""

    config: ModelConfig
    exec: ExecConfig

    def setup(self):
        config = self.config
        size, width = config.patch_size, config.model_dim
        self.patches = Einsum('BTPQC,PQCD->BTD', (size, size, config.image_channels, width),
                              (None, None, None, 'embed'), self.exec.compute_dtype,
                              AxisRules.from_config(self.exec.rules), use_bias=True)
        self.class_token = self.param('class_token', boxed_normal(INIT_STDDEV, (None, 'embed')), (1, width))
        self.positions = position_table(self)

    def __call__(self, image_BYXC: jax.Array, positions_BT: jax.Array) -> jax.Array:
        batch, rows, columns, channels = image_BYXC.shape
        size = self.config.patch_size
        cut = image_BYXC.reshape(batch, rows // size, size, columns // size, size, channels)
        patches = self.patches(cut.swapaxes(2, 3).reshape(batch, -1, size, size, channels))
        first_B1D = jnp.broadcast_to(self.class_token[None], (batch, 1, self.config.model_dim))
        return jnp.concatenate([first_B1D, patches], 1) + self.positions[positions_BT]


def position_table(module: nn.Module) -> jax.Array:
    """The parameter `positions` of an embedding."""
    config = module.config
    return module.param('positions', boxed_normal(INIT_STDDEV, ('positions', 'embed')),
                        (config.max_positions + config.position_offset, config.model_dim))


class TokenHead(nn.Module):
    """The output table of a model whose embeddings are not tied, and the bias of its logits where it has one."""

    config: ModelConfig
    use_bias: bool = False

    def setup(self):
        if not self.config.tie_embeddings:
            self.w = self.param('w', boxed_normal(INIT_STDDEV, ('vocab', 'embed')),
                                (self.config.vocab_size, self.config.model_dim))
        if self.use_bias:
            self.bias = logits_bias(self)


def logits_bias(module: nn.Module) -> jax.Array:
    """The parameter `bias` [V] of a head over the vocabulary."""
    return module.param('bias', nn.with_logical_partitioning(nn.initializers.zeros, ('vocab',)),
                        (module.config.vocab_size,))


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """cap * tanh(x / cap): never beyond cap (arXiv:2408.00118, section 2); with cap 0, x itself."""
    return jnp.tanh(x / cap) * cap if cap else x


def dropout(x: jax.Array, rate: float, name: str) -> jax.Array:
    """Drops elements at `rate`, drawn from the stream 'dropout'; at rate 0 nothing is drawn and no key is needed."""
    return nn.Dropout(rate, name=name)(x, deterministic=False) if rate else x

"""What a trunk's output is turned into, but for logits of next tokens: one module a head, and the pooler before some.

In: x_BTD after the trunk. Out: float32 logits of what the head names.
Left out: which head a model has, and its logits over the vocabulary (`transformer.py`, `xlnet.py`).
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm.architecture import ModelConfig
from llm.execution import ExecConfig
from llm.model.layers import Einsum, Norm, activate, logits_bias
from llm.sharding import AxisRules

# Heads by the kinds of model that have them. 'none' is the trunk alone.
HEADS = {'decoder': ('token', 'scalar', 'none'),
         'encoder': ('masked', 'none', 'pooled', 'classes', 'labels', 'span', 'next_sentence', 'pretraining'),
         'two_stream': ('token', 'none', 'pooled', 'classes', 'labels', 'span'),
         'vision': ('classes', 'pooled', 'none')}
POOLED = ('pooled', 'classes', 'next_sentence', 'pretraining')  # of text models; classes of images need no pooler
OVER_VOCABULARY = ('token', 'masked', 'pretraining')


def pooler(config: ModelConfig, exec_config: ExecConfig) -> Einsum:
    """The matrix of `pool`."""
    return Einsum('BTD,DE->BTE', (config.model_dim, config.model_dim), ('embed', 'mlp'), 'float32',
                  AxisRules.from_config(exec_config.rules), use_bias=True)


def pool(dense: Einsum, x_BTD: jax.Array, place: int = 0) -> jax.Array:
    """One vector for a row, [B, 1, D]: tanh of a matrix times the token at `place` (0: BERT; -1: XLNet)."""
    return jnp.tanh(dense(x_BTD[:, place][:, None]))


def outputs(config: ModelConfig, exec_config: ExecConfig, number: int, *, use_bias: bool = True, **options) -> Einsum:
    """x_BTD -> that many numbers a token."""
    return Einsum('BTD,DO->BTO', (config.model_dim, number), ('embed', None), 'float32',
                  AxisRules.from_config(exec_config.rules), use_bias, **options)


class MaskedHead(nn.Module):
    """What BERT puts between its trunk and the token table; the bias of the logits."""

    config: ModelConfig
    exec: ExecConfig

    def setup(self):
        width = self.config.model_dim
        self.dense = Einsum('BTD,DE->BTE', (width, width), ('embed', 'mlp'), self.exec.compute_dtype,
                            AxisRules.from_config(self.exec.rules), use_bias=True)
        self.norm = Norm(self.config)
        self.bias = logits_bias(self)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.norm(activate(self.dense(x_BTD), self.config.mlp))

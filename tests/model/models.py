"""The two kinds of tiny model that these tests run, with weights large enough that every part matters."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from tests import tiny

LLAMA = tiny.model()
GPT2 = tiny.model(positions='learned', norm='layernorm', mlp='gelu', use_bias=True, num_kv_heads=4)
KINDS = {'llama': LLAMA, 'gpt2': GPT2}


def init(model: Transformer):
    """Parameters without their boxes; weights ten times the usual, and biases that are not 0."""
    tokens_BT = jnp.zeros((1, 4), jnp.int32)
    variables = jax.jit(lambda key: model.init(key, tokens_BT, tokens_BT, MaskSpec()))(jax.random.key(0))
    leaves, structure = jax.tree.flatten(nn.meta.unbox(variables['params']))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return structure.unflatten([x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys)])


def positions(tokens_BT):
    return jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)


def tokens(batch: int, length: int, vocab_size: int = LLAMA.vocab_size):
    return jax.random.randint(jax.random.key(2), (batch, length), 0, vocab_size)

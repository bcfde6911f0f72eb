"""The two kinds of tiny model that these tests run, with weights large enough that every part matters."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from tests import tiny

LLAMA = tiny.model()
GPT2 = tiny.model(positions='learned', norm='layernorm', mlp='gelu', use_bias=True, num_kv_heads=4)
KINDS = {'llama': LLAMA, 'gpt2': GPT2}


def init(model: Transformer):
    """Parameters without boxes, ten times the usual size, norms and biases too; by NumPy: nothing to compile."""
    tokens_BT = jnp.zeros((1, 4), jnp.int32)
    boxed = jax.eval_shape(lambda key: model.init(key, tokens_BT, tokens_BT, MaskSpec())['params'], jax.random.key(0))
    random = np.random.default_rng(0)

    def draw(path, leaf):
        mean = 1 if path[-1].key == 'scale' else 0
        return jnp.asarray(random.normal(mean, 0.2, leaf.shape), leaf.dtype)
    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(boxed))


def positions(tokens_BT):
    return jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)


def tokens(batch: int, length: int, vocab_size: int = LLAMA.vocab_size):
    return jax.random.randint(jax.random.key(2), (batch, length), 0, vocab_size)

"""The kinds of tiny model that these tests run, with weights large enough that every part matters."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm.architecture import RopeScaling
from llm.model.make import init_inputs
from llm.model.transformer import Transformer
from llm.model.xlnet import XLNet
from tests import tiny

LLAMA = tiny.model()
GPT2 = tiny.model(positions='learned', norm='layernorm', mlp='gelu', use_bias=True, num_kv_heads=4)
# All that Qwen and the Gemmas add, at once: the first layer has a window of 3 tokens, the second has none.
GEMMA = tiny.model(mlp='geglu', sandwich_norms=True, norm_offset=1.0, qkv_bias=True, qk_norm=True, query_scale=24.0,
                   attention_softcap=3.0, logits_softcap=20.0, embed_scale=8.0, window=3, global_every=2,
                   rope_local_theta=100.0, rope_scaling=RopeScaling('linear', 4.0))
KINDS = {'llama': LLAMA, 'gpt2': GPT2, 'gemma': GEMMA}
BERT = tiny.model(kind='encoder', positions='learned', norm='layernorm', mlp='gelu_exact', use_bias=True,
                  norm_first=False, num_kv_heads=4, token_types=2, position_offset=2, embed_norm=True,
                  num_classes=3, max_positions=32)
VIT = tiny.model(kind='vision', positions='learned', norm='layernorm', mlp='gelu_exact', use_bias=True, num_kv_heads=4,
                 vocab_size=0, max_positions=10, image_size=12, patch_size=4, image_channels=3, num_classes=6)
XLNET = tiny.model(kind='two_stream', positions='relative', norm='layernorm', mlp='gelu_exact', use_bias=True,
                   norm_first=False, num_kv_heads=4)


def init(model: Transformer | XLNet):
    """Parameters without boxes, ten times the usual size, norms and biases too; by NumPy: nothing to compile."""
    arguments, named = init_inputs(model.config)
    boxed = jax.eval_shape(lambda key: model.init(key, *arguments, **named)['params'], jax.random.key(0))
    random = np.random.default_rng(0)

    def draw(path, leaf):
        mean = 1 - model.config.norm_offset if path[-1].key == 'scale' else 0
        return jnp.asarray(random.normal(mean, 0.2, leaf.shape), leaf.dtype)
    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(boxed))


def positions(tokens_BT):
    return jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)


def tokens(batch: int, length: int, vocab_size: int = LLAMA.vocab_size):
    return jax.random.randint(jax.random.key(2), (batch, length), 0, vocab_size)

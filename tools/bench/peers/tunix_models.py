"""The jobs' models in Tunix, the same AdamW, and a tokenizer. Imports Tunix's packages alone."""

import dataclasses
import math
from typing import Any

from flax import nnx
import jax
import optax
from tunix.models.llama3.model import Llama3, ModelConfig

PACKAGES = ('google-tunix', 'jax', 'jaxlib', 'flax', 'optax')
_NO_END = -1  # no token has this number


class Tokenizer:
    """Splits at spaces; a token is written as its number. Nothing begins a text, and nothing ends it."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return ' '.join(map(str, ids))

    def bos_id(self) -> int:
        return 0  # Tunix puts none before a text

    def eos_id(self) -> int:
        return _NO_END

    def pad_id(self) -> int:
        return 0


class Scorer(Llama3):
    """A number at each token, where the language model has logits.

    Tunix gives its critics segments beside the mask, which this Llama, unlike its Qwen, does not take; rows of one text
    need none.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.config = dataclasses.replace(config, weight_tying=False)
        self.lm_head = nnx.Linear(config.embed_dim, 1, use_bias=False, rngs=rngs)

    def __call__(self, input_tokens, positions, cache, attention_mask, segment_ids=None):
        return super().__call__(input_tokens, positions, cache, attention_mask)


def config_of(model: dict[str, Any]) -> ModelConfig:
    return ModelConfig(num_layers=model['num_layers'], vocab_size=model['vocab_size'], embed_dim=model['model_dim'],
                       hidden_dim=model['mlp_dim'], num_heads=model['num_heads'], head_dim=model['head_dim'],
                       num_kv_heads=model['num_kv_heads'], rope_theta=model['rope_theta'], norm_eps=model['norm_eps'],
                       weight_tying=True)


def language_model(model: dict[str, Any], seed: int) -> Llama3:
    """In float32, Tunix's own Llama; nothing is recomputed in its backward pass."""
    made = drawn(Llama3(config_of(model), rngs=nnx.Rngs(seed)), seed)
    assert parameters(made) == trunk_parameters(model)
    return made


def scorer(model: dict[str, Any], seed: int) -> Scorer:
    """The same trunk with one number at each token."""
    made = drawn(Scorer(config_of(model), rngs=nnx.Rngs(seed)), seed)
    assert parameters(made) == trunk_parameters(model) + model['model_dim']
    return made


def drawn(model: nnx.Module, seed: int) -> nnx.Module:
    """With matrices of normal numbers: Tunix leaves those of its feed-forward zero, where no gradient reaches them."""
    draw = nnx.Rngs(seed)

    def of_one(array: jax.Array) -> jax.Array:
        return array if array.ndim < 2 else 0.02 * jax.random.normal(draw(), array.shape, array.dtype)
    nnx.update(model, jax.tree.map(of_one, nnx.state(model, nnx.Param)))
    return model


def parameters(model: nnx.Module) -> int:
    return sum(math.prod(array.shape) for array in jax.tree.leaves(nnx.state(model, nnx.Param)))


def trunk_parameters(model: dict[str, Any]) -> int:
    """Of a job's Llama-like model, whose logits come from the token table."""
    width, heads = model['model_dim'], 2 * model['num_heads'] + 2 * model['num_kv_heads']
    layer = width * heads * model['head_dim'] + 3 * width * model['mlp_dim'] + 2 * width
    return model['vocab_size'] * width + model['num_layers'] * layer + width


def adamw(optim: dict[str, Any], learning_rate: float) -> optax.GradientTransformation:
    """optax's AdamW with decay on matrices alone, after clipping by the norm."""
    return optax.chain(
        optax.clip_by_global_norm(optim['clip_norm']),
        optax.adamw(learning_rate, b1=optim['b1'], b2=optim['b2'], eps=optim['eps'], weight_decay=optim['weight_decay'],
                    mask=lambda params: jax.tree.map(lambda array: array.ndim > 1, params)))

"""What the weights of a model mean: its sizes, its parts and the numbers that its maths needs.

In: plain values. Out: `ModelConfig`, checked; `stored()`, the plain values that a manifest keeps of it.
Left out: how the weights are run (`config.ExecConfig`), the maths (`llm/model/`), named sizes (`configs/sizes.py`).

A family of models is a set of these values, never a branch on its name. A field with a default was added after the
first checkpoints were written; its default means "as if the field did not exist".
"""

import dataclasses
from typing import Any

from llm.errors import at_least, one_of, UserError

GATED = ('swiglu', 'geglu')  # feed-forwards with a third matrix


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched to reach further than `original_positions`.

    linear: every frequency is divided by `factor` (Gemma 3). llama3: those whose wave is longer than
    original_positions / low_freq_factor are, those shorter than original_positions / high_freq_factor are not, and
    those between are mixed linearly in original_positions / wavelength (Llama 3.1).
    """

    kind: str  # 'linear' | 'llama3'
    factor: float
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    original_positions: int = 0

    def __post_init__(self):
        one_of('model.rope_scaling.kind', self.kind, ('linear', 'llama3'))
        at_least(1, self, 'factor', section='model.rope_scaling.')
        if self.kind == 'llama3':
            at_least(1, self, 'low_freq_factor', 'original_positions', section='model.rope_scaling.')
            if self.high_freq_factor <= self.low_freq_factor:
                raise UserError(f'model.rope_scaling.high_freq_factor={self.high_freq_factor} is not more than '
                                f'low_freq_factor={self.low_freq_factor}; use more')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What the weights mean: stored in every manifest, compared at every handoff."""

    vocab_size: int  # 0 in a vision model
    model_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    max_positions: int
    positions: str  # 'learned' | 'rotary' | 'relative' (two_stream)
    rope_theta: float
    norm: str  # 'layernorm' | 'rmsnorm'
    norm_eps: float
    mlp: str  # 'gelu' (tanh form) | 'gelu_exact' (erf) | 'swiglu' | 'geglu' (gate through the tanh form)
    use_bias: bool
    tie_embeddings: bool
    kind: str = 'decoder'  # 'decoder' | 'encoder' | 'two_stream' | 'vision'
    norm_first: bool = True  # False: x = norm(x + f(x)), and no final norm
    sandwich_norms: bool = False  # a norm also after each part, before it is added
    norm_offset: float = 0.0  # 1: norms multiply by 1 + scale, and scale starts at 0
    qkv_bias: bool = False  # biases of query, key and value where use_bias is False
    qk_norm: bool = False  # a norm of each head's query and key, before they are rotated
    query_scale: float = 0.0  # scores are divided by its root; 0: head_dim
    attention_softcap: float = 0.0  # scores become cap * tanh(score / cap); 0: they do not
    logits_softcap: float = 0.0  # likewise the logits
    embed_scale: float = 1.0  # what token embeddings are multiplied by
    window: int = 0  # tokens that a query sees, itself included; 0: all
    global_every: int = 0  # layers n - 1, 2n - 1, ... have no window; 0: all have it
    rope_local_theta: float = 0.0  # of layers with a window, where rope_scaling then does not hold; 0: rope_theta
    rope_scaling: RopeScaling | None = None
    token_types: int = 0  # rows of their table
    position_offset: int = 0  # the row of the position table that position 0 has; max_positions rows follow
    embed_norm: bool = False  # a norm of the embeddings' sum
    image_size: int = 0  # pixels, both ways; vision
    patch_size: int = 0
    image_channels: int = 0
    num_classes: int = 0  # of the heads 'classes' and 'labels'

    def __post_init__(self):
        one_of('model.kind', self.kind, ('decoder', 'encoder', 'two_stream', 'vision'))
        one_of('model.positions', self.positions, ('learned', 'rotary', 'relative'))
        one_of('model.norm', self.norm, ('layernorm', 'rmsnorm'))
        one_of('model.mlp', self.mlp, ('gelu', 'swiglu', 'geglu', 'gelu_exact'))
        at_least(0 if self.kind == 'vision' else 1, self, 'vocab_size', section='model.')
        at_least(1, self, 'model_dim', 'num_layers', 'num_heads', 'num_kv_heads', 'head_dim', 'mlp_dim',
                 'max_positions', section='model.')
        at_least(0, self, 'query_scale', 'attention_softcap', 'logits_softcap', 'window', 'global_every',
                 'rope_local_theta', 'token_types', 'position_offset', 'num_classes', section='model.')
        if self.positions == 'rotary' and self.head_dim % 2:
            raise UserError(f'model.head_dim={self.head_dim} is odd, and rotary positions turn pairs; use an even one')
        if self.num_heads % self.num_kv_heads:
            raise UserError(f'model.num_heads={self.num_heads} is not a multiple of '
                            f'model.num_kv_heads={self.num_kv_heads}; use a divisor of {self.num_heads}')
        for fits, key, remedy in self._demands():
            if not fits:
                raise UserError(f'model.{key}={getattr(self, key)!r} does not go with the rest of the model: {remedy}')
        if self.kind == 'vision':
            self._check_image()

    def stored(self) -> dict[str, Any]:
        """The fields in plain values, but those at a neutral default: older manifests do not have them."""
        neutral = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in dataclasses.asdict(self).items() if value != neutral[name]}

    def _demands(self):
        """Whether a key fits the others, the key, and what it asks for."""
        yield (self.positions == 'relative') == (self.kind == 'two_stream'), 'positions', \
            'relative positions and the kind two_stream need each other'
        yield not self.token_types or self.kind in ('decoder', 'encoder'), 'token_types', 'it has no table of them: 0'
        yield not self.window or self.kind == 'decoder', 'window', 'only a decoder has one; use 0'
        yield not self.global_every or self.window > 0, 'global_every', 'it needs a model.window'
        yield not self.rope_local_theta or self.window > 0, 'rope_local_theta', 'it needs a model.window'
        yield not (self.norm_offset or self.qk_norm) or self.norm == 'rmsnorm', 'norm', \
            'norm_offset and qk_norm need rmsnorm'
        yield not self.sandwich_norms or self.norm_first, 'sandwich_norms', 'it needs norm_first'
        yield self.rope_scaling is None or self.positions == 'rotary', 'rope_scaling', 'it needs rotary positions'

    def _check_image(self):
        at_least(1, self, 'image_size', 'patch_size', 'image_channels', section='model.')
        patches = (self.image_size // self.patch_size) ** 2
        if self.image_size % self.patch_size or self.max_positions != patches + 1:
            raise UserError(f'model.max_positions={self.max_positions} is not one class token and the whole patches of '
                            f'patch_size={self.patch_size} in image_size={self.image_size}; use {patches + 1} or '
                            f'another size')

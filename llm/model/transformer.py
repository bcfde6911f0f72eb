"""One decoder-only Transformer: GPT-2 or Llama by its `ModelConfig`, with a token head or a scalar head.

In: tokens_BT, positions_BT and a `MaskSpec`. Out: logits_BTV, score_BT, or x_BTD after the final norm.
`embed -> trunk -> head` are separate calls, so that an objective can meet the head in chunks and a sampler can
bring a cache. Left out: losses, sampling, where parameters live (`llm.sharding`).
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm.config import ExecConfig, ModelConfig
from llm.model.attention import Attention, Cache, MaskSpec, Rotary, make_rotary
from llm.model.layers import Einsum, Embed, FeedForward, Norm, TokenHead, dropout
from llm.sharding import AxisRules, constrain


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), the body of the scan over layers."""

    config: ModelConfig
    exec: ExecConfig
    dropout: float

    @nn.compact
    def __call__(self, carry: tuple[jax.Array, Cache | None], layer: jax.Array, positions_BT: jax.Array,
                 mask: MaskSpec, rotary: Rotary | None) -> tuple[tuple[jax.Array, Cache | None], None]:
        x_BTD, cache = carry
        attention = Attention(self.config, self.exec, self.dropout, name='attention')
        h_BTD, cache = attention(Norm(self.config, name='attention_norm')(x_BTD), positions_BT, mask, rotary,
                                 cache, layer)
        x_BTD = self._add(x_BTD, h_BTD, 'attention_dropout')
        feed_forward = FeedForward(self.config, self.exec, name='mlp')
        x_BTD = self._add(x_BTD, feed_forward(Norm(self.config, name='mlp_norm')(x_BTD)), 'mlp_dropout')
        return (x_BTD, cache), None

    def _add(self, x_BTD: jax.Array, h_BTD: jax.Array, name: str) -> jax.Array:
        return constrain(x_BTD + dropout(h_BTD, self.dropout, name), ('batch', 'length', 'act'),
                         AxisRules.from_config(self.exec.rules))


class Transformer(nn.Module):
    """Parameters: embed, layers (every leaf stacked [L, ...]), final_norm, and token_head (untied) or scalar_head.

    dropout: rate on the embeddings, on each residual branch and on attention weights, as in GPT-2; only drawn
    (from the stream 'dropout') in calls with deterministic=False.
    """

    config: ModelConfig
    exec: ExecConfig
    head: str = 'token'  # 'token' | 'scalar'
    dropout: float = 0.0

    def setup(self):
        assert self.head in ('token', 'scalar'), self.head
        self.embedding = Embed(self.config, name='embed')
        self.final_norm = Norm(self.config)
        if self.head == 'scalar':
            # 1 / sqrt(D + 1): scores of unit variance at the start (arXiv:2009.01325). No bias: a ranking gives it no
            # gradient but rounding errors, of which Adam makes a walk that no two meshes share (1.6e-4 in 24 steps).
            self.scalar_head = Einsum('BTD,DO->BTO', (self.config.model_dim, 1), ('embed', None), 'float32',
                                      stddev=(self.config.model_dim + 1) ** -0.5)
        elif not self.config.tie_embeddings:
            self.token_head = TokenHead(self.config)

    def __call__(self, tokens_BT: jax.Array, positions_BT: jax.Array, mask: MaskSpec, *,
                 deterministic: bool = True) -> jax.Array:
        """logits_BTV or score_BT, float32, by the model's head."""
        x_BTD = self.hidden(tokens_BT, positions_BT, mask, deterministic=deterministic)
        return self.token_logits(x_BTD) if self.head == 'token' else self.scalar(x_BTD)

    def hidden(self, tokens_BT: jax.Array, positions_BT: jax.Array, mask: MaskSpec, *,
               deterministic: bool = True) -> jax.Array:
        """x_BTD after the final norm: what an objective takes."""
        x_BTD = self.embed(tokens_BT, positions_BT)
        return self.trunk(x_BTD, positions_BT, mask, deterministic=deterministic)[0]

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        x_BTD = self.embedding(tokens_BT, positions_BT).astype(self.exec.compute_dtype)
        return constrain(x_BTD, ('batch', 'length', 'act'), AxisRules.from_config(self.exec.rules))

    @nn.compact
    def trunk(self, x_BTD: jax.Array, positions_BT: jax.Array, mask: MaskSpec, cache: Cache | None = None, *,
              deterministic: bool = True) -> tuple[jax.Array, Cache | None]:
        """All layers and the final norm.

        With a cache, keys and values are written to the slots of their positions, and a query sees every slot up
        to its own; the cache must be long enough.
        """
        config = self.config
        rate = 0.0 if deterministic else self.dropout
        x_BTD = dropout(x_BTD, rate, 'embed_dropout')
        rotary = None
        if config.positions == 'rotary':
            rotary = make_rotary(positions_BT, config.head_dim, config.rope_theta)
        layers = _scan(self.exec, config.num_layers)(config, self.exec, rate, name='layers')
        (x_BTD, cache), _ = layers((x_BTD, cache), jnp.arange(config.num_layers), positions_BT, mask, rotary)
        return self.final_norm(x_BTD), cache

    def unembedding(self) -> jax.Array:
        """w_VD: logits are x_BTD times its transpose."""
        return self.embedding.tokens if self.config.tie_embeddings else self.token_head.w

    def token_logits(self, x_BTD: jax.Array) -> jax.Array:
        """logits_BTV, float32; the matmul takes its operands in the compute dtype."""
        w_VD = self.unembedding().astype(self.exec.compute_dtype)
        logits = jnp.einsum('ZD,VD->ZV', x_BTD.reshape(-1, x_BTD.shape[-1]), w_VD,
                            preferred_element_type=jnp.float32)
        return constrain(logits.reshape(*x_BTD.shape[:2], -1), ('batch', 'length', 'act_vocab'),
                         AxisRules.from_config(self.exec.rules))

    def scalar(self, x_BTD: jax.Array) -> jax.Array:
        """score_BT, float32."""
        return self.scalar_head(x_BTD)[..., 0]


def _scan(exec_config: ExecConfig, num_layers: int):
    """Block, rematerialised as `exec.remat` says, scanned over layers; parameters are stacked whatever the unroll."""
    unroll = exec_config.scan_unroll or num_layers
    block = Block
    if exec_config.remat != 'none':
        policy = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
        # A loop hides the recomputation from common-subexpression elimination by itself; unrolled layers do not.
        block = nn.remat(Block, policy=policy if exec_config.remat == 'minimal' else None, prevent_cse=unroll > 1)
    return nn.scan(block, variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': True},
                   in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast), length=num_layers, unroll=unroll,
                   metadata_params={nn.PARTITION_NAME: 'layers'})


def train_flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """FLOPs of a training step per token: 6 per weight of a matmul, and 12 L N H T of attention.

    PaLM's convention (arXiv:2204.02311, appendix B): attention counts in full though half of it is masked, and
    recomputation does not count.
    """
    projections = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
    feed_forward = (3 if config.mlp == 'swiglu' else 2) * config.mlp_dim
    weights = config.num_layers * config.model_dim * (projections + feed_forward)
    weights += config.vocab_size * config.model_dim
    return 6.0 * weights + 12.0 * config.num_layers * config.num_heads * config.head_dim * seq_len

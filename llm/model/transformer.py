"""One Transformer: what kind, which parts and which numbers, its `ModelConfig` says; no branch names a family.

In: tokens_BT (or images), positions_BT and a `MaskSpec`. Out: what the head gives, or x_BTD after the trunk.
`embed -> trunk -> head` are separate calls, so that an objective can meet the head in chunks and a sampler can
bring a cache. Left out: XLNet's two streams (`xlnet.py`), losses, sampling, where parameters live (`llm.sharding`).
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from llm.architecture import GATED, ModelConfig
from llm.execution import ExecConfig
from llm.model import heads, splash
from llm.model.attention import Attention, Cache, MaskSpec, Rotary, make_rotaries
from llm.model.layers import Embed, FeedForward, ImageEmbed, Norm, TokenHead, dropout, softcap
from llm.sharding import AxisRules, constrain, platform, with_gathered


class Block(nn.Module):
    """Attention, then the feed-forward, each added to x; the body of the scan over layers.

    What is added is f(norm(x)), post_norm(f(norm(x))) with `sandwich_norms`; without `norm_first` the sum is normed:
    norm(x + f(x)).
    """

    config: ModelConfig
    exec: ExecConfig
    dropout: float

    @nn.compact
    def __call__(self, carry: tuple[jax.Array, Cache | None], layer: jax.Array, positions_BT: jax.Array,
                 mask: MaskSpec, rotaries: tuple[Rotary, ...]) -> tuple[tuple[jax.Array, Cache | None], None]:
        x_BTD, cache = carry
        x_BTD = checkpoint_name(x_BTD, 'layer_input')
        attention = Attention(self.config, self.exec, self.dropout, name='attention')
        h_BTD, cache = attention(self._before('attention', x_BTD), positions_BT, mask, rotaries, cache, layer)
        x_BTD = self._after('attention', x_BTD, h_BTD)
        feed_forward = FeedForward(self.config, self.exec, name='mlp')
        x_BTD = self._after('mlp', x_BTD, feed_forward(self._before('mlp', x_BTD)))
        return (x_BTD, cache), None

    def _before(self, part: str, x_BTD: jax.Array) -> jax.Array:
        return Norm(self.config, name=f'{part}_norm')(x_BTD) if self.config.norm_first else x_BTD

    def _after(self, part: str, x_BTD: jax.Array, h_BTD: jax.Array) -> jax.Array:
        if self.config.sandwich_norms:
            h_BTD = Norm(self.config, name=f'{part}_post_norm')(h_BTD)
        x_BTD = x_BTD + dropout(h_BTD, self.dropout, f'{part}_dropout')
        if not self.config.norm_first:
            x_BTD = Norm(self.config, name=f'{part}_norm')(x_BTD)
        return constrain(x_BTD, ('batch', 'length', 'act'), AxisRules.from_config(self.exec.rules))


class Transformer(nn.Module):
    """Parameters, by top-level name; every leaf of `layers` is stacked [L, ...]:

    embed: tokens, positions, token_types, norm; of images patches, class_token, positions.
    layers: attention (query, key, value, out; query_norm, key_norm), mlp (up, gate, down), attention_norm, mlp_norm,
      attention_post_norm, mlp_post_norm.
    final_norm: with `norm_first`. pooler: before the heads of `heads.POOLED`, but in images.
    By head: token_head/w ('token', untied), masked_head ('masked', 'pretraining'), next_sentence_head
      ('next_sentence', 'pretraining'), scalar_head, classes_head, labels_head, span_head.

    dropout: rate on the embeddings, on each residual branch and on attention weights, as in GPT-2; only drawn
    (from the stream 'dropout') in calls with deterministic=False.
    """

    config: ModelConfig
    exec: ExecConfig
    head: str = 'token'  # one of `heads.HEADS`
    dropout: float = 0.0

    def setup(self):
        config, head = self.config, self.head
        assert head in heads.HEADS[config.kind] and config.kind != 'two_stream', (config.kind, head)
        images = config.kind == 'vision'
        self.embedding = (ImageEmbed if images else Embed)(config, self.exec, name='embed')
        if config.norm_first:
            self.final_norm = Norm(config)
        if head in heads.POOLED and not (images and head == 'classes'):
            self.pooler = heads.pooler(config, self.exec)
        if head in heads.OVER_VOCABULARY and not config.tie_embeddings:
            self.token_head = TokenHead(config)
        if head in ('masked', 'pretraining'):
            self.masked_head = heads.MaskedHead(config, self.exec)
        if head in ('next_sentence', 'pretraining'):
            self.next_sentence_head = heads.outputs(config, self.exec, 2)
        if head == 'classes':
            self.classes_head = heads.outputs(config, self.exec, config.num_classes)
        if head == 'labels':
            self.labels_head = heads.outputs(config, self.exec, config.num_classes)
        if head == 'span':
            self.span_head = heads.outputs(config, self.exec, 2)
        if head == 'scalar':
            # 1 / sqrt(D + 1): scores of unit variance at the start (arXiv:2009.01325). No bias: a ranking gives it no
            # gradient but rounding errors, of which Adam makes a walk that no two meshes share (1.6e-4 in 24 steps).
            self.scalar_head = heads.outputs(config, self.exec, 1, use_bias=False,
                                             stddev=(config.model_dim + 1) ** -0.5)

    def __call__(self, tokens_BT: jax.Array, positions_BT: jax.Array, mask: MaskSpec, *,
                 types_BT: jax.Array | None = None, deterministic: bool = True):
        """By the head, float32: token, masked: logits_BTV; scalar: score_BT; none: x_BTD; pooled: [B, D];
        classes: [B, classes]; labels: [B, T, classes]; span: [B, T, 2], start and end; next_sentence: [B, 2], of which
        0 is "it is next"; pretraining: those of masked and of next_sentence.

        Args:
          tokens_BT: of images image_BYXC, whose class token has position 0.
          types_BT: a text token's type (BERT: 1 in the second sentence); None: all 0.
        """
        x_BTD = self.hidden(tokens_BT, positions_BT, mask, types_BT=types_BT, deterministic=deterministic)
        match self.head:
            case 'token':
                return self.token_logits(x_BTD)
            case 'masked':
                return self.masked_logits(x_BTD)
            case 'pretraining':
                return self.masked_logits(x_BTD), self.next_sentence_head(heads.pool(self.pooler, x_BTD))[:, 0]
            case 'next_sentence':
                return self.next_sentence_head(heads.pool(self.pooler, x_BTD))[:, 0]
            case 'pooled':
                return heads.pool(self.pooler, x_BTD)[:, 0]
            case 'classes' if self.config.kind == 'vision':
                return self.classes_head(x_BTD[:, :1])[:, 0]
            case 'classes':
                return self.classes_head(heads.pool(self.pooler, x_BTD))[:, 0]
            case 'labels':
                return self.labels_head(x_BTD)
            case 'span':
                return self.span_head(x_BTD)
            case 'scalar':
                return self.scalar(x_BTD)
        return x_BTD

    def hidden(self, tokens_BT: jax.Array, positions_BT: jax.Array, mask: MaskSpec, *,
               types_BT: jax.Array | None = None, deterministic: bool = True) -> jax.Array:
        """x_BTD after the trunk: what an objective takes."""
        x_BTD = self.embed(tokens_BT, positions_BT, types_BT)
        return self.trunk(x_BTD, positions_BT, mask, deterministic=deterministic)[0]

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array, types_BT: jax.Array | None = None) -> jax.Array:
        if self.config.kind == 'vision':
            x_BTD = self.embedding(tokens_BT, positions_BT)
        else:
            x_BTD = self.embedding(tokens_BT, positions_BT, types_BT)
        return constrain(x_BTD.astype(self.exec.compute_dtype), ('batch', 'length', 'act'),
                         AxisRules.from_config(self.exec.rules))

    @nn.compact
    def trunk(self, x_BTD: jax.Array, positions_BT: jax.Array, mask: MaskSpec, cache: Cache | None = None, *,
              deterministic: bool = True) -> tuple[jax.Array, Cache | None]:
        """All layers, and the final norm where there is one.

        With a cache, keys and values are written to its next columns, which must not pass its end, and a query sees
        those of its own row up to its own position (of its window); a position below 0 is padding, which is not seen.
        Layers that stand apart (`layers_apart`) run one after the other, without a scan.
        """
        config = self.config
        assert mask.causal == (config.kind == 'decoder'), f'a model of kind {config.kind!r} with {mask.causal=}'
        rate = 0.0 if deterministic else self.dropout
        if self.exec.attention == 'splash':
            splash.check(config, self.dropout)
        x_BTD = dropout(x_BTD, rate, 'embed_dropout')
        rotaries = make_rotaries(config, positions_BT)
        carry, shared = (x_BTD, cache), (positions_BT, mask, rotaries)
        if self.has_variable('params', 'layers_0'):
            for layer in range(config.num_layers):
                carry, _ = Block(config, self.exec, rate, name=f'layers_{layer}')(carry, layer, *shared)
        else:
            layers = scan_layers(Block, self.exec, config.num_layers, 3, initializing=self.is_initializing())(
                config, self.exec, rate, name='layers')
            carry, _ = layers(carry, jnp.arange(config.num_layers), *shared)
        x_BTD, cache = carry
        if cache is not None:
            columns = cache.k_LBKSH[0].shape[-2]
            cache = cache._replace(column=(cache.column + positions_BT.shape[1]) % columns)
        return self.final_norm(x_BTD) if config.norm_first else x_BTD, cache

    def unembedding(self) -> jax.Array:
        """w_VD: logits are x_BTD times its transpose."""
        return self.embedding.tokens if self.config.tie_embeddings else self.token_head.w

    def token_logits(self, x_BTD: jax.Array) -> jax.Array:
        """logits_BTV, float32; the matmul takes its operands in the compute dtype."""
        def product(w_VD, x_BTD):
            return jnp.einsum('BTD,VD->BTV', x_BTD, w_VD, preferred_element_type=jnp.float32)
        logits = self.over_vocab(product, self.unembedding(), x_BTD)
        return constrain(softcap(logits, self.config.logits_softcap), ('batch', 'length', 'act_vocab'),
                         AxisRules.from_config(self.exec.rules))

    @nn.nowrap
    def over_vocab(self, function: Callable, w_VD: jax.Array, *rows: jax.Array):
        """function(w_VD, *rows) with the unembedding, or some rows of it, gathered in the compute dtype."""
        return with_gathered(function, w_VD, ('vocab', 'embed'), AxisRules.from_config(self.exec.rules),
                             self.exec.compute_dtype, *rows)

    @nn.nowrap
    def log_probs_options(self) -> dict[str, Any]:
        """How `objectives.log_probs.token_log_probs` is to take this model's hidden states and unembedding."""
        return dict(chunk_vocab=self.exec.logits_chunk_vocab, softcap=self.config.logits_softcap,
                    transposed=platform() == 'cpu', apply=self.over_vocab)

    def masked_logits(self, x_BTD: jax.Array) -> jax.Array:
        """logits_BTV, float32, of the token that stands at each place."""
        return self.token_logits(self.masked_head(x_BTD)) + self.masked_head.bias[None, None]

    def scalar(self, x_BTD: jax.Array) -> jax.Array:
        """score_BT, float32."""
        return self.scalar_head(x_BTD)[..., 0]


# What the backward pass finds saved, beside each layer's input, by `exec.remat`.
_POLICIES = {
    'minimal': jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    'qkv': jax.checkpoint_policies.save_only_these_names('query', 'key', 'value', splash.SAVED),
    'full': None,
    'offload': jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=['layer_input'], offload_src='device',
        offload_dst='pinned_host')}


def scan_layers(block: type[nn.Module], exec_config: ExecConfig, num_layers: int, shared: int, *, initializing: bool):
    """`block`, rematerialised as `exec.remat` says, scanned over layers; parameters are stacked whatever the unroll.

    A block takes a carry, its own layer's part of one argument, and `shared` arguments that are the same in all layers.
    """
    unroll = exec_config.scan_unroll or num_layers
    if exec_config.remat != 'none':
        # A loop hides the recomputation from common-subexpression elimination by itself; unrolled layers do not.
        block = nn.remat(block, policy=_POLICIES[exec_config.remat], prevent_cse=unroll > 1)
    layers = nn.scan(block, variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': True},
                     in_axes=(0, *(nn.broadcast,) * shared), length=num_layers, unroll=unroll,
                     metadata_params={nn.PARTITION_NAME: 'layers'})
    if initializing or exec_config.compute_dtype == 'float32':
        return layers

    def cast(variables):
        # Of matrices, before the scan: XLA does so anyway, and now their gradients, too, are stacked in that dtype.
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf.astype(exec_config.compute_dtype) if path[-1].key == 'w' else leaf, variables)
    return nn.map_variables(layers, 'params', trans_in_fn=cast)


def layers_apart(params: dict[str, Any], config: ModelConfig, exec_config: ExecConfig) -> dict[str, Any]:
    """The parameters with a tree for each layer, `layers_0` and so on, where `exec.scan_unroll` unrolls them all.

    For calls in a loop: each turn of it would copy every layer out of the stack on CPU (69 MB of a 17 M model).
    """
    if not exec_config.unrolls(config.num_layers):
        return params
    stacked = params['layers']
    apart = {f'layers_{layer}': jax.tree.map(lambda x: x[layer], stacked) for layer in range(config.num_layers)}
    return {name: tree for name, tree in params.items() if name != 'layers'} | apart


def train_flops_per_token(config: ModelConfig, seq_len: int, *, logits_share: float = 1.0,
                          scores_share: float = 1.0) -> float:
    """FLOPs of a training step per token: 6 per weight of a matmul, and 12 L N H T of attention.

    logits_share: of the tokens, whose logits over the vocabulary are computed; 0 with a scalar head.
    scores_share: of attention's scores, that count; causality leaves .5.

    As they stand PaLM's convention (arXiv:2204.02311, appendix B): attention counts in full though half of it is
    masked, and recomputation does not count.
    """
    projections = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
    feed_forward = (3 if config.mlp in GATED else 2) * config.mlp_dim
    weights = config.num_layers * config.model_dim * (projections + feed_forward)
    weights += logits_share * config.vocab_size * config.model_dim
    return 6.0 * weights + 12.0 * scores_share * config.num_layers * config.num_heads * config.head_dim * seq_len

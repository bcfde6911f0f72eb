"""XLNet (arXiv:1906.08237): attention by relative positions, of a content stream and a query stream.

In: tokens_BT, a `MaskSpec`, and maybe token types, an order of prediction (`perm_mask_BTS`), the places to predict
(`targets_BP`) and the memory of an earlier segment. Out: what the head gives, and the memory of this segment.
Left out: the bidirectional data pipeline, clamped distances and shared biases of other settings; losses; sampling.

Letters beside the house's: P predicted places, M places in memory, S = M + T keys, C = S + T relative places.
"""

from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm.architecture import ModelConfig
from llm.execution import ExecConfig
from llm.model import heads
from llm.model.attention import MaskSpec, allowed
from llm.model.layers import (boxed_normal, dropout, Einsum, Embed, FeedForward, INIT_STDDEV, Norm, residual_stddev,
                              TokenHead)
from llm.model.transformer import scan_layers
from llm.sharding import AxisRules, constrain


class View(NamedTuple):
    """What is the same in all layers.

    content_BTS, query_BTS: which keys the streams may see; content always sees itself. differs_BTS: query and key are
    of different types; None: types do not count. far_CD: embeddings of the distances S, S - 1, ... 1 - T.
    target_BPT: one-hot, which place each query of the query stream stands at; None: there is no query stream.
    """

    content_BTS: jax.Array
    query_BTS: jax.Array
    differs_BTS: jax.Array | None
    far_CD: jax.Array
    target_BPT: jax.Array | None


class Term(nn.Module):
    """A bias that queries get before they meet one kind of key."""

    config: ModelConfig

    @nn.compact
    def __call__(self, q_BTNH: jax.Array) -> jax.Array:
        bias = self.param('bias', boxed_normal(INIT_STDDEV, ('heads', 'head_dim')), q_BTNH.shape[2:])
        return q_BTNH + bias[None, None].astype(q_BTNH.dtype)


class SegmentKeys(nn.Module):
    """Two keys for each head: of the query's own type, and of another."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        shape = (2, self.config.num_heads, self.config.head_dim)
        return self.param('w', boxed_normal(INIT_STDDEV, (None, 'heads', 'head_dim')), shape)


class RelativeAttention(nn.Module):
    """Scores are the sum of three products, of the key's content, its distance and its type (section A.2)."""

    config: ModelConfig
    exec: ExecConfig
    dropout: float

    @nn.compact
    def __call__(self, h_BTD: jax.Array, g_BPD: jax.Array | None, memory_BMD: jax.Array | None,
                 view: View) -> tuple[jax.Array, jax.Array | None]:
        config = self.config
        query, key, value, position = (self._matrix(name) for name in ('query', 'key', 'value', 'position'))
        by_content, by_position, by_segment = (Term(config, name=f'{name}_term')
                                               for name in ('content', 'position', 'segment'))
        shape, axes = (config.num_heads, config.head_dim, config.model_dim), ('heads', 'head_dim', 'embed')
        out = Einsum('BTNH,NHD->BTD', shape, axes, self.exec.compute_dtype, AxisRules.from_config(self.exec.rules),
                     stddev=residual_stddev(config), name='out')
        seen_BSD = h_BTD if memory_BMD is None else jnp.concatenate([memory_BMD, h_BTD], 1)
        k_BSNH, v_BSNH, r_CNH = key(seen_BSD), value(seen_BSD), position(view.far_CD[None])[0]
        segment_ENH = SegmentKeys(config, name='segment')().astype(r_CNH.dtype)

        def attend(q_BTNH: jax.Array, allowed_BTS: jax.Array, name: str) -> jax.Array:
            exact = dict(preferred_element_type=jnp.float32)
            scores_BNTS = jnp.einsum('BTNH,BSNH->BNTS', by_content(q_BTNH), k_BSNH, **exact)
            scores_BNTS += shift(jnp.einsum('BTNH,CNH->BNTC', by_position(q_BTNH), r_CNH, **exact), k_BSNH.shape[1])
            if view.differs_BTS is not None:
                types_BNTE = jnp.einsum('BTNH,ENH->BNTE', by_segment(q_BTNH), segment_ENH, **exact)
                scores_BNTS += jnp.where(view.differs_BTS[:, None], types_BNTE[..., 1:], types_BNTE[..., :1])
            # Subtracted, as the reference does: a query that sees nothing weighs all keys alike, and has gradients.
            scores_BNTS = scores_BNTS * config.head_dim ** -0.5 - jnp.where(allowed_BTS[:, None], 0.0, 1e30)
            probs_BNTS = dropout(nn.softmax(scores_BNTS), self.dropout, f'{name}_dropout').astype(v_BSNH.dtype)
            return jnp.einsum('BNTS,BSNH->BTNH', probs_BNTS, v_BSNH)
        h_BTD = out(attend(query(h_BTD), view.content_BTS, 'content'))
        if g_BPD is None:
            return h_BTD, None
        target_BPT = view.target_BPT.astype(h_BTD.dtype)
        q_BTNH = jnp.einsum('BPNH,BPT->BTNH', query(g_BPD), target_BPT)
        g_BTNH = attend(q_BTNH, view.query_BTS, 'query')
        return h_BTD, out(jnp.einsum('BTNH,BPT->BPNH', g_BTNH, target_BPT))

    def _matrix(self, name: str) -> Einsum:
        shape = (self.config.model_dim, self.config.num_heads, self.config.head_dim)
        return Einsum('BTD,DNH->BTNH', shape, ('embed', 'heads', 'head_dim'), self.exec.compute_dtype,
                      AxisRules.from_config(self.exec.rules), name=name)


def shift(x_BNTC: jax.Array, keys: int) -> jax.Array:
    """[B, N, T, S]: row t moved left by T - t, so that key s stands where its distance from query t does."""
    batch, num_heads, queries, places = x_BNTC.shape
    slanted = x_BNTC.reshape(batch, num_heads, places, queries)[:, :, 1:]
    return slanted.reshape(batch, num_heads, queries, places - 1)[..., :keys]


class TwoStreamBlock(nn.Module):
    """norm(x + attention), then norm(x + feed_forward), of both streams with the same weights."""

    config: ModelConfig
    exec: ExecConfig
    dropout: float

    @nn.compact
    def __call__(self, streams: tuple[jax.Array, jax.Array | None], memory_BMD: jax.Array | None,
                 view: View) -> tuple[tuple[jax.Array, jax.Array | None], jax.Array]:
        h_BTD, g_BPD = streams
        attention = RelativeAttention(self.config, self.exec, self.dropout, name='attention')
        attention_norm, mlp_norm = Norm(self.config, name='attention_norm'), Norm(self.config, name='mlp_norm')
        feed_forward = FeedForward(self.config, self.exec, name='mlp')
        rules = AxisRules.from_config(self.exec.rules)

        def finish(x_BTD: jax.Array, added_BTD: jax.Array, name: str) -> jax.Array:
            x_BTD = attention_norm(x_BTD + dropout(added_BTD, self.dropout, f'{name}_attention_dropout'))
            x_BTD = mlp_norm(x_BTD + dropout(feed_forward(x_BTD), self.dropout, f'{name}_mlp_dropout'))
            return constrain(x_BTD, ('batch', 'length', 'act'), rules)
        added_BTD, added_BPD = attention(h_BTD, g_BPD, memory_BMD, view)
        g_BPD = None if g_BPD is None else finish(g_BPD, added_BPD, 'query')
        return (finish(h_BTD, added_BTD, 'content'), g_BPD), h_BTD


class QueryToken(nn.Module):
    """What the query stream starts from, the same at every place."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param('w', boxed_normal(INIT_STDDEV, (None, 'embed')), (1, self.config.model_dim))


class XLNet(nn.Module):
    """Parameters: embed/tokens, query_token/w [1, D]; layers: attention (query, key, value, position, out, each with w;
    content_term, position_term, segment_term, each with bias [N, H]; segment/w [2, N, H]), mlp, attention_norm,
    mlp_norm; by head token_head/bias (and w, untied), pooler, classes_head, labels_head, span_head.
    """

    config: ModelConfig
    exec: ExecConfig
    head: str = 'token'  # one of `heads.HEADS['two_stream']`
    dropout: float = 0.0

    def setup(self):
        config, head = self.config, self.head
        assert config.kind == 'two_stream' and head in heads.HEADS['two_stream'], (config.kind, head)
        self.embedding = Embed(config, self.exec, name='embed')
        self.query_token = QueryToken(config)
        if head == 'token':
            self.token_head = TokenHead(config, use_bias=True)
        if head in heads.POOLED:
            self.pooler = heads.pooler(config, self.exec)
        if head == 'classes':
            self.classes_head = heads.outputs(config, self.exec, config.num_classes)
        if head == 'labels':
            self.labels_head = heads.outputs(config, self.exec, config.num_classes)
        if head == 'span':
            self.span_head = heads.outputs(config, self.exec, 2)

    def __call__(self, tokens_BT: jax.Array, mask: MaskSpec, **inputs) -> jax.Array:
        """By the head, float32: token: logits, [B, P, V] of the targets or else [B, T, V]; none: x; pooled, classes: of
        each row's last token; labels: [B, T, classes]; span: [B, T, 2]. `inputs`: see `hidden`."""
        x_BTD, _ = self.hidden(tokens_BT, mask, **inputs)
        match self.head:
            case 'token':
                return self.token_logits(x_BTD)
            case 'pooled':
                return heads.pool(self.pooler, x_BTD, -1)[:, 0]
            case 'classes':
                return self.classes_head(heads.pool(self.pooler, x_BTD, -1))[:, 0]
            case 'labels':
                return self.labels_head(x_BTD)
            case 'span':
                return self.span_head(x_BTD)
        return x_BTD

    @nn.compact
    def hidden(self, tokens_BT: jax.Array, mask: MaskSpec, *, types_BT: jax.Array | None = None,
               perm_mask_BTS: jax.Array | None = None, targets_BP: jax.Array | None = None,
               memory_LBMD: jax.Array | None = None, deterministic: bool = True) -> tuple[jax.Array, jax.Array]:
        """x of the query stream [B, P, D], or of the content stream [B, T, D] without targets; and [L, B, T, D], what a
        later segment takes as its memory (with the memory given here before it, cut to the length wanted).

        Args:
          mask: not causal; its segments part what may not see each other, padding too. Memory is seen by all.
          types_BT: a token's type; only whether two are the same counts. None: that does not count either.
          perm_mask_BTS: 1 where token t may not see token s, whichever stream; but content sees itself.
          targets_BP: places whose tokens are predicted; the query stream does not see the tokens there.
        """
        config = self.config
        assert not mask.causal, 'the order of prediction is perm_mask_BTS'
        rate = 0.0 if deterministic else self.dropout
        view = _view(config, tokens_BT, mask, types_BT, perm_mask_BTS, targets_BP,
                     0 if memory_LBMD is None else memory_LBMD.shape[2])
        view = view._replace(far_CD=dropout(view.far_CD, rate, 'position_dropout'))
        h_BTD = self.embedding(tokens_BT, None, None)
        g_BPD = None
        if targets_BP is not None:
            g_BPD = jnp.broadcast_to(self.query_token()[None], (*targets_BP.shape, config.model_dim))
        streams = tuple(self._start(x, rate, name) for x, name in ((h_BTD, 'content'), (g_BPD, 'query')))
        layers = scan_layers(TwoStreamBlock, self.exec, config.num_layers, 1, initializing=self.is_initializing())(
            config, self.exec, rate, name='layers')
        (h_BTD, g_BPD), memory_LBTD = layers(streams, memory_LBMD, view)
        x_BTD = h_BTD if g_BPD is None else g_BPD
        return dropout(x_BTD, rate, 'final_dropout'), jax.lax.stop_gradient(memory_LBTD)

    def _start(self, x_BTD: jax.Array | None, rate: float, name: str) -> jax.Array | None:
        if x_BTD is None:
            return None
        x_BTD = dropout(x_BTD.astype(self.exec.compute_dtype), rate, f'{name}_embed_dropout')
        return constrain(x_BTD, ('batch', 'length', 'act'), AxisRules.from_config(self.exec.rules))

    def unembedding(self) -> jax.Array:
        """w_VD: logits are x_BTD times its transpose, plus the head's bias."""
        return self.embedding.tokens if self.config.tie_embeddings else self.token_head.w

    def token_logits(self, x_BTD: jax.Array) -> jax.Array:
        """logits_BTV, float32; the matmul takes its operands in the compute dtype."""
        w_VD = self.unembedding().astype(self.exec.compute_dtype)
        logits = jnp.einsum('ZD,VD->ZV', x_BTD.reshape(-1, x_BTD.shape[-1]), w_VD, preferred_element_type=jnp.float32)
        return constrain((logits + self.token_head.bias[None]).reshape(*x_BTD.shape[:2], -1),
                         ('batch', 'length', 'act_vocab'), AxisRules.from_config(self.exec.rules))


def _view(config: ModelConfig, tokens_BT: jax.Array, mask: MaskSpec, types_BT: jax.Array | None,
          perm_mask_BTS: jax.Array | None, targets_BP: jax.Array | None, memory: int) -> View:
    length = tokens_BT.shape[1]
    places_BT = jnp.arange(length)[None]
    query_BTS = allowed(mask, places_BT, places_BT)
    if perm_mask_BTS is not None:
        query_BTS &= perm_mask_BTS == 0
    content_BTS = query_BTS | jnp.eye(length, dtype=bool)[None]

    def remembered(x_BTS: jax.Array, value: bool) -> jax.Array:
        return jnp.pad(x_BTS, ((0, 0), (0, 0), (memory, 0)), constant_values=value)
    differs_BTS = None
    if types_BT is not None:
        differs_BTS = types_BT[:, :, None] != jnp.pad(types_BT, ((0, 0), (memory, 0)))[:, None]  # memory: of type 0
    distance_C = jnp.arange(memory + length, -length, -1, dtype=jnp.float32)
    rate_D = config.rope_theta ** (-jnp.arange(0, config.model_dim, 2, dtype=jnp.float32) / config.model_dim)
    angle_CD = distance_C[:, None] * rate_D[None]
    target_BPT = None if targets_BP is None else jax.nn.one_hot(targets_BP, length)
    return View(remembered(content_BTS, True), remembered(query_BTS, True), differs_BTS,
                jnp.concatenate([jnp.sin(angle_CD), jnp.cos(angle_CD)], -1), target_BPT)

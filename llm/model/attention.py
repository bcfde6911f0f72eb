"""Multi-head attention with grouped queries, rotary positions and an explicit key-value cache.

In: x_BTD, where each token stands (`positions_BT`), which tokens may see each other (`MaskSpec`), maybe a cache.
Out: the attention's contribution to the residual stream, and the cache with this call's keys and values.
Here is einsum + softmax (XLA's dot_product_attention took 46 ms where this took 34 on CPU); TPUs have `splash.py`.
"""

from typing import NamedTuple

from flax import linen as nn
from flax import struct
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from llm.architecture import ModelConfig, RopeScaling
from llm.execution import ExecConfig
from llm.model import splash
from llm.model.layers import Einsum, Norm, dropout, residual_stddev, softcap
from llm.sharding import AxisRules, constrain

_UNBOUNDED = 2**31 - 1  # a window that holds any number of tokens
_BLOCK, _MOST_BLOCKS = 64, 8  # of queries: 64 at once were the fastest on CPU; more blocks take long to compile


@struct.dataclass
class MaskSpec:
    """Which tokens may attend to which, without a dense mask.

    causal: a token sees no later position; tokens of one segment stand in the order of their positions.
    segments_BT: a token sees its own segment only; None: one segment.
    """

    causal: bool = struct.field(pytree_node=False, default=True)
    segments_BT: jax.Array | None = None


class Cache(NamedTuple):
    """Keys and values of each row's last S tokens, all layers: a ring, of which all rows write the same column at once.

    Rows may have begun at different times: how long ago a column was written tells its token's position. Layers are
    stacked, or, where the scan over them is unrolled, arrays of their own: a CPU copies what it slices from a stack.
    """

    k_LBKSH: jax.Array | tuple[jax.Array, ...]
    v_LBKSH: jax.Array | tuple[jax.Array, ...]
    column: jax.Array  # int32; where the next token goes

    def positions(self, positions_BT: jax.Array) -> jax.Array:
        """positions_BS of what the columns hold once these tokens are written; beyond all where it is not the row's."""
        size, length = self.k_LBKSH[0].shape[-2], positions_BT.shape[1]
        age_S = (self.column + length - 1 - jnp.arange(size)) % size
        positions_BS = positions_BT[:, -1:] - age_S[None]
        return jnp.where(positions_BS >= 0, positions_BS, _UNBOUNDED)


def init_cache(config: ModelConfig, exec_config: ExecConfig, batch: int, length: int) -> Cache:
    """An empty cache for `batch` rows of up to `length` tokens, in the compute dtype."""
    shape = (batch, config.num_kv_heads, length, config.head_dim)
    rules = AxisRules.from_config(exec_config.rules)

    def empty(*layers: int) -> jax.Array:
        zeros = jnp.zeros((*layers, *shape), exec_config.compute_dtype)
        return constrain(zeros, (*(None for _ in layers), 'batch', 'act_kv_heads', None, None), rules)

    def all_layers() -> jax.Array | tuple[jax.Array, ...]:
        count = config.num_layers
        return tuple(empty() for _ in range(count)) if exec_config.unrolls(count) else empty(count)
    return Cache(all_layers(), all_layers(), jnp.int32(0))


class Rotary(NamedTuple):
    """Cosine and sine of each position's angles, float32; the same in all layers, so made once."""

    cos_BTH: jax.Array  # H here is half a head's width
    sin_BTH: jax.Array


def make_rotary(positions_BT: jax.Array, head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Rotary:
    """Angles position * theta^(-2i / head_dim), i < head_dim / 2 (arXiv:2104.09864), maybe scaled."""
    rate_H = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is not None:
        rate_H = _scaled(rate_H, scaling)
    angle_BTH = positions_BT[:, :, None].astype(jnp.float32) * rate_H[None, None]
    return Rotary(jnp.cos(angle_BTH), jnp.sin(angle_BTH))


def make_rotaries(config: ModelConfig, positions_BT: jax.Array) -> tuple[Rotary, ...]:
    """None, one for all layers, or two: of the layers without a window, and of those with one."""
    if config.positions != 'rotary':
        return ()
    rotary = make_rotary(positions_BT, config.head_dim, config.rope_theta, config.rope_scaling)
    if not config.rope_local_theta:
        return (rotary,)
    return rotary, make_rotary(positions_BT, config.head_dim, config.rope_local_theta)


def _scaled(rate_H: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Radians per position after scaling; `RopeScaling` says how."""
    if scaling.kind == 'linear':
        return rate_H / scaling.factor
    waves_H = scaling.original_positions * rate_H / (2 * jnp.pi)  # that fit into the original positions
    kept_H = (waves_H - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept_H = kept_H.clip(0, 1)
    return kept_H * rate_H + (1 - kept_H) * rate_H / scaling.factor


def rotate(x_BTNH: jax.Array, rotary: Rotary) -> jax.Array:
    """Turns the pairs (i, i + head_dim / 2), Llama's half-split convention. In float32; keeps the dtype."""
    low, high = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = rotary.cos_BTH[:, :, None], rotary.sin_BTH[:, :, None]
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x_BTNH.dtype)


def allowed(mask: MaskSpec, positions_BT: jax.Array, positions_BS: jax.Array,
            window: jax.Array | int | None = None, segments_BS: jax.Array | None = None) -> jax.Array:
    """Which keys a query may see, [B, T, S] bool.

    Args:
      mask: of the queries.
      window: tokens that a query sees at most, counted back from itself; None: any number.
      segments_BS: of the keys; None: the queries' own.
    """
    allowed_BTS = jnp.ones((1, positions_BT.shape[1], positions_BS.shape[1]), bool)
    if mask.causal:
        allowed_BTS &= positions_BS[:, None, :] <= positions_BT[:, :, None]
    if window is not None:
        allowed_BTS &= positions_BT[:, :, None] - positions_BS[:, None, :] < window
    if mask.segments_BT is not None:
        segments_BS = mask.segments_BT if segments_BS is None else segments_BS
        allowed_BTS &= segments_BS[:, None, :] == mask.segments_BT[:, :, None]
    return allowed_BTS


class Attention(nn.Module):
    """Softmax attention; query head n uses key-value head n // (N / K) (arXiv:2305.13245, Llama's order)."""

    config: ModelConfig
    exec: ExecConfig
    dropout: float

    @nn.compact
    def __call__(self, x_BTD: jax.Array, positions_BT: jax.Array, mask: MaskSpec, rotaries: tuple[Rotary, ...],
                 cache: Cache | None, layer: jax.Array) -> tuple[jax.Array, Cache | None]:
        config = self.config
        q_BTNH = self._project('query', x_BTD, config.num_heads, 'heads')
        k_BSKH = self._project('key', x_BTD, config.num_kv_heads, 'kv_heads')
        v_BSKH = self._project('value', x_BTD, config.num_kv_heads, 'kv_heads')
        if config.qk_norm:
            q_BTNH = Norm(config, config.head_dim, name='query_norm')(q_BTNH)
            k_BSKH = Norm(config, config.head_dim, name='key_norm')(k_BSKH)
        if rotaries:
            rotary = self._by_layer(layer, *rotaries)
            q_BTNH, k_BSKH = rotate(q_BTNH, rotary), rotate(k_BSKH, rotary)
        q_BTNH = self._pin(q_BTNH, 'length', 'act_heads', 'query')
        k_BSKH = self._pin(k_BSKH, None, 'act_kv_heads', 'key')  # where the length is split, gathered
        v_BSKH = self._pin(v_BSKH, None, 'act_kv_heads', 'value')
        window = self._by_layer(layer, _UNBOUNDED, config.window) if config.window else None
        if cache is None and self.exec.attention == 'splash' and splash.fits(x_BTD.shape[1], self._rules):
            out_BTNH = splash.attend(q_BTNH, k_BSKH, v_BSKH, mask.segments_BT, causal=mask.causal, config=config,
                                     rules=self._rules)
            return self._out(out_BTNH), None
        if cache is not None:
            assert mask.causal and mask.segments_BT is None, 'a cache holds one causal piece a row'
            positions_BS = cache.positions(positions_BT)
            cache = _write(cache, layer, k_BSKH, v_BSKH)
            k_BSKH, v_BSKH = cache.k_LBKSH[layer].swapaxes(1, 2), cache.v_LBKSH[layer].swapaxes(1, 2)
            out_BTNH = self._attend(q_BTNH, k_BSKH, v_BSKH, allowed(mask, positions_BT, positions_BS, window))
        else:
            out_BTNH = self._attend_in_blocks(q_BTNH, k_BSKH, v_BSKH, mask, positions_BT, window)
        return self._out(checkpoint_name(out_BTNH, splash.SAVED)), cache

    @property
    def _rules(self) -> AxisRules:
        return AxisRules.from_config(self.exec.rules)

    def _out(self, x_BTNH: jax.Array) -> jax.Array:
        config = self.config
        shape, axes = (config.num_heads, config.head_dim, config.model_dim), ('heads', 'head_dim', 'embed')
        return Einsum('BTNH,NHD->BTD', shape, axes, self.exec.compute_dtype, self._rules, config.use_bias,
                      residual_stddev(config), name='out')(x_BTNH)

    def _pin(self, x_BTNH: jax.Array, length: str | None, heads: str, name: str) -> jax.Array:
        return checkpoint_name(constrain(x_BTNH, ('batch', length, heads, None), self._rules), name)

    def _by_layer(self, layer: jax.Array, far, *near):
        """`far` in layers without a window, `near` in those with one; one value alone is that of all layers."""
        every = self.config.global_every
        if not near:
            return far
        if not every:
            return near[0]
        return jax.tree.map(lambda far, near: jnp.where((layer + 1) % every == 0, far, near), far, near[0])

    def _project(self, name: str, x_BTD: jax.Array, heads: int, axis: str) -> jax.Array:
        shape = (self.config.model_dim, heads, self.config.head_dim)
        y_BTNH = Einsum('BTD,DNH->BTNH', shape, ('embed', axis, 'head_dim'), self.exec.compute_dtype, self._rules,
                        self.config.use_bias or self.config.qkv_bias, name=name)(x_BTD)
        return constrain(y_BTNH, ('batch', 'length', f'act_{axis}', None), self._rules)

    def _attend_in_blocks(self, q_BTNH, k_BSKH, v_BSKH, mask: MaskSpec, positions_BT, window) -> jax.Array:
        """Of whole rows: a causal block of queries meets no keys behind it, nor before its window, if layers share one.

        Where the length is split over devices there is one block.
        """
        config, length = self.config, q_BTNH.shape[1]
        alone = mask.causal and self._rules.ways('length') == 1
        size = max(_BLOCK, -(-length // _MOST_BLOCKS)) if alone else length
        parts = []
        for begin in range(0, length, size):
            end = min(begin + size, length)
            near = begin + 1 - config.window if config.window and not config.global_every else 0
            rows, seen = slice(begin, end), slice(max(near, 0) if mask.causal else 0, end)
            part, segments_BS = mask, None
            if mask.segments_BT is not None:
                part, segments_BS = mask.replace(segments_BT=mask.segments_BT[:, rows]), mask.segments_BT[:, seen]
            allowed_BTS = allowed(part, positions_BT[:, rows], positions_BT[:, seen], window, segments_BS)
            parts.append(self._attend(q_BTNH[:, rows], k_BSKH[:, seen], v_BSKH[:, seen], allowed_BTS,
                                      f'dropout{begin}'))
        return jnp.concatenate(parts, 1)

    def _attend(self, q_BTNH, k_BSKH, v_BSKH, allowed_BTS, drawn: str = 'dropout') -> jax.Array:
        """Softmax in float32. The query heads of a group stand beside the positions, as Z = T * G: a product with
        an axis G of its own took 1.3 times as long on CPU, also where G is 1."""
        batch, length, _, width = q_BTNH.shape
        kv_heads = k_BSKH.shape[2]
        q_BTKGH = q_BTNH.reshape(batch, length, kv_heads, -1, width)
        groups = q_BTKGH.shape[3]
        q_BZKH = q_BTKGH.swapaxes(2, 3).reshape(batch, length * groups, kv_heads, width)
        scores_BKZS = jnp.einsum('BZKH,BSKH->BKZS', q_BZKH, k_BSKH, preferred_element_type=jnp.float32)
        allowed_BZS = jnp.repeat(allowed_BTS, groups, axis=1)
        scores_BKZS = softcap(scores_BKZS * (self.config.query_scale or width) ** -0.5, self.config.attention_softcap)
        scores_BKZS = jnp.where(allowed_BZS[:, None], scores_BKZS, -1e30)
        probs_BKZS = dropout(nn.softmax(scores_BKZS), self.dropout, drawn).astype(v_BSKH.dtype)
        out_BZKH = jnp.einsum('BKZS,BSKH->BZKH', probs_BKZS, v_BSKH)
        return out_BZKH.reshape(batch, length, groups, kv_heads, width).swapaxes(2, 3).reshape(q_BTNH.shape)


def _write(cache: Cache, layer: jax.Array | int, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Cache:
    """Puts keys and values into one layer of the cache, from its column on."""
    def put(held_LBKSH, new_BTKH):
        new_BKTH, at = new_BTKH.swapaxes(1, 2), (0, 0, cache.column, 0)
        if not isinstance(held_LBKSH, tuple):
            return jax.lax.dynamic_update_slice(held_LBKSH, new_BKTH[None], (layer, *at))
        written_BKSH = jax.lax.dynamic_update_slice(held_LBKSH[layer], new_BKTH, at)
        return *held_LBKSH[:layer], written_BKSH, *held_LBKSH[layer + 1:]
    return cache._replace(k_LBKSH=put(cache.k_LBKSH, k_BTKH), v_LBKSH=put(cache.v_LBKSH, v_BTKH))

"""Attention by JAX's splash kernel, which never holds the scores: what TPUs use for whole rows.

In: queries, keys and values of whole rows, a `MaskSpec`. Out: the weighted values.
Left out: caches, dropped-out attention weights, windows in some layers only; the kernel itself.
On other back ends the kernel is interpreted: slow, for tests.
"""

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec

from llm.architecture import ModelConfig
from llm.errors import UserError
from llm.execution import SPLASH_BLOCK
from llm.sharding import AxisRules, platform

SAVED = 'attended'  # name of what the forward pass leaves for the backward pass: output and log-sum-exp
_LARGEST = 512  # tokens of a block; larger ones win little and take fast memory


def check(config: ModelConfig, dropout: float) -> None:
    """Raises UserError for what the kernel cannot do."""
    if dropout:
        raise UserError(f"exec.attention='splash' drops out no attention weights, but dropout={dropout}; use 0 or "
                        f"exec.attention='einsum'")
    if config.window and config.global_every:
        raise UserError("exec.attention='splash' has one window for all layers, but model.global_every="
                        f"{config.global_every}; use exec.attention='einsum'")


def fits(length: int, rules: AxisRules) -> bool:
    """Whether rows of that many tokens are cut into whole blocks on every device."""
    return length % (SPLASH_BLOCK * rules.ways('length')) == 0


def attend(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array | None, *, causal: bool,
           config: ModelConfig, rules: AxisRules) -> jax.Array:
    """[B, T, N, H]. Queries may be split over rows, length and heads; keys and values over rows and heads alone.

    Masks count places in the row: within a segment they are as far apart as its positions.
    """
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.size == 1
    head_shards, length_shards = (1, 1) if alone else (rules.ways('act_heads'), rules.ways('length'))
    _, length, num_heads, width = q_BTNH.shape
    of_heads = masks.MultiHeadMask([_mask(length, causal, config.window, length_shards)] * num_heads)
    made = kernel.make_splash_mha(
        of_heads, block_sizes=_block_sizes(length // length_shards, length), head_shards=head_shards,
        q_seq_shards=length_shards, attn_logits_soft_cap=config.attention_softcap or None,
        residual_checkpoint_name=SAVED, interpret=platform() != 'tpu')
    q_BTNH = q_BTNH * (config.query_scale or width) ** -0.5
    arrays = made, q_BTNH, k_BSKH, v_BSKH, segments_BT, segments_BT
    if alone:
        return _rows(*arrays)
    q_spec, kv_spec = (rules.spec(('batch', *names, None)) for names in (('length', 'act_heads'),
                                                                          (None, 'act_kv_heads')))
    kernel_spec = made.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(q_spec[2], q_spec[1])))
    return jax.shard_map(_rows, mesh=mesh, check_vma=False, out_specs=q_spec, in_specs=(
        kernel_spec, q_spec, kv_spec, kv_spec, rules.spec(('batch', 'length')), rules.spec(('batch', None))))(*arrays)


def _rows(made, q_BTNH, k_BSKH, v_BSKH, segments_BT, segments_BS) -> jax.Array:
    def row(q_TNH, k_SKH, v_SKH, segments_T, segments_S):
        ids = None if segments_T is None else kernel.SegmentIds(segments_T, segments_S)
        return made(*(x.swapaxes(0, 1) for x in (q_TNH, k_SKH, v_SKH)), ids).swapaxes(0, 1)
    return jax.vmap(row)(q_BTNH, k_BSKH, v_BSKH, segments_BT, segments_BS)


def _mask(length: int, causal: bool, window: int, shards: int) -> masks.Mask:
    shape = (length, length)
    if window:
        return masks.LocalMask(shape, (window - 1, 0 if causal else None), 0, shards)
    return masks.CausalMask(shape, 0, shards) if causal else masks.FullMask(shape)


def _block_sizes(queries: int, keys: int) -> kernel.BlockSizes:
    def largest(length: int) -> int:
        return next(size for size in range(_LARGEST, 0, -SPLASH_BLOCK) if length % size == 0)
    q, kv = largest(queries), largest(keys)
    return kernel.BlockSizes(block_q=q, block_kv=kv, block_kv_compute=kv, block_q_dkv=q, block_kv_dkv=kv,
                             block_kv_dkv_compute=kv, block_q_dq=q, block_kv_dq=kv)

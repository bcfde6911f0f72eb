"""Gemma 1 (arXiv:2403.08295, table 1), 2 (arXiv:2408.00118, table 1) and 3 (arXiv:2503.19786, text only)."""

from ml_collections import ConfigDict

from configs import base


def gemma_2b() -> ConfigDict:
    return _gemma1(model_dim=2048, num_layers=18, num_heads=8, num_kv_heads=1, mlp_dim=16_384)


def gemma_7b() -> ConfigDict:
    return _gemma1(model_dim=3072, num_layers=28, num_heads=16, num_kv_heads=16, mlp_dim=24_576)


def gemma2_2b() -> ConfigDict:
    return _gemma2(model_dim=2304, num_layers=26, num_heads=8, num_kv_heads=4, mlp_dim=9216)


def gemma2_9b() -> ConfigDict:
    return _gemma2(model_dim=3584, num_layers=42, num_heads=16, num_kv_heads=8, mlp_dim=14_336)


def gemma2_27b() -> ConfigDict:
    return _gemma2(model_dim=4608, num_layers=46, num_heads=32, num_kv_heads=16, head_dim=128, mlp_dim=36_864,
                   query_scale=144.0)


def gemma3_270m() -> ConfigDict:
    return _gemma3(model_dim=640, num_layers=18, num_heads=4, num_kv_heads=1, mlp_dim=2048, **_SHORT)


def gemma3_1b() -> ConfigDict:
    return _gemma3(model_dim=1152, num_layers=26, num_heads=4, num_kv_heads=1, mlp_dim=6912, **_SHORT)


def gemma3_4b() -> ConfigDict:
    return _gemma3(model_dim=2560, num_layers=34, num_heads=8, num_kv_heads=4, mlp_dim=10_240, **_long())


def gemma3_12b() -> ConfigDict:
    return _gemma3(model_dim=3840, num_layers=48, num_heads=16, num_kv_heads=8, mlp_dim=15_360, **_long())


def gemma3_27b() -> ConfigDict:
    return _gemma3(model_dim=5376, num_layers=62, num_heads=32, num_kv_heads=16, head_dim=128, mlp_dim=21_504,
                   query_scale=168.0, **_long())


_SHORT = dict(vocab_size=262_144, max_positions=32_768, window=512)


def _long() -> dict:
    """Of the sizes that were released with a vision tower: their text part alone."""
    return dict(vocab_size=262_208, max_positions=131_072, window=1024,
                rope_scaling=ConfigDict(dict(kind='linear', factor=8.0)))


def _gemma(**keys) -> ConfigDict:
    """Rotary positions, RMSNorm that multiplies by 1 + scale, a gate through GELU, embeddings times sqrt(model_dim)."""
    parts = dict(head_dim=256, positions='rotary', norm='rmsnorm', norm_eps=1e-6, norm_offset=1.0, mlp='geglu',
                 use_bias=False, tie_embeddings=True, embed_scale=keys['model_dim'] ** 0.5)
    return base.model(**(parts | keys))


def _gemma1(**sizes) -> ConfigDict:
    return _gemma(vocab_size=256_000, max_positions=8192, **sizes)


def _gemma2(**sizes) -> ConfigDict:
    """Four norms a layer, soft-caps, every other layer with a window."""
    parts = dict(vocab_size=256_000, max_positions=8192, sandwich_norms=True,
                 attention_softcap=50.0, logits_softcap=30.0, window=4096, global_every=2)
    return _gemma(**(parts | sizes))


def _gemma3(**sizes) -> ConfigDict:
    """Norms of queries and keys instead of soft-caps; five layers with a window and a rope base of their own in six."""
    parts = dict(sandwich_norms=True, qk_norm=True, global_every=6, rope_theta=1e6,
                 rope_local_theta=10_000.0)
    return _gemma(**(parts | sizes))

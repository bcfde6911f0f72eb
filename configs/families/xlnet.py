"""XLNet (arXiv:1906.08237, section A.4)."""

from ml_collections import ConfigDict

from configs import base


def xlnet_base() -> ConfigDict:
    return _xlnet(num_layers=12, model_dim=768)


def xlnet_large() -> ConfigDict:
    return _xlnet(num_layers=24, model_dim=1024)


def _xlnet(num_layers: int, model_dim: int) -> ConfigDict:
    """Relative positions have no last one: 512 is the length that it was trained on. Token types have no table."""
    heads = model_dim // 64
    return base.model(
        vocab_size=32_000, model_dim=model_dim, num_layers=num_layers, num_heads=heads, num_kv_heads=heads, head_dim=64,
        mlp_dim=4 * model_dim, max_positions=512, positions='relative', norm='layernorm', norm_eps=1e-12,
        mlp='gelu_exact', use_bias=True, tie_embeddings=True, kind='two_stream', norm_first=False)

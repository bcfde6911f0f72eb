"""Qwen2 (arXiv:2407.10671), Qwen2.5 (arXiv:2412.15115, table 1), Qwen3 (arXiv:2505.09388, table 1): dense base models.

Llama's parts, and biases on query, key and value (2, 2.5) or a norm of each head's query and key (3).
"""

from ml_collections import ConfigDict

from configs.families.llama import llama


def qwen2_0_5b() -> ConfigDict:
    return _qwen2(**_0_5B, max_positions=131_072)


def qwen2_1_5b() -> ConfigDict:
    return _qwen2(**_1_5B, max_positions=131_072)


def qwen2_7b() -> ConfigDict:
    return _qwen2(**_7B, max_positions=131_072)


def qwen2_72b() -> ConfigDict:
    return _qwen2(**_72B, max_positions=131_072)


def qwen2_5_0_5b() -> ConfigDict:
    return _qwen2(**_0_5B, max_positions=32_768)


def qwen2_5_1_5b() -> ConfigDict:
    return _qwen2(**_1_5B, max_positions=131_072)


def qwen2_5_3b() -> ConfigDict:
    return _qwen2(model_dim=2048, num_layers=36, num_heads=16, num_kv_heads=2, mlp_dim=11_008, tie_embeddings=True,
                  max_positions=32_768)


def qwen2_5_7b() -> ConfigDict:
    return _qwen2(**_7B, max_positions=131_072)


def qwen2_5_14b() -> ConfigDict:
    return _qwen2(vocab_size=152_064, model_dim=5120, num_layers=48, num_heads=40, num_kv_heads=8, mlp_dim=13_824,
                  norm_eps=1e-5, max_positions=131_072)


def qwen2_5_32b() -> ConfigDict:
    return _qwen2(vocab_size=152_064, model_dim=5120, num_layers=64, num_heads=40, num_kv_heads=8, mlp_dim=27_648,
                  norm_eps=1e-5, max_positions=131_072)


def qwen2_5_72b() -> ConfigDict:
    return _qwen2(**_72B, max_positions=131_072)


def qwen3_0_6b() -> ConfigDict:
    return _qwen3(model_dim=1024, num_layers=28, num_heads=16, mlp_dim=3072, tie_embeddings=True)


def qwen3_1_7b() -> ConfigDict:
    return _qwen3(model_dim=2048, num_layers=28, num_heads=16, mlp_dim=6144, tie_embeddings=True)


def qwen3_4b() -> ConfigDict:
    return _qwen3(model_dim=2560, num_layers=36, num_heads=32, mlp_dim=9728, tie_embeddings=True)


def qwen3_8b() -> ConfigDict:
    return _qwen3(model_dim=4096, num_layers=36, num_heads=32, mlp_dim=12_288)


def qwen3_14b() -> ConfigDict:
    return _qwen3(model_dim=5120, num_layers=40, num_heads=40, mlp_dim=17_408)


def qwen3_32b() -> ConfigDict:
    """Released as a chat model alone."""
    return _qwen3(model_dim=5120, num_layers=64, num_heads=64, mlp_dim=25_600)


_0_5B = dict(model_dim=896, num_layers=24, num_heads=14, num_kv_heads=2, mlp_dim=4864, tie_embeddings=True)
_1_5B = dict(model_dim=1536, num_layers=28, num_heads=12, num_kv_heads=2, mlp_dim=8960, tie_embeddings=True)
_7B = dict(vocab_size=152_064, model_dim=3584, num_layers=28, num_heads=28, num_kv_heads=4, mlp_dim=18_944)
_72B = dict(vocab_size=152_064, model_dim=8192, num_layers=80, num_heads=64, num_kv_heads=8, mlp_dim=29_568,
            norm_eps=1e-5)


def _qwen2(**sizes) -> ConfigDict:
    return llama(**(dict(vocab_size=151_936, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True) | sizes))


def _qwen3(**sizes) -> ConfigDict:
    """The chat models have 40,960 positions; base models up to 14B say 32,768."""
    return llama(vocab_size=151_936, num_kv_heads=8, head_dim=128, max_positions=40_960, rope_theta=1e6, norm_eps=1e-6,
                 qk_norm=True, **sizes)

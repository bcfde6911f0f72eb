"""Mistral's dense models (arXiv:2310.06825, table 1, and the released configurations); the parts are Llama's."""

from ml_collections import ConfigDict

from configs.families.llama import llama


def mistral_7b() -> ConfigDict:
    """Version 0.1, the one with a sliding window."""
    return _mistral_7b(vocab_size=32_000, window=4096)


def mistral_7b_v0_2() -> ConfigDict:
    return _mistral_7b(vocab_size=32_000, rope_theta=1e6)


def mistral_7b_v0_3() -> ConfigDict:
    return _mistral_7b(vocab_size=32_768, rope_theta=1e6)


def mistral_nemo_12b() -> ConfigDict:
    return llama(vocab_size=131_072, model_dim=5120, num_layers=40, num_heads=32, num_kv_heads=8, head_dim=128,
                 mlp_dim=14_336, max_positions=131_072, rope_theta=1e6)


def mistral_small_22b() -> ConfigDict:
    """September 2024."""
    return llama(vocab_size=32_768, model_dim=6144, num_layers=56, num_heads=48, num_kv_heads=8, mlp_dim=16_384,
                 max_positions=32_768, rope_theta=1e6)


def mistral_small_24b() -> ConfigDict:
    """January 2025."""
    return llama(vocab_size=131_072, model_dim=5120, num_layers=40, num_heads=32, num_kv_heads=8, head_dim=128,
                 mlp_dim=32_768, max_positions=32_768, rope_theta=1e8)


def mistral_large_123b() -> ConfigDict:
    """July 2024."""
    return llama(vocab_size=32_768, model_dim=12_288, num_layers=88, num_heads=96, num_kv_heads=8, mlp_dim=28_672,
                 max_positions=131_072, rope_theta=1e6)


def _mistral_7b(**keys) -> ConfigDict:
    return llama(model_dim=4096, num_layers=32, num_heads=32, num_kv_heads=8, mlp_dim=14_336, max_positions=32_768,
                 **keys)

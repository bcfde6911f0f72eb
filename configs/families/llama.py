"""Llama 2 (arXiv:2307.09288, table 1), Llama 3, 3.1, 3.2, 3.3 (arXiv:2407.21783, table 3), SmolLM2 (arXiv:2502.02737).

`llama` gives the parts that all of them share, and Mistral too.
"""

from ml_collections import ConfigDict

from configs import base


def llama(**sizes) -> ConfigDict:
    """Rotary positions, RMSNorm, SwiGLU, no biases."""
    parts = dict(head_dim=sizes['model_dim'] // sizes['num_heads'], positions='rotary', norm='rmsnorm', norm_eps=1e-5,
                 mlp='swiglu', use_bias=False, tie_embeddings=False)
    return base.model(**(parts | sizes))


def llama2_7b() -> ConfigDict:
    return _llama2(model_dim=4096, num_layers=32, num_heads=32, num_kv_heads=32, mlp_dim=11_008)


def llama2_13b() -> ConfigDict:
    return _llama2(model_dim=5120, num_layers=40, num_heads=40, num_kv_heads=40, mlp_dim=13_824)


def llama2_70b() -> ConfigDict:
    return _llama2(model_dim=8192, num_layers=80, num_heads=64, num_kv_heads=8, mlp_dim=28_672)


def llama3_8b() -> ConfigDict:
    return _llama3(**_8B)


def llama3_70b() -> ConfigDict:
    return _llama3(**_70B)


def llama3_1_8b() -> ConfigDict:
    return _llama3(**_8B, **_stretched(8.0))


def llama3_1_70b() -> ConfigDict:
    return _llama3(**_70B, **_stretched(8.0))


def llama3_1_405b() -> ConfigDict:
    return _llama3(model_dim=16_384, num_layers=126, num_heads=128, mlp_dim=53_248, **_stretched(8.0))


def llama3_2_1b() -> ConfigDict:
    return _llama3(model_dim=2048, num_layers=16, num_heads=32, mlp_dim=8192, tie_embeddings=True,
                   **_stretched(32.0))


def llama3_2_3b() -> ConfigDict:
    return _llama3(model_dim=3072, num_layers=28, num_heads=24, mlp_dim=8192, tie_embeddings=True,
                   **_stretched(32.0))


def llama3_3_70b() -> ConfigDict:
    return llama3_1_70b()


def smollm2_135m() -> ConfigDict:
    return _smollm2(model_dim=576, num_layers=30, num_heads=9, num_kv_heads=3, mlp_dim=1536)


def smollm2_360m() -> ConfigDict:
    return _smollm2(model_dim=960, num_layers=32, num_heads=15, num_kv_heads=5, mlp_dim=2560)


def smollm2_1_7b() -> ConfigDict:
    return _smollm2(model_dim=2048, num_layers=24, num_heads=32, num_kv_heads=32, mlp_dim=8192, rope_theta=130_000.0)


_8B = dict(model_dim=4096, num_layers=32, num_heads=32, mlp_dim=14_336)
_70B = dict(model_dim=8192, num_layers=80, num_heads=64, mlp_dim=28_672)


def _llama2(**sizes) -> ConfigDict:
    return llama(vocab_size=32_000, max_positions=4096, **sizes)


def _llama3(**sizes) -> ConfigDict:
    return llama(**(dict(vocab_size=128_256, num_kv_heads=8, max_positions=8192, rope_theta=500_000.0) | sizes))


def _stretched(factor: float) -> dict:
    """From the 8,192 positions of Llama 3 to 131,072."""
    return dict(max_positions=131_072, rope_scaling=ConfigDict(dict(
        kind='llama3', factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192)))


def _smollm2(**sizes) -> ConfigDict:
    return llama(**(dict(vocab_size=49_152, max_positions=8192, rope_theta=100_000.0, tie_embeddings=True) | sizes))

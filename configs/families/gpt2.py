"""GPT-2: Language Models are Unsupervised Multitask Learners, table 2."""

from ml_collections import ConfigDict

from configs import base


def gpt2() -> ConfigDict:
    return _gpt2(num_layers=12, model_dim=768, num_heads=12)


def gpt2_medium() -> ConfigDict:
    return _gpt2(num_layers=24, model_dim=1024, num_heads=16)


def gpt2_large() -> ConfigDict:
    return _gpt2(num_layers=36, model_dim=1280, num_heads=20)


def gpt2_xl() -> ConfigDict:
    return _gpt2(num_layers=48, model_dim=1600, num_heads=25)


def _gpt2(num_layers: int, model_dim: int, num_heads: int) -> ConfigDict:
    return base.model(
        vocab_size=50_257, model_dim=model_dim, num_layers=num_layers, num_heads=num_heads, num_kv_heads=num_heads,
        head_dim=model_dim // num_heads, mlp_dim=4 * model_dim, max_positions=1024, positions='learned',
        norm='layernorm', norm_eps=1e-5, mlp='gelu', use_bias=True, tie_embeddings=True)

"""Vision Transformers: B, L, H of arXiv:2010.11929, table 1; Ti and S of arXiv:2106.10270, table 2. 1,000 classes."""

from ml_collections import ConfigDict

from configs import base


def vit_ti16() -> ConfigDict:
    return _vit(num_layers=12, model_dim=192, num_heads=3)


def vit_s16() -> ConfigDict:
    return _vit(num_layers=12, model_dim=384, num_heads=6)


def vit_s32() -> ConfigDict:
    return _vit(num_layers=12, model_dim=384, num_heads=6, patch_size=32)


def vit_b8() -> ConfigDict:
    return _vit(num_layers=12, model_dim=768, num_heads=12, patch_size=8)


def vit_b16() -> ConfigDict:
    return _vit(num_layers=12, model_dim=768, num_heads=12)


def vit_b16_384() -> ConfigDict:
    """Fine-tuned at 384 pixels, as all of the paper's results are."""
    return _vit(num_layers=12, model_dim=768, num_heads=12, image_size=384)


def vit_b32() -> ConfigDict:
    return _vit(num_layers=12, model_dim=768, num_heads=12, patch_size=32)


def vit_b32_384() -> ConfigDict:
    return _vit(num_layers=12, model_dim=768, num_heads=12, patch_size=32, image_size=384)


def vit_l16() -> ConfigDict:
    return _vit(num_layers=24, model_dim=1024, num_heads=16)


def vit_l16_384() -> ConfigDict:
    return _vit(num_layers=24, model_dim=1024, num_heads=16, image_size=384)


def vit_l32() -> ConfigDict:
    return _vit(num_layers=24, model_dim=1024, num_heads=16, patch_size=32)


def vit_l32_384() -> ConfigDict:
    return _vit(num_layers=24, model_dim=1024, num_heads=16, patch_size=32, image_size=384)


def vit_h14() -> ConfigDict:
    return _vit(num_layers=32, model_dim=1280, num_heads=16, patch_size=14)


def _vit(*, model_dim: int, num_heads: int, num_layers: int, image_size: int = 224, patch_size: int = 16) -> ConfigDict:
    return base.model(
        vocab_size=0, model_dim=model_dim, num_layers=num_layers, num_heads=num_heads, num_kv_heads=num_heads,
        head_dim=model_dim // num_heads, mlp_dim=4 * model_dim, max_positions=(image_size // patch_size) ** 2 + 1,
        positions='learned', norm='layernorm', norm_eps=1e-12, mlp='gelu_exact', use_bias=True, tie_embeddings=True,
        kind='vision', image_size=image_size, patch_size=patch_size, image_channels=3, num_classes=1000)

"""Model sizes by name, as ConfigDicts of every key of `ModelConfig`.

Parameter counts (checked by tests): gpt2 124,439,808; gpt2_medium 354,823,168; gpt2_large 774,030,080;
gpt2_xl 1,557,611,200; llama2_7b 6,738,415,616; llama3_8b 8,030,261,248; llama3_70b 70,553,706,496.
`tiny` (0.1 M) and `mini` (2.56 M) are Llama-shaped, for tests and for two CPU cores.
"""

import ml_collections


def gpt2() -> ml_collections.ConfigDict:
    return _gpt2(num_layers=12, model_dim=768, num_heads=12)


def gpt2_medium() -> ml_collections.ConfigDict:
    return _gpt2(num_layers=24, model_dim=1024, num_heads=16)


def gpt2_large() -> ml_collections.ConfigDict:
    return _gpt2(num_layers=36, model_dim=1280, num_heads=20)


def gpt2_xl() -> ml_collections.ConfigDict:
    return _gpt2(num_layers=48, model_dim=1600, num_heads=25)


def llama2_7b() -> ml_collections.ConfigDict:
    return _llama(vocab_size=32_000, model_dim=4096, num_layers=32, num_heads=32, num_kv_heads=32,
                  mlp_dim=11_008, max_positions=4096)


def llama3_8b() -> ml_collections.ConfigDict:
    return _llama(vocab_size=128_256, model_dim=4096, num_layers=32, num_heads=32, num_kv_heads=8,
                  mlp_dim=14_336, max_positions=8192, rope_theta=500_000.0)


def llama3_70b() -> ml_collections.ConfigDict:
    return _llama(vocab_size=128_256, model_dim=8192, num_layers=80, num_heads=64, num_kv_heads=8,
                  mlp_dim=28_672, max_positions=8192, rope_theta=500_000.0)


def tiny() -> ml_collections.ConfigDict:
    return _llama(vocab_size=512, model_dim=64, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=128,
                  max_positions=256, tie_embeddings=True)


def mini() -> ml_collections.ConfigDict:
    return _llama(vocab_size=4096, model_dim=192, num_layers=4, num_heads=6, num_kv_heads=6, mlp_dim=512,
                  max_positions=1024, tie_embeddings=True)


def _gpt2(num_layers: int, model_dim: int, num_heads: int) -> ml_collections.ConfigDict:
    """Language Models are Unsupervised Multitask Learners, table 2."""
    return ml_collections.ConfigDict(dict(
        vocab_size=50_257, model_dim=model_dim, num_layers=num_layers, num_heads=num_heads,
        num_kv_heads=num_heads, head_dim=model_dim // num_heads, mlp_dim=4 * model_dim, max_positions=1024,
        positions='learned', rope_theta=10_000.0, norm='layernorm', norm_eps=1e-5, mlp='gelu', use_bias=True,
        tie_embeddings=True))


def _llama(**sizes) -> ml_collections.ConfigDict:
    """arXiv:2307.09288, table 1 and section 2.2; arXiv:2407.21783, table 3."""
    config = ml_collections.ConfigDict(dict(
        head_dim=sizes['model_dim'] // sizes['num_heads'], positions='rotary', rope_theta=10_000.0,
        norm='rmsnorm', norm_eps=1e-5, mlp='swiglu', use_bias=False, tie_embeddings=False))
    config.update(sizes)
    return config

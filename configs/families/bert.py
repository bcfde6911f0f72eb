"""BERT (arXiv:1810.04805, section 3), its smaller forms (arXiv:1908.08962) and RoBERTa (arXiv:1907.11692, table 9)."""

from ml_collections import ConfigDict

from configs import base


def bert_tiny() -> ConfigDict:
    return _bert(num_layers=2, model_dim=128)


def bert_mini() -> ConfigDict:
    return _bert(num_layers=4, model_dim=256)


def bert_small() -> ConfigDict:
    return _bert(num_layers=4, model_dim=512)


def bert_medium() -> ConfigDict:
    return _bert(num_layers=8, model_dim=512)


def bert_base() -> ConfigDict:
    """Uncased."""
    return _bert(num_layers=12, model_dim=768)


def bert_large() -> ConfigDict:
    """Uncased."""
    return _bert(num_layers=24, model_dim=1024)


def bert_base_cased() -> ConfigDict:
    return _bert(num_layers=12, model_dim=768, vocab_size=28_996)


def bert_large_cased() -> ConfigDict:
    return _bert(num_layers=24, model_dim=1024, vocab_size=28_996)


def bert_base_multilingual_cased() -> ConfigDict:
    return _bert(num_layers=12, model_dim=768, vocab_size=119_547)


def minilm_l6() -> ConfigDict:
    """all-MiniLM-L6-v2: a BERT of heads 32 wide, made for sentence embeddings (the mean over tokens)."""
    return _bert(num_layers=6, model_dim=384, num_heads=12, num_kv_heads=12, head_dim=32)


def roberta_base() -> ConfigDict:
    return _roberta(num_layers=12, model_dim=768)


def roberta_large() -> ConfigDict:
    return _roberta(num_layers=24, model_dim=1024)


def _bert(*, num_layers: int, model_dim: int, **keys) -> ConfigDict:
    """Norms after each part, exact GELU; heads 64 wide."""
    heads = model_dim // 64
    parts = dict(
        vocab_size=30_522, num_heads=heads, num_kv_heads=heads, head_dim=64, mlp_dim=4 * model_dim, max_positions=512,
        positions='learned', norm='layernorm', norm_eps=1e-12, mlp='gelu_exact', use_bias=True, tie_embeddings=True,
        kind='encoder', norm_first=False, token_types=2, embed_norm=True)
    return base.model(num_layers=num_layers, model_dim=model_dim, **(parts | keys))


def _roberta(**sizes) -> ConfigDict:
    """Two rows of its position table, 0 and the padding token's, are never used."""
    return _bert(vocab_size=50_265, norm_eps=1e-5, token_types=1, position_offset=2, **sizes)

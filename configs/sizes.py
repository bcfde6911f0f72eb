"""Model sizes by name, as ConfigDicts of every key of `ModelConfig`: released models by family, and two for tests.

`tiny` (0.1 M) and `mini` (2.56 M) are Llama-shaped, for tests and for two CPU cores. How many parameters the released
ones have is in `tests/configs/test_sizes.py`.
"""

from ml_collections import ConfigDict

from configs.families.bert import (  # noqa: F401
    bert_base, bert_base_cased, bert_base_multilingual_cased, bert_large, bert_large_cased, bert_medium, bert_mini,
    bert_small, bert_tiny, minilm_l6, roberta_base, roberta_large)
from configs.families.gemma import (  # noqa: F401
    gemma2_27b, gemma2_2b, gemma2_9b, gemma3_12b, gemma3_1b, gemma3_270m, gemma3_27b, gemma3_4b, gemma_2b, gemma_7b)
from configs.families.gpt2 import gpt2, gpt2_large, gpt2_medium, gpt2_xl  # noqa: F401
from configs.families.llama import (  # noqa: F401
    llama, llama2_13b, llama2_70b, llama2_7b, llama3_1_405b, llama3_1_70b, llama3_1_8b, llama3_2_1b, llama3_2_3b,
    llama3_3_70b, llama3_70b, llama3_8b, smollm2_135m, smollm2_1_7b, smollm2_360m)
from configs.families.mistral import (  # noqa: F401
    mistral_7b, mistral_7b_v0_2, mistral_7b_v0_3, mistral_large_123b, mistral_nemo_12b, mistral_small_22b,
    mistral_small_24b)
from configs.families.qwen import (  # noqa: F401
    qwen2_0_5b, qwen2_1_5b, qwen2_5_0_5b, qwen2_5_14b, qwen2_5_1_5b, qwen2_5_32b, qwen2_5_3b, qwen2_5_72b,
    qwen2_5_7b, qwen2_72b, qwen2_7b, qwen3_0_6b, qwen3_14b, qwen3_1_7b, qwen3_32b, qwen3_4b, qwen3_8b)
from configs.families.vit import (  # noqa: F401
    vit_b16, vit_b16_384, vit_b32, vit_b32_384, vit_b8, vit_h14, vit_l16, vit_l16_384, vit_l32, vit_l32_384, vit_s16,
    vit_s32, vit_ti16)
from configs.families.xlnet import xlnet_base, xlnet_large  # noqa: F401


def tiny() -> ConfigDict:
    return llama(vocab_size=512, model_dim=64, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=128,
                 max_positions=256, tie_embeddings=True)


def mini() -> ConfigDict:
    return llama(vocab_size=4096, model_dim=192, num_layers=4, num_heads=6, num_kv_heads=6, mlp_dim=512,
                 max_positions=1024, tie_embeddings=True)

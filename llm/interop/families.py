"""Every family whose files are read and written, and the keys of a config.json that mean the same in all of them.

In: nothing. Out: `FAMILIES`, by the `model_type` of a config.json; `IGNORED` and `FIXED` keys.
Left out: the tables (`decoders.py`, `encoders.py`), how they are used (`config_json.py`, `plan.py`).
"""

from llm.interop.decoders import DECODERS
from llm.interop.encoders import ENCODERS

FAMILIES = {**DECODERS, **ENCODERS}

# Keys that say nothing of a forward pass, in any family.
IGNORED = frozenset((
    'architectures', 'model_type', 'dtype', 'torch_dtype', 'transformers_version', '_name_or_path', 'name_or_path',
    'use_cache', 'bos_token_id', 'eos_token_id', 'pad_token_id', 'initializer_range', 'attention_dropout',
    'return_dict', 'output_attentions', 'output_hidden_states', 'id2label', 'label2id', 'num_labels', 'problem_type',
    'task_specific_params', 'gradient_checkpointing', 'tokenizer_class', 'finetuning_task', 'language',
    'cache_implementation', '_attn_implementation', 'pretraining_tp', 'transformers.js_config',
    'chunk_size_feed_forward', 'use_return_dict', 'quartet_reward'))
FIXED = {'is_encoder_decoder': (False,), 'add_cross_attention': (False,), 'is_decoder': (False,),
         'pruned_heads': ({}, None), 'tie_encoder_decoder': (False,), 'use_bidirectional_attention': (False, None)}

"""Tiny random models of every family, as transformers builds them; run by the environment of `tools/parity.sh`.

In: nothing. Out: `cases()`: name -> a function that makes the model, and the batches it is tried on.
Left out: what is computed with them (`write.py`), our side of the comparison (`tests/parity`). Imports no jax.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

VOCAB, LENGTH = 131, 17  # both odd
LENGTHS = (17, 11, 1)  # of a batch's rows without their padding
TAGS, CLASSES = 5, 3
SCALE = 0.2  # deviation of random weights: ten times the usual, so that every part matters
TABLE_SCALE = 0.07  # of token tables; where they are tied, a larger one makes every token predict itself
EPS = 1e-3  # of all norms: large enough to be felt

Batch = dict[str, np.ndarray]


class Case(NamedTuple):
    """One model; outputs: the names of transformers' outputs that are compared."""

    model: str  # class in transformers
    config: Callable[[], Any]
    batches: Callable[[Any, np.random.Generator], dict[str, Batch]]
    outputs: tuple[str, ...] = ('logits',)
    decodes: bool = False


def build(case: Case, seed: int) -> torch.nn.Module:
    """The model with every weight drawn anew: norms and biases, too; in evaluation mode."""
    model = getattr(transformers, case.model)._from_config(case.config(), attn_implementation='eager').eval()
    generator = torch.Generator().manual_seed(seed)
    norms = {id(module.weight) for module in model.modules() if 'Norm' in type(module).__name__}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            mean = parameter.mean().round() if id(parameter) in norms else 0.0  # 1, or 0 where scales are 1 + w
            scale = TABLE_SCALE if id(parameter) in tables else SCALE
            parameter.copy_(mean + scale * torch.randn(parameter.shape, generator=generator))
    return model


def cases() -> dict[str, Case]:
    return {**_decoders(), **_bare(), **_scorers(), **_encoders(), **_xlnet(), **_vit()}


def _decoders() -> dict[str, Case]:
    llama = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
                 num_key_value_heads=2, head_dim=12, vocab_size=VOCAB, max_position_embeddings=128,
                 rms_norm_eps=EPS, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    gpt2 = dict(n_embd=48, n_layer=3, n_head=4, n_positions=128, vocab_size=VOCAB, layer_norm_epsilon=EPS,
                bos_token_id=1, eos_token_id=2, pad_token_id=0)
    llama3_rope = dict(rope_type='llama3', rope_theta=10_000.0, factor=8.0, low_freq_factor=1.0,
                       high_freq_factor=4.0, original_max_position_embeddings=16)
    # Caps and windows small enough to be felt.
    gemma2 = dict(head_dim=16, num_hidden_layers=4, sliding_window=6, query_pre_attn_scalar=24,
                  attn_logit_softcapping=3.0, final_logit_softcapping=4.0)
    gemma3 = dict(head_dim=16, num_hidden_layers=7, sliding_window=5, query_pre_attn_scalar=16,
                  rope_parameters=dict(full_attention=dict(rope_type='linear', rope_theta=1e6, factor=8.0),
                                       sliding_attention=dict(rope_type='default', rope_theta=1e4)))
    shapes = {
        'gpt2': ('GPT2LMHeadModel', gpt2, {}),
        'gpt2_untied': ('GPT2LMHeadModel', gpt2, dict(n_inner=80, tie_word_embeddings=False)),
        'llama2': ('LlamaForCausalLM', llama, dict(num_key_value_heads=4)),
        'llama3': ('LlamaForCausalLM', llama, dict(rope_parameters=dict(rope_type='default', rope_theta=500_000.0))),
        'llama3_1': ('LlamaForCausalLM', llama, dict(head_dim=16, rope_parameters=llama3_rope)),
        'llama3_2': ('LlamaForCausalLM', llama, dict(num_key_value_heads=1, tie_word_embeddings=True,
                                                     rope_parameters=llama3_rope | dict(factor=32.0))),
        'llama_linear': ('LlamaForCausalLM', llama, dict(
            attention_bias=True, mlp_bias=True,
            rope_parameters=dict(rope_type='linear', rope_theta=10_000.0, factor=4.0))),
        'smollm2': ('LlamaForCausalLM', llama, dict(
            num_attention_heads=6, head_dim=8, tie_word_embeddings=True,
            rope_parameters=dict(rope_type='default', rope_theta=100_000.0))),
        'mistral': ('MistralForCausalLM', llama, dict(sliding_window=7)),
        'mistral_full': ('MistralForCausalLM', llama, dict(sliding_window=None, head_dim=16)),
        'qwen2': ('Qwen2ForCausalLM', llama, dict(head_dim=12)),
        'qwen2_tied': ('Qwen2ForCausalLM', llama, dict(num_key_value_heads=4, tie_word_embeddings=True)),
        'qwen3': ('Qwen3ForCausalLM', llama, dict(head_dim=16, tie_word_embeddings=True)),
        'qwen3_untied': ('Qwen3ForCausalLM', llama, dict(head_dim=16, num_key_value_heads=4)),
        'gemma': ('GemmaForCausalLM', llama, dict(head_dim=16, num_key_value_heads=1, tie_word_embeddings=True)),
        'gemma_heads': ('GemmaForCausalLM', llama, dict(head_dim=16, num_key_value_heads=4,
                                                        tie_word_embeddings=True)),
        'gemma2': ('Gemma2ForCausalLM', llama | gemma2, dict(tie_word_embeddings=True)),
        'gemma3': ('Gemma3ForCausalLM', llama | gemma3, dict(num_key_value_heads=1, tie_word_embeddings=True)),
        'gemma3_pattern': ('Gemma3ForCausalLM', llama | gemma3, dict(
            num_hidden_layers=4, query_pre_attn_scalar=24, tie_word_embeddings=True,
            layer_types=['sliding_attention', 'sliding_attention', 'full_attention', 'sliding_attention']))}
    return {name: Case(model, _config(model, shared | changes), _texts, decodes=True)
            for name, (model, shared, changes) in shapes.items()}


def _bare() -> dict[str, Case]:
    """Trunks without a head, whose tensors have shorter names."""
    llama = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, vocab_size=VOCAB, max_position_embeddings=128, rms_norm_eps=EPS, pad_token_id=0)
    gpt2 = dict(n_embd=48, n_layer=2, n_head=4, n_positions=128, vocab_size=VOCAB, layer_norm_epsilon=EPS,
                bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return {f'{name}_bare': Case(model, _config(model, sizes), _texts, ('last_hidden_state',))
            for name, model, sizes in (('llama', 'LlamaModel', llama), ('gpt2', 'GPT2Model', gpt2))}


def _scorers() -> dict[str, Case]:
    """Reward models: a sequence classifier of one class, at each row's last token."""
    shared = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, vocab_size=VOCAB, max_position_embeddings=128, rms_norm_eps=EPS,
                  pad_token_id=0, num_labels=1)
    return {f'{name}_scorer': Case(model, _config(model, shared), _texts)
            for name, model in (('llama', 'LlamaForSequenceClassification'),
                                ('qwen3', 'Qwen3ForSequenceClassification'))}


def _encoders() -> dict[str, Case]:
    shared = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
                  vocab_size=VOCAB, max_position_embeddings=40)
    bert = shared | dict(type_vocab_size=2, layer_norm_eps=EPS, pad_token_id=0)
    roberta = shared | dict(type_vocab_size=1, layer_norm_eps=EPS, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    heads = {'hidden': ('Model', {}, _texts, ('last_hidden_state', 'pooler_output')),
             'masked': ('ForMaskedLM', {}, _texts, ('logits',)),
             'classes': ('ForSequenceClassification', dict(num_labels=CLASSES), _texts, ('logits',)),
             'labels': ('ForTokenClassification', dict(num_labels=TAGS), _texts, ('logits',)),
             'span': ('ForQuestionAnswering', {}, _texts, ('start_logits', 'end_logits'))}
    found = {f'{family}_{head}': Case(f'{prefix}{suffix}', _config(f'{prefix}{suffix}', sizes | more), batches, outputs)
             for family, prefix, sizes in (('bert', 'Bert', bert), ('roberta', 'Roberta', roberta))
             for head, (suffix, more, batches, outputs) in heads.items()}
    for head, suffix, outputs in (
            ('next_sentence', 'ForNextSentencePrediction', ('logits',)),
            ('pretraining', 'ForPreTraining', ('prediction_logits', 'seq_relationship_logits'))):
        found[f'bert_{head}'] = Case(f'Bert{suffix}', _config(f'Bert{suffix}', bert),
                                     _texts, outputs)
    return found


def _vit() -> dict[str, Case]:
    shared = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_labels=CLASSES,
                  layer_norm_eps=EPS)
    shapes = {'vit': dict(image_size=12, patch_size=4, num_channels=3),
              'vit_gray': dict(image_size=15, patch_size=5, num_channels=1, num_labels=7)}
    found = {name: Case('ViTForImageClassification', _config('ViTForImageClassification', shared | changes), _images)
             for name, changes in shapes.items()}
    bare = _config('ViTModel', shared | shapes['vit'])
    return found | {'vit_bare': Case('ViTModel', bare, _images, ('last_hidden_state', 'pooler_output'))}


def _xlnet() -> dict[str, Case]:
    sizes = dict(d_model=48, d_inner=80, n_layer=3, n_head=4, vocab_size=VOCAB, mem_len=9, layer_norm_eps=EPS,
                 pad_token_id=0)
    found = {'xlnet': Case('XLNetLMHeadModel', _config('XLNetLMHeadModel', sizes), _permutations)}
    for head, suffix, more, outputs in (
            ('hidden', 'Model', {}, ('last_hidden_state',)),
            ('classes', 'ForSequenceClassification', dict(num_labels=CLASSES), ('logits',)),
            ('labels', 'ForTokenClassification', dict(num_labels=TAGS), ('logits',)),
            ('span', 'ForQuestionAnsweringSimple', {}, ('start_logits', 'end_logits'))):
        found[f'xlnet_{head}'] = Case(f'XLNet{suffix}', _config(f'XLNet{suffix}', sizes | more), _segments, outputs)
    return found


def _config(model: str, fields: dict[str, Any]) -> Callable[[], Any]:
    return lambda: getattr(transformers, model).config_class(**fields)


def _texts(config: Any, random: np.random.Generator) -> dict[str, Batch]:
    """One batch of right-padded rows."""
    mask = (np.arange(LENGTH) < np.array(LENGTHS)[:, None]).astype(np.int64)
    batch = {'input_ids': np.where(mask, random.integers(3, VOCAB, mask.shape), config.pad_token_id),
             'attention_mask': mask}
    if getattr(config, 'type_vocab_size', 1) > 1:
        batch['token_type_ids'] = random.integers(0, config.type_vocab_size, mask.shape) * mask
    return {'text': batch}


def _images(config: Any, random: np.random.Generator) -> dict[str, Batch]:
    shape = (3, config.num_channels, config.image_size, config.image_size)
    return {'images': {'pixel_values': random.normal(size=shape).astype(np.float32)}}


def _segments(config: Any, random: np.random.Generator) -> dict[str, Batch]:
    """A batch of texts whose tokens have types; padded on the left, because the last token stands for the row."""
    batch = {name: array[:, ::-1].copy() for name, array in _texts(config, random)['text'].items()}
    return {'text': batch | {'token_type_ids': random.integers(0, 2, batch['input_ids'].shape)}}


def _permutations(config: Any, random: np.random.Generator) -> dict[str, Batch]:
    """Padded rows; rows without token types; an order of prediction with its targets; the same after a segment."""
    rows = len(LENGTHS)
    tokens = random.integers(3, VOCAB, (rows, LENGTH))
    order = np.stack([random.permutation(LENGTH) for _ in range(rows)])  # when each position is predicted
    targets = np.stack([random.choice(LENGTH, 4, replace=False) for _ in range(rows)])
    permuted = {'input_ids': tokens, 'token_type_ids': random.integers(0, 2, tokens.shape),
                'perm_mask': (order[:, :, None] <= order[:, None, :]).astype(np.float32),
                'target_mapping': np.eye(LENGTH, dtype=np.float32)[targets]}
    earlier = {'earlier_input_ids': random.integers(3, VOCAB, (rows, 7))}
    return {**_segments(config, random), 'bare': {'input_ids': tokens}, 'permuted': permuted,
            'memory': permuted | earlier}

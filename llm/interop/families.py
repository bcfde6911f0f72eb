"""What the files of each family look like: data only.

In: nothing. Out: `FAMILIES`, by the `model_type` of a config.json, and `GGUF_LLAMA`: which of its keys are which of
ours, which values they must have, and which of its tensors is which of our leaves, in which layout (`layout.py`).
Left out: how a config.json is read and written with this (`config_json.py`). Facts of names and defaults are those of
transformers 5.23.0 and of the released files.
"""

import dataclasses
from typing import Any, NamedTuple

from llm.interop.layout import AS_IS

LINEAR = 'F D -> D F'  # PyTorch keeps [out, in]
HEADS_OUT = '(N H) D -> D N H'
HEADS_IN = 'D (N H) -> N H D'
HEADS = '(N H) -> N H'


class Tensor(NamedTuple):
    """One tensor of a file, or a part of a fused one, and our leaf of it; leaves under `layers` are stacked."""

    path: str
    name: str  # {layer} stands for the number of the layer
    layout: str = AS_IS
    part: int = 0
    of: int = 1


@dataclasses.dataclass(frozen=True)
class Family:
    """How one `model_type` is written.

    keys: of config.json -> our field, of the same value. absent: what a key means where a file leaves it out.
    ours: our fields that are the same in every model of the family. fixed: keys whose value the maths relies on; the
    first is what is written. ignored: keys that change no output. heads: transformers' class -> our head.
    tensors: of the trunk; in all classes but the bare model `prefix` stands before their names. head_tensors: what a
    head adds, by whole names.
    ties: name of a tensor that a tied model may hold twice -> the other name.
    skipped: endings of names that old files hold beside their weights; renamed: endings that old files use.
    """

    keys: dict[str, str]
    ours: dict[str, Any]
    fixed: dict[str, tuple]
    heads: dict[str, str]
    tensors: tuple[Tensor, ...]
    prefix: str
    head_tensors: dict[str, tuple[Tensor, ...]]
    ties: tuple[tuple[str, str], ...] = ()
    absent: dict[str, Any] = dataclasses.field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    skipped: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()


def _dense(path: str, name: str, layout: str = LINEAR, bias_layout: str = AS_IS) -> tuple[Tensor, ...]:
    return (Tensor(f'{path}/w', f'{name}.weight', layout), Tensor(f'{path}/bias', f'{name}.bias', bias_layout))


def _norm(path: str, name: str) -> tuple[Tensor, ...]:
    return (Tensor(f'{path}/scale', f'{name}.weight'), Tensor(f'{path}/bias', f'{name}.bias'))


def _heads(path: str, name: str) -> tuple[Tensor, ...]:
    return _dense(path, name, HEADS_OUT, HEADS)


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

# ---------------------------------------------------------------------------------------------- decoders
_GPT2 = Family(
    keys={'vocab_size': 'vocab_size', 'n_embd': 'model_dim', 'n_layer': 'num_layers', 'n_head': 'num_heads',
          'n_inner': 'mlp_dim', 'n_positions': 'max_positions', 'layer_norm_epsilon': 'norm_eps',
          'activation_function': 'mlp', 'tie_word_embeddings': 'tie_embeddings'},
    absent={'layer_norm_epsilon': 1e-5, 'activation_function': 'gelu_new', 'tie_word_embeddings': True,
            'n_inner': None},
    ours={'positions': 'learned', 'rope_theta': 10_000.0, 'norm': 'layernorm', 'use_bias': True},
    fixed={'scale_attn_weights': (True,), 'scale_attn_by_inverse_layer_idx': (False,)},
    ignored=frozenset(('n_ctx', 'resid_pdrop', 'embd_pdrop', 'attn_pdrop', 'reorder_and_upcast_attn', 'summary_type',
                       'summary_use_proj', 'summary_activation', 'summary_proj_to_labels', 'summary_first_dropout')),
    heads={'GPT2LMHeadModel': 'token', 'GPT2Model': 'none', 'GPT2ForSequenceClassification': 'scalar'},
    prefix='transformer.',
    tensors=(
        Tensor('embed/tokens', 'wte.weight'), Tensor('embed/positions', 'wpe.weight'),
        *_norm('layers/attention_norm', 'h.{layer}.ln_1'), *_norm('layers/mlp_norm', 'h.{layer}.ln_2'),
        *(Tensor(f'layers/attention/{what}/{leaf}', f'h.{{layer}}.attn.c_attn.{name}', layout, part, 3)
          for part, what in enumerate(('query', 'key', 'value'))
          for leaf, name, layout in (('w', 'weight', 'D (part N H) -> D N H'), ('bias', 'bias', '(part N H) -> N H'))),
        *_dense('layers/attention/out', 'h.{layer}.attn.c_proj', '(N H) D -> N H D'),
        *_dense('layers/mlp/up', 'h.{layer}.mlp.c_fc', AS_IS), *_dense('layers/mlp/down', 'h.{layer}.mlp.c_proj', AS_IS),
        *_norm('final_norm', 'ln_f')),
    head_tensors={'token': (Tensor('token_head/w', 'lm_head.weight'),),
                  'scalar': (Tensor('scalar_head/w', 'score.weight', LINEAR),)},
    ties=(('lm_head.weight', 'transformer.wte.weight'),), skipped=('.attn.bias', '.attn.masked_bias'))

_LLAMA_TENSORS = (
    Tensor('embed/tokens', 'embed_tokens.weight'),
    Tensor('layers/attention_norm/scale', 'layers.{layer}.input_layernorm.weight'),
    Tensor('layers/mlp_norm/scale', 'layers.{layer}.post_attention_layernorm.weight'),
    *_heads('layers/attention/query', 'layers.{layer}.self_attn.q_proj'),
    *_heads('layers/attention/key', 'layers.{layer}.self_attn.k_proj'),
    *_heads('layers/attention/value', 'layers.{layer}.self_attn.v_proj'),
    *_dense('layers/attention/out', 'layers.{layer}.self_attn.o_proj', HEADS_IN),
    Tensor('layers/attention/query_norm/scale', 'layers.{layer}.self_attn.q_norm.weight'),
    Tensor('layers/attention/key_norm/scale', 'layers.{layer}.self_attn.k_norm.weight'),
    *_dense('layers/mlp/gate', 'layers.{layer}.mlp.gate_proj'),
    *_dense('layers/mlp/up', 'layers.{layer}.mlp.up_proj'),
    *_dense('layers/mlp/down', 'layers.{layer}.mlp.down_proj'),
    Tensor('final_norm/scale', 'norm.weight'))
# Gemma 2 and 3: what Llama calls the norm after attention is before the feed-forward there.
_SANDWICH = (
    *(row for row in _LLAMA_TENSORS if row.path != 'layers/mlp_norm/scale'),
    Tensor('layers/attention_post_norm/scale', 'layers.{layer}.post_attention_layernorm.weight'),
    Tensor('layers/mlp_norm/scale', 'layers.{layer}.pre_feedforward_layernorm.weight'),
    Tensor('layers/mlp_post_norm/scale', 'layers.{layer}.post_feedforward_layernorm.weight'))


def _llama(name: str, *, keys: dict = {}, absent: dict = {}, ours: dict = {}, fixed: dict = {}, ignored=(),
           tensors: tuple[Tensor, ...] = _LLAMA_TENSORS, act: str = 'hidden_act') -> Family:
    """A family in Llama's words; `name` is what its classes begin with."""
    sequence = 'Gemma3TextForSequenceClassification' if name == 'Gemma3' else f'{name}ForSequenceClassification'
    return Family(
        keys={'vocab_size': 'vocab_size', 'hidden_size': 'model_dim', 'num_hidden_layers': 'num_layers',
              'num_attention_heads': 'num_heads', 'num_key_value_heads': 'num_kv_heads', 'head_dim': 'head_dim',
              'intermediate_size': 'mlp_dim', 'max_position_embeddings': 'max_positions', 'rms_norm_eps': 'norm_eps',
              act: 'mlp', 'tie_word_embeddings': 'tie_embeddings', **keys},
        absent={'num_key_value_heads': None, 'head_dim': None, 'tie_word_embeddings': False, **absent},
        ours={'positions': 'rotary', 'norm': 'rmsnorm', 'use_bias': False, **ours},
        fixed=fixed, ignored=frozenset(ignored),
        heads={f'{name}ForCausalLM': 'token', f'{name}TextModel' if name == 'Gemma3' else f'{name}Model': 'none',
               sequence: 'scalar'},
        prefix='model.', tensors=tensors,
        head_tensors={'token': (Tensor('token_head/w', 'lm_head.weight'),),
                      'scalar': (Tensor('scalar_head/w', 'score.weight', LINEAR),)},
        ties=(('lm_head.weight', 'model.embed_tokens.weight'),), skipped=('.rotary_emb.inv_freq',))


_NO_BIAS = {'attention_bias': (False, None)}
_GEMMA = {'norm_offset': 1.0, 'rope_theta': 10_000.0}
_TIED = {'tie_word_embeddings': True}
_SOFTCAPS = {'attn_logit_softcapping': 'attention_softcap', 'final_logit_softcapping': 'logits_softcap',
             'query_pre_attn_scalar': 'query_scale'}

# ---------------------------------------------------------------------------------------------- encoders
_ENCODER_LAYERS = (
    *_heads('layers/attention/query', 'encoder.layer.{layer}.attention.self.query'),
    *_heads('layers/attention/key', 'encoder.layer.{layer}.attention.self.key'),
    *_heads('layers/attention/value', 'encoder.layer.{layer}.attention.self.value'),
    *_dense('layers/attention/out', 'encoder.layer.{layer}.attention.output.dense', HEADS_IN),
    *_norm('layers/attention_norm', 'encoder.layer.{layer}.attention.output.LayerNorm'),
    *_dense('layers/mlp/up', 'encoder.layer.{layer}.intermediate.dense'),
    *_dense('layers/mlp/down', 'encoder.layer.{layer}.output.dense'),
    *_norm('layers/mlp_norm', 'encoder.layer.{layer}.output.LayerNorm'))
_ENCODER = (
    Tensor('embed/tokens', 'embeddings.word_embeddings.weight'),
    Tensor('embed/positions', 'embeddings.position_embeddings.weight'),
    Tensor('embed/token_types', 'embeddings.token_type_embeddings.weight'),
    *_norm('embed/norm', 'embeddings.LayerNorm'), *_ENCODER_LAYERS)
_LABELS = {'labels': _dense('labels_head', 'classifier'), 'span': _dense('span_head', 'qa_outputs')}


def _encoder(name: str, prefix: str, decoder: str, bias: str, *, heads: dict[str, str], head_tensors: dict) -> Family:
    return Family(
        keys={'vocab_size': 'vocab_size', 'hidden_size': 'model_dim', 'num_hidden_layers': 'num_layers',
              'num_attention_heads': 'num_heads', 'intermediate_size': 'mlp_dim',
              'max_position_embeddings': 'max_positions', 'layer_norm_eps': 'norm_eps', 'hidden_act': 'mlp',
              'type_vocab_size': 'token_types'},
        absent={'layer_norm_eps': 1e-12, 'hidden_act': 'gelu', 'type_vocab_size': 2},
        ours={'kind': 'encoder', 'positions': 'learned', 'rope_theta': 10_000.0, 'norm': 'layernorm',
              'norm_first': False, 'use_bias': True, 'tie_embeddings': True, 'embed_norm': True},
        fixed={'tie_word_embeddings': (True,), 'position_embedding_type': ('absolute',)},
        ignored=frozenset(('hidden_dropout_prob', 'attention_probs_dropout_prob', 'classifier_dropout', 'directionality',
                           'pooler_fc_size', 'pooler_num_attention_heads', 'pooler_num_fc_layers',
                           'pooler_size_per_head', 'pooler_type')),
        heads={f'{name}Model': 'pooled', f'{name}ForMaskedLM': 'masked', f'{name}ForSequenceClassification': 'classes',
               f'{name}ForTokenClassification': 'labels', f'{name}ForQuestionAnswering': 'span', **heads},
        prefix=prefix, tensors=_ENCODER, head_tensors={'pooled': _dense('pooler', f'{prefix}pooler.dense'), **_LABELS, **head_tensors},
        ties=((f'{decoder}.weight', f'{prefix}embeddings.word_embeddings.weight'), (f'{decoder}.bias', bias)),
        skipped=('embeddings.position_ids', 'embeddings.token_type_ids'),
        renamed=(('LayerNorm.gamma', 'LayerNorm.weight'), ('LayerNorm.beta', 'LayerNorm.bias')))


_BERT_MASKED = (*_dense('masked_head/dense', 'cls.predictions.transform.dense'),
                *_norm('masked_head/norm', 'cls.predictions.transform.LayerNorm'),
                Tensor('masked_head/bias', 'cls.predictions.bias'))
_BERT_POOLER = _dense('pooler', 'bert.pooler.dense')
_BERT_NEXT = (*_BERT_POOLER, *_dense('next_sentence_head', 'cls.seq_relationship'))
_VIT = Family(
    keys={'hidden_size': 'model_dim', 'num_hidden_layers': 'num_layers', 'num_attention_heads': 'num_heads',
          'intermediate_size': 'mlp_dim', 'layer_norm_eps': 'norm_eps', 'hidden_act': 'mlp',
          'image_size': 'image_size', 'patch_size': 'patch_size', 'num_channels': 'image_channels'},
    absent={'layer_norm_eps': 1e-12, 'hidden_act': 'gelu', 'image_size': 224, 'patch_size': 16, 'num_channels': 3},
    ours={'kind': 'vision', 'vocab_size': 0, 'positions': 'learned', 'rope_theta': 10_000.0, 'norm': 'layernorm',
          'use_bias': True, 'tie_embeddings': True},
    fixed={'qkv_bias': (True,), 'pooler_act': ('tanh',)},
    ignored=frozenset(('hidden_dropout_prob', 'attention_probs_dropout_prob', 'encoder_stride', 'pooler_output_size')),
    heads={'ViTForImageClassification': 'classes', 'ViTModel': 'pooled'},
    prefix='vit.',
    tensors=(
        Tensor('embed/class_token', 'embeddings.cls_token', '1 T D -> T D'),
        Tensor('embed/positions', 'embeddings.position_embeddings', '1 T D -> T D'),
        Tensor('embed/patches/w', 'embeddings.patch_embeddings.projection.weight', 'D C P Q -> P Q C D'),
        Tensor('embed/patches/bias', 'embeddings.patch_embeddings.projection.bias'),
        *(Tensor(row.path, row.name.replace('.self.', '.attention.'), row.layout) for row in _ENCODER_LAYERS
          if '_norm/' not in row.path),
        *_norm('layers/attention_norm', 'encoder.layer.{layer}.layernorm_before'),
        *_norm('layers/mlp_norm', 'encoder.layer.{layer}.layernorm_after'),
        *_norm('final_norm', 'layernorm')),
    head_tensors={'classes': _dense('classes_head', 'classifier'), 'pooled': _dense('pooler', 'vit.pooler.dense')})

FAMILIES = {
    'gpt2': _GPT2,
    'llama': _llama('Llama', absent={'rms_norm_eps': 1e-6}, fixed={'rope_interleaved': (False,)},
                    ignored=('is_llama_config',)),
    'mistral': _llama('Mistral'),
    'qwen2': _llama('Qwen2', ours={'qkv_bias': True}, absent={'rms_norm_eps': 1e-6}),
    'qwen3': _llama('Qwen3', ours={'qk_norm': True}, fixed=_NO_BIAS, absent={'rms_norm_eps': 1e-6}),
    'gemma': _llama('Gemma', ours=_GEMMA, fixed={**_NO_BIAS, 'hidden_activation': (None, 'gelu_pytorch_tanh')},
                    absent=_TIED),
    'gemma2': _llama('Gemma2', keys=_SOFTCAPS, ours={**_GEMMA, 'sandwich_norms': True}, tensors=_SANDWICH,
                     fixed={**_NO_BIAS, 'hidden_act': ('gelu_pytorch_tanh',)}, act='hidden_activation',
                     absent={**_TIED, 'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0,
                             'query_pre_attn_scalar': 256}),
    'gemma3_text': _llama('Gemma3', keys=_SOFTCAPS, ours={**_GEMMA, 'sandwich_norms': True, 'qk_norm': True},
                          tensors=_SANDWICH, fixed=_NO_BIAS, act='hidden_activation',
                          absent={**_TIED, 'attn_logit_softcapping': None, 'final_logit_softcapping': None,
                                  'query_pre_attn_scalar': 256, 'hidden_activation': 'gelu_pytorch_tanh'},
                          ignored=('_sliding_window_pattern',)),
    'bert': _encoder('Bert', 'bert.', 'cls.predictions.decoder', 'cls.predictions.bias',
                     heads={'BertForPreTraining': 'pretraining', 'BertForNextSentencePrediction': 'next_sentence'},
                     head_tensors={'masked': _BERT_MASKED, 'next_sentence': _BERT_NEXT, 'pretraining': _BERT_MASKED + _BERT_NEXT,
                      'classes': (*_BERT_POOLER, *_dense('classes_head', 'classifier'))}),
    'roberta': _encoder('Roberta', 'roberta.', 'lm_head.decoder', 'lm_head.bias', heads={}, head_tensors={
        'masked': (*_dense('masked_head/dense', 'lm_head.dense'), *_norm('masked_head/norm', 'lm_head.layer_norm'),
                   Tensor('masked_head/bias', 'lm_head.bias')),
        'classes': (*_dense('pooler', 'classifier.dense'), *_dense('classes_head', 'classifier.out_proj'))}),
    'vit': _VIT,
}

_BLOCK = 'blk.{layer}.'
GGUF_LLAMA = dataclasses.replace(
    FAMILIES['llama'], prefix='', ties=(), skipped=(),
    tensors=(
        Tensor('embed/tokens', 'token_embd.weight'),
        Tensor('layers/attention_norm/scale', _BLOCK + 'attn_norm.weight'),
        Tensor('layers/mlp_norm/scale', _BLOCK + 'ffn_norm.weight'),
        Tensor('layers/attention/query/w', _BLOCK + 'attn_q.weight', '(N h 2) D -> D N (2 h)'),
        Tensor('layers/attention/key/w', _BLOCK + 'attn_k.weight', '(N h 2) D -> D N (2 h)'),
        Tensor('layers/attention/value/w', _BLOCK + 'attn_v.weight', HEADS_OUT),
        Tensor('layers/attention/out/w', _BLOCK + 'attn_output.weight', HEADS_IN),
        *(Tensor(f'layers/mlp/{name}/w', f'{_BLOCK}ffn_{name}.weight', LINEAR) for name in ('gate', 'up', 'down')),
        Tensor('final_norm/scale', 'output_norm.weight')),
    head_tensors={'token': (Tensor('token_head/w', 'output.weight'),)})

"""GPT-2, and Llama with those who write as it does: their config.json and tensors, data only.

In: nothing. Out: `DECODERS` by `model_type`; `GGUF_LLAMA`, Llama as llama.cpp writes it.
Facts of names and defaults are those of transformers 5.23.0, of the released files, and of the gguf package.
"""

import dataclasses

from llm.interop.family import dense, Family, heads, HEADS_IN, HEADS_OUT, LINEAR, norm, Tensor
from llm.interop.layout import AS_IS

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
        *norm('layers/attention_norm', 'h.{layer}.ln_1'), *norm('layers/mlp_norm', 'h.{layer}.ln_2'),
        *(Tensor(f'layers/attention/{what}/{leaf}', f'h.{{layer}}.attn.c_attn.{name}', layout, part, 3)
          for part, what in enumerate(('query', 'key', 'value'))
          for leaf, name, layout in (('w', 'weight', 'D (part N H) -> D N H'), ('bias', 'bias', '(part N H) -> N H'))),
        *dense('layers/attention/out', 'h.{layer}.attn.c_proj', '(N H) D -> N H D'),
        *dense('layers/mlp/up', 'h.{layer}.mlp.c_fc', AS_IS), *dense('layers/mlp/down', 'h.{layer}.mlp.c_proj', AS_IS),
        *norm('final_norm', 'ln_f')),
    head_tensors={'token': (Tensor('token_head/w', 'lm_head.weight'),),
                  'scalar': (Tensor('scalar_head/w', 'score.weight', LINEAR),)},
    ties=(('lm_head.weight', 'transformer.wte.weight'),), skipped=('.attn.bias', '.attn.masked_bias'))

_LLAMA_TENSORS = (
    Tensor('embed/tokens', 'embed_tokens.weight'),
    Tensor('layers/attention_norm/scale', 'layers.{layer}.input_layernorm.weight'),
    Tensor('layers/mlp_norm/scale', 'layers.{layer}.post_attention_layernorm.weight'),
    *heads('layers/attention/query', 'layers.{layer}.self_attn.q_proj'),
    *heads('layers/attention/key', 'layers.{layer}.self_attn.k_proj'),
    *heads('layers/attention/value', 'layers.{layer}.self_attn.v_proj'),
    *dense('layers/attention/out', 'layers.{layer}.self_attn.o_proj', HEADS_IN),
    Tensor('layers/attention/query_norm/scale', 'layers.{layer}.self_attn.q_norm.weight'),
    Tensor('layers/attention/key_norm/scale', 'layers.{layer}.self_attn.k_norm.weight'),
    *dense('layers/mlp/gate', 'layers.{layer}.mlp.gate_proj'),
    *dense('layers/mlp/up', 'layers.{layer}.mlp.up_proj'),
    *dense('layers/mlp/down', 'layers.{layer}.mlp.down_proj'),
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

DECODERS = {
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
}

_BLOCK = 'blk.{layer}.'
GGUF_LLAMA = dataclasses.replace(
    DECODERS['llama'], prefix='', ties=(), skipped=(),
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

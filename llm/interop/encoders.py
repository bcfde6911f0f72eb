"""BERT, RoBERTa, ViT and XLNet: their config.json and tensors, data only.

In: nothing. Out: `ENCODERS` by `model_type`.
Facts of names and defaults are those of transformers 5.23.0 and of the released files.
"""

from llm.interop.family import dense, Family, heads, HEADS_IN, norm, Tensor
from llm.interop.layout import AS_IS

_ENCODER_LAYERS = (
    *heads('layers/attention/query', 'encoder.layer.{layer}.attention.self.query'),
    *heads('layers/attention/key', 'encoder.layer.{layer}.attention.self.key'),
    *heads('layers/attention/value', 'encoder.layer.{layer}.attention.self.value'),
    *dense('layers/attention/out', 'encoder.layer.{layer}.attention.output.dense', HEADS_IN),
    *norm('layers/attention_norm', 'encoder.layer.{layer}.attention.output.LayerNorm'),
    *dense('layers/mlp/up', 'encoder.layer.{layer}.intermediate.dense'),
    *dense('layers/mlp/down', 'encoder.layer.{layer}.output.dense'),
    *norm('layers/mlp_norm', 'encoder.layer.{layer}.output.LayerNorm'))
_ENCODER = (
    Tensor('embed/tokens', 'embeddings.word_embeddings.weight'),
    Tensor('embed/positions', 'embeddings.position_embeddings.weight'),
    Tensor('embed/token_types', 'embeddings.token_type_embeddings.weight'),
    *norm('embed/norm', 'embeddings.LayerNorm'), *_ENCODER_LAYERS)
_LABELS = {'labels': dense('labels_head', 'classifier'), 'span': dense('span_head', 'qa_outputs')}


def _encoder(name: str, prefix: str, decoder: str, bias: str, *, classes: dict[str, str],
             head_tensors: dict[str, tuple[Tensor, ...]]) -> Family:
    """`decoder`, `bias`: names of the tied output table and of its bias."""
    return Family(
        keys={'vocab_size': 'vocab_size', 'hidden_size': 'model_dim', 'num_hidden_layers': 'num_layers',
              'num_attention_heads': 'num_heads', 'intermediate_size': 'mlp_dim',
              'max_position_embeddings': 'max_positions', 'layer_norm_eps': 'norm_eps', 'hidden_act': 'mlp',
              'type_vocab_size': 'token_types'},
        absent={'layer_norm_eps': 1e-12, 'hidden_act': 'gelu', 'type_vocab_size': 2},
        ours={'kind': 'encoder', 'positions': 'learned', 'rope_theta': 10_000.0, 'norm': 'layernorm',
              'norm_first': False, 'use_bias': True, 'tie_embeddings': True, 'embed_norm': True},
        fixed={'tie_word_embeddings': (True,), 'position_embedding_type': ('absolute',)},
        ignored=frozenset(('hidden_dropout_prob', 'attention_probs_dropout_prob', 'classifier_dropout',
                           'directionality', 'pooler_fc_size', 'pooler_num_attention_heads', 'pooler_num_fc_layers',
                           'pooler_size_per_head', 'pooler_type')),
        heads={f'{name}Model': 'pooled', f'{name}ForMaskedLM': 'masked', f'{name}ForSequenceClassification': 'classes',
               f'{name}ForTokenClassification': 'labels', f'{name}ForQuestionAnswering': 'span', **classes},
        prefix=prefix, tensors=_ENCODER,
        head_tensors={'pooled': dense('pooler', f'{prefix}pooler.dense'), **_LABELS, **head_tensors},
        ties=((f'{decoder}.weight', f'{prefix}embeddings.word_embeddings.weight'), (f'{decoder}.bias', bias)),
        skipped=('embeddings.position_ids', 'embeddings.token_type_ids'),
        renamed=(('LayerNorm.gamma', 'LayerNorm.weight'), ('LayerNorm.beta', 'LayerNorm.bias')))


_BERT_MASKED = (*dense('masked_head/dense', 'cls.predictions.transform.dense'),
                *norm('masked_head/norm', 'cls.predictions.transform.LayerNorm'),
                Tensor('masked_head/bias', 'cls.predictions.bias'))
_BERT_POOLER = dense('pooler', 'bert.pooler.dense')
_BERT_NEXT = (*_BERT_POOLER, *dense('next_sentence_head', 'cls.seq_relationship'))
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
        *norm('layers/attention_norm', 'encoder.layer.{layer}.layernorm_before'),
        *norm('layers/mlp_norm', 'encoder.layer.{layer}.layernorm_after'),
        *norm('final_norm', 'layernorm')),
    head_tensors={'classes': dense('classes_head', 'classifier'), 'pooled': dense('pooler', 'vit.pooler.dense')})

_XLNET = Family(
    keys={'vocab_size': 'vocab_size', 'd_model': 'model_dim', 'n_layer': 'num_layers', 'n_head': 'num_heads',
          'd_head': 'head_dim', 'd_inner': 'mlp_dim', 'layer_norm_eps': 'norm_eps', 'ff_activation': 'mlp',
          'tie_word_embeddings': 'tie_embeddings'},
    absent={'d_head': None, 'layer_norm_eps': 1e-12, 'ff_activation': 'gelu', 'tie_word_embeddings': True},
    ours={'kind': 'two_stream', 'positions': 'relative', 'rope_theta': 10_000.0, 'norm': 'layernorm',
          'norm_first': False, 'use_bias': True,
          'max_positions': 512},  # what it was trained on: relative positions have no last one
    fixed={'attn_type': ('bi',), 'bi_data': (False,), 'clamp_len': (-1,), 'same_length': (False,), 'untie_r': (True,),
           'summary_type': ('last',), 'summary_use_proj': (True,), 'summary_activation': ('tanh',)},
    ignored=frozenset(('dropout', 'mem_len', 'reuse_len', 'use_mems_eval', 'use_mems_train', 'summary_last_dropout',
                       'start_n_top', 'end_n_top')),
    heads={'XLNetLMHeadModel': 'token', 'XLNetModel': 'none', 'XLNetForSequenceClassification': 'classes',
           'XLNetForTokenClassification': 'labels', 'XLNetForQuestionAnsweringSimple': 'span'},
    prefix='transformer.',
    tensors=(
        Tensor('embed/tokens', 'word_embedding.weight'), Tensor('query_token/w', 'mask_emb', '1 E D -> E D'),
        *(Tensor(f'layers/attention/{ours}', f'layer.{{layer}}.rel_attn.{theirs}', layout) for ours, theirs, layout in (
            ('query/w', 'q', AS_IS), ('key/w', 'k', AS_IS), ('value/w', 'v', AS_IS), ('position/w', 'r', AS_IS),
            ('out/w', 'o', 'D N H -> N H D'), ('segment/w', 'seg_embed', AS_IS),
            ('content_term/bias', 'r_w_bias', AS_IS), ('position_term/bias', 'r_r_bias', AS_IS),
            ('segment_term/bias', 'r_s_bias', AS_IS))),
        *norm('layers/attention_norm', 'layer.{layer}.rel_attn.layer_norm'),
        *norm('layers/mlp_norm', 'layer.{layer}.ff.layer_norm'),
        *dense('layers/mlp/up', 'layer.{layer}.ff.layer_1'), *dense('layers/mlp/down', 'layer.{layer}.ff.layer_2')),
    head_tensors={'token': (Tensor('token_head/w', 'lm_loss.weight'), Tensor('token_head/bias', 'lm_loss.bias')),
                  'classes': (*dense('pooler', 'sequence_summary.summary'), *dense('classes_head', 'logits_proj')),
                  **_LABELS},
    ties=(('lm_loss.weight', 'transformer.word_embedding.weight'),))

ENCODERS = {
    'bert': _encoder(
        'Bert', 'bert.', 'cls.predictions.decoder', 'cls.predictions.bias',
        classes={'BertForPreTraining': 'pretraining', 'BertForNextSentencePrediction': 'next_sentence'},
        head_tensors={'masked': _BERT_MASKED, 'next_sentence': _BERT_NEXT, 'pretraining': _BERT_MASKED + _BERT_NEXT,
                      'classes': (*_BERT_POOLER, *dense('classes_head', 'classifier'))}),
    'roberta': _encoder('Roberta', 'roberta.', 'lm_head.decoder', 'lm_head.bias', classes={}, head_tensors={
        'masked': (*dense('masked_head/dense', 'lm_head.dense'), *norm('masked_head/norm', 'lm_head.layer_norm'),
                   Tensor('masked_head/bias', 'lm_head.bias')),
        'classes': (*dense('pooler', 'classifier.dense'), *dense('classes_head', 'classifier.out_proj'))}),
    'vit': _VIT,
    'xlnet': _XLNET,
}

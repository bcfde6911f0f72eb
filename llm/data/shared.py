"""Our own tokenizer in the files that transformers reads: tokenizer.json, tokenizer_config.json, chat template.

In: the bytes of a SentencePiece model that `tokenizer.train` made. Out: files by name, for an export; read by
`foreign.py` or by transformers they encode every text into the same ids.
Left out: other people's tokenizers, whose files a run keeps as they came.

In a vocabulary of tokenizer.json a space is a space, not SentencePiece's mark: then nothing has to be normalised, and
a text's own marks fall back to bytes as they do in ours.
"""

import json

import sentencepiece

from llm.data import chat


def files(model: bytes, special_ids: dict[str, int]) -> dict[str, bytes]:
    """`special_ids`: name -> id, as `Tokenizer.special_ids` has them."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = [pieces.id_to_piece(index).replace('\u2581', ' ') for index in range(len(pieces))]
    controls = [index for index in range(len(pieces)) if pieces.is_control(index) or pieces.is_unknown(index)]
    scores = {text: pieces.get_score(index) for index, text in enumerate(texts)
              if index not in controls and not pieces.is_byte(index)}
    special = {name: texts[index] for name, index in special_ids.items()}
    added = [{'id': index, 'content': texts[index], 'single_word': False, 'lstrip': False, 'rstrip': False,
              'normalized': False, 'special': True} for index in controls]
    begins = {'id': special['bos'], 'ids': [special_ids['bos']], 'tokens': [special['bos']]}
    whole = {
        'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added, 'normalizer': None,
        'pre_tokenizer': None,
        'post_processor': {'type': 'TemplateProcessing', 'special_tokens': {special['bos']: begins},
                           'single': [{'SpecialToken': {'id': special['bos'], 'type_id': 0}},
                                      {'Sequence': {'id': 'A', 'type_id': 0}}],
                           'pair': [{'Sequence': {'id': 'A', 'type_id': 0}}, {'Sequence': {'id': 'B', 'type_id': 0}}]},
        'decoder': {'type': 'Sequence', 'decoders': [{'type': 'ByteFallback'}, {'type': 'Fuse'}]},
        'model': {'type': 'BPE', 'dropout': None, 'unk_token': special['unk'], 'continuing_subword_prefix': None,
                  'end_of_word_suffix': None, 'fuse_unk': True, 'byte_fallback': True, 'ignore_merges': False,
                  'vocab': {text: index for index, text in enumerate(texts)}, 'merges': _merges(scores)}}
    named = {f'{name}_token': special[name] for name in ('bos', 'eos', 'pad', 'unk')}
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', **named, 'clean_up_tokenization_spaces': False,
              'additional_special_tokens': [special[name] for name in chat.ROLES]}
    return {'tokenizer.json': json.dumps(whole, ensure_ascii=False).encode(),
            'tokenizer_config.json': json.dumps(config, ensure_ascii=False, indent=2).encode(),
            'chat_template.jinja': chat.jinja(chat.QUARTET).encode()}


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Pairs of pieces in the order in which SentencePiece joins them: by the score of what they make."""
    pairs = [(-score, text[:cut], text[cut:]) for text, score in scores.items() for cut in range(1, len(text))
             if text[:cut] in scores and text[cut:] in scores]
    return [(left, right) for _, left, right in sorted(pairs, key=lambda pair: pair[0])]

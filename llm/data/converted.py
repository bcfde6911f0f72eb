"""Tokenizers that come in another form than the two that are run: written as `tokenizer.json` or `tokenizer.model`.

In: the lines of BERT's vocab.txt; the metadata of a GGUF file, as a mapping of its keys. Out: files as `foreign.py`
takes them.
Left out: reading GGUF itself (`interop/gguf.py`); running a tokenizer (`codecs.py`).
"""

from collections.abc import Mapping
import json
import struct
from typing import Any

from llm.errors import UserError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # types of tokens in GGUF, SentencePiece's own numbers
_LISTS = {'tokens': str, 'merges': str, 'token_type': int, 'scores': (float, int)}
_BYTE_LEVEL = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True}
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r'|\s*[\r\n]+|\s+(?!\S)|\s+')
# GGUF's name of a pre-tokenizer -> what it is, and whether a whole word that is a token is taken before any merge.
_PRE = {
    'gpt-2': ({**_BYTE_LEVEL, 'use_regex': True}, False),
    'smollm': ({'type': 'Sequence', 'pretokenizers': [
        {'type': 'Digits', 'individual_digits': True}, {**_BYTE_LEVEL, 'use_regex': True}]}, False),
    'llama-bpe': ({'type': 'Sequence', 'pretokenizers': [
        {'type': 'Split', 'pattern': {'Regex': _LLAMA3}, 'behavior': 'Isolated', 'invert': False},
        {**_BYTE_LEVEL, 'use_regex': False}]}, True),
}


def from_gguf(metadata: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """A GGUF file's tokenizer as files; raises UserError for one of a kind that is not known here.

    Keys of `metadata` as in the file: `tokenizer.ggml.tokens`, a list of texts, and so on.
    """
    def of(key: str, default: Any = None) -> Any:
        return metadata.get(f'tokenizer.ggml.{key}', default)

    _check_types(metadata, where)
    tokens, kind = of('tokens'), of('model')
    types = of('token_type', [_NORMAL] * len(tokens or ()))
    if not tokens or len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise UserError(f'{where} has no whole tokenizer.ggml.tokens and token_type; use another GGUF file')
    named = {role: of(f'{key}_token_id') for role, key in (
        ('bos', 'bos'), ('eos', 'eos'), ('unk', 'unknown'), ('pad', 'padding'))}
    for role, index in named.items():
        if index is not None and not 0 <= index < len(tokens):
            raise UserError(f'{where}: the id of the {role} token is {index}, and there are {len(tokens)} tokens; '
                            'use another GGUF file')
    if kind == 'gpt2':
        model = {'tokenizer.json': _bpe(tokens, types, of('merges'), of('pre'), where)}
    elif kind == 'llama':
        spaced = bool(of('add_space_prefix', True))
        model = {'tokenizer.model': _sentencepiece(tokens, types, of('scores'), named, spaced, where)}
    else:
        raise UserError(f"{where}: tokenizer.ggml.model={kind!r} is not known; use a file with 'gpt2' or 'llama'")
    config = {f'{role}_token': tokens[index] for role, index in named.items() if index is not None}
    config |= {'add_bos_token': bool(of('add_bos_token', kind == 'llama')), 'clean_up_tokenization_spaces': False,
               'tokenizer_class': 'PreTrainedTokenizerFast' if kind == 'gpt2' else 'LlamaTokenizer'}
    if of('add_space_prefix') is False:
        config['add_prefix_space'] = False
    files = {**model, 'tokenizer_config.json': json.dumps(config, ensure_ascii=False).encode()}
    template = metadata.get('tokenizer.chat_template')
    return {**files, 'chat_template.jinja': template.encode()} if template else files


def _check_types(metadata: Mapping[str, Any], where: str) -> None:
    """GGUF says of each value what it is; a file may say that its tokens are a number."""
    for key, value in metadata.items():
        name = key.removeprefix('tokenizer.ggml.')
        if name in _LISTS:
            sound = isinstance(value, list) and all(isinstance(item, _LISTS[name]) for item in value)
        elif key == 'tokenizer.chat_template' or name in ('model', 'pre'):
            sound = isinstance(value, str)
        else:
            sound = not (key != name and name.endswith('_token_id')) or type(value) is int
        if not sound:
            raise UserError(f'{where}: {key[:60]}={value!r:.60} is of another type than it should be; use another GGUF '
                            'file')


def _bpe(tokens: list[str], types: list[int], merges: list[str] | None, pre: str | None, where: str) -> bytes:
    if pre not in _PRE:
        raise UserError(f'{where}: tokenizer.ggml.pre={pre!r} is not known; use a file with one of '
                        f'{", ".join(sorted(_PRE))}')
    pairs = [merge.split(' ') for merge in merges or ()]
    if not pairs or not all(len(pair) == 2 for pair in pairs):
        raise UserError(f'{where} has no whole tokenizer.ggml.merges; use another GGUF file')
    pre_tokenizer, ignore_merges = _PRE[pre]
    return json.dumps({
        'version': '1.0', 'truncation': None, 'padding': None, 'normalizer': None, 'post_processor': None,
        'added_tokens': [
            {'id': index, 'content': token, 'single_word': False, 'lstrip': False, 'rstrip': False,
             'normalized': False, 'special': kind == _CONTROL}
            for index, (token, kind) in enumerate(zip(tokens, types)) if kind in (_CONTROL, _USER_DEFINED)],
        'pre_tokenizer': pre_tokenizer, 'decoder': {**_BYTE_LEVEL, 'use_regex': True},
        'model': {'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None,
                  'end_of_word_suffix': None, 'fuse_unk': False, 'byte_fallback': False,
                  'ignore_merges': ignore_merges, 'vocab': {token: index for index, token in enumerate(tokens)},
                  'merges': pairs}}, ensure_ascii=False).encode()


def _sentencepiece(tokens: list[str], types: list[int], scores: list[float] | None, named: Mapping[str, int | None],
                   dummy_prefix: bool, where: str) -> bytes:
    """A SentencePiece BPE model, in protobuf: pieces, then what of its trainer and its normaliser running it needs."""
    if scores is None or len(scores) != len(tokens):
        raise UserError(f'{where} has no whole tokenizer.ggml.scores; use another GGUF file')
    pieces = b''.join(
        _message(1, _message(1, token.encode()) + b'\x15' + struct.pack('<f', score) + _number(3, kind))
        for token, score, kind in zip(tokens, scores, types))
    ids = [(40, named['unk'] if named['unk'] is not None else types.index(_UNKNOWN) if _UNKNOWN in types else 0),
           (41, named['bos']), (42, named['eos']), (43, named['pad'])]
    trainer = _number(3, 2) + _number(35, 1)  # model_type: BPE; byte_fallback
    for field, index in ids:
        trainer += _number(field, -1 if index is None else index)
        trainer += _message(field + 5, tokens[index].encode()) if index is not None else b''
    normalizer = _message(1, b'identity') + _number(3, int(dummy_prefix)) + _number(4, 0) + _number(5, 1)
    return pieces + _message(2, trainer) + _message(3, normalizer)


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def wordpiece(vocab: bytes, config: Mapping[str, Any], where: str) -> bytes:
    """The `tokenizer.json` of BERT's vocab.txt, whose lines are pieces."""
    try:
        pieces = vocab.decode().removesuffix('\n').split('\n')
    except UnicodeDecodeError:
        raise UserError(f'{where}/vocab.txt is not UTF-8; restore that file') from None
    ids = {piece.removesuffix('\r'): index for index, piece in enumerate(pieces)}
    if len(ids) < len(pieces) or '[UNK]' not in ids:
        raise UserError(f'{where}/vocab.txt has {len(pieces)} lines and {len(ids)} different pieces, [UNK] '
                        f'{"among" if "[UNK]" in ids else "not among"} them; restore that file')
    special = [{'id': ids[token], 'content': token, 'single_word': False, 'lstrip': False, 'rstrip': False,
                'normalized': False, 'special': True}
               for token in ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]') if token in ids]
    around = [{'SpecialToken': {'id': '[CLS]', 'type_id': 0}}, {'Sequence': {'id': 'A', 'type_id': 0}},
              {'SpecialToken': {'id': '[SEP]', 'type_id': 0}}]
    pair = [*around, {'Sequence': {'id': 'B', 'type_id': 1}}, {'SpecialToken': {'id': '[SEP]', 'type_id': 1}}]
    return json.dumps({
        'version': '1.0', 'truncation': None, 'padding': None,
        'added_tokens': sorted(special, key=lambda token: token['id']),
        'normalizer': {'type': 'BertNormalizer', 'clean_text': True,
                       'handle_chinese_chars': config.get('tokenize_chinese_chars', True),
                       'strip_accents': config.get('strip_accents'), 'lowercase': config.get('do_lower_case', True)},
        'pre_tokenizer': {'type': 'BertPreTokenizer'},
        'post_processor': {'type': 'TemplateProcessing', 'single': around, 'pair': pair, 'special_tokens': {
            token: {'id': token, 'ids': [ids[token]], 'tokens': [token]} for token in ('[CLS]', '[SEP]')}
            } if {'[CLS]', '[SEP]'} <= ids.keys() else None,
        'decoder': {'type': 'WordPiece', 'prefix': '##', 'cleanup': True},
        'model': {'type': 'WordPiece', 'unk_token': '[UNK]', 'continuing_subword_prefix': '##',
                  'max_input_chars_per_word': 100, 'vocab': ids}}, ensure_ascii=False).encode()

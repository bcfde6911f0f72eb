"""Hard strings through both libraries: no control tokens out of texts, nothing lost, spaces where they belong."""

import json

import sentencepiece
import tokenizers
import pytest

from llm.data.codecs import SentencePiece, TokenizerJson
from tests.data import tokenizers_of_others as others
from tests.data.tokenizers_of_others import HARD, MARKS, opened


@pytest.fixture(scope='module')
def byte_level():
    return opened(others.byte_level(), eos_token='<|endoftext|>')


@pytest.fixture(scope='module')
def unigram():
    return opened(others.unigram(), eos_token='</s>', cls_token='<cls>', sep_token='<sep>', unk_token='<unk>')


@pytest.fixture(scope='module')
def model():
    return others.sentencepiece_model()


def has_control_token(tokenizer, text) -> bool:
    names = dict(tokenizer._codec.names)
    names.pop(tokenizer.special_ids.get('unk'), None)
    return bool(names.keys() & set(tokenizer.encode(text)))


@pytest.mark.parametrize('text', [*HARD, *MARKS])
def test_byte_level_round_trips_and_counts_bytes(byte_level, text):
    ids = byte_level.encode(text)
    assert byte_level.decode(ids) == text and not has_control_token(byte_level, text)
    assert byte_level.token_bytes_V[ids].sum() == len(text.encode())


def test_text_between_control_tokens_is_as_the_library_has_it(byte_level):
    plain = tokenizers.Tokenizer.from_str(others.files(others.byte_level())['tokenizer.json'].decode())
    for text in ['the king', '  two\n\n\tspaces ', '日本語 😀']:
        assert byte_level.encode(text) == plain.encode(text).ids


# A normaliser makes control tokens out of what is not even written like one.
@pytest.mark.parametrize('text', [*HARD, '<sep>', 'a<sep>b<cls><cls>', '\uff1csep\uff1e', '<sep><sep>' * 50])
def test_characters_that_add_up_to_a_control_token_are_kept_apart(unigram, text):
    assert not has_control_token(unigram, text)


def test_such_a_control_token_would_be_found(unigram):
    assert unigram._codec._model.encode('<sep>', add_special_tokens=False).ids[-1] == unigram._codec.id_of('<sep>')


def test_control_token_that_the_file_does_not_call_special_is_one(byte_level):
    data = others.byte_level()
    for token in data['added_tokens']:
        token['special'] = False
    tokenizer = opened(data, eos_token='<|im_end|>')
    assert tokenizer.encode('a<|im_end|>b') == byte_level.encode('a<|im_end|>b')
    assert tokenizer.encode('a<s>b') == [*tokenizer.encode('a'), data['model']['vocab']['<s>'], *tokenizer.encode('b')]


@pytest.mark.parametrize('text', HARD)
def test_sentencepiece_is_run_as_it_is(model, text):
    plain = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = opened(model)
    assert tokenizer.encode(text) == plain.encode(text) and not has_control_token(tokenizer, text)


# transformers since version 5: no space is put before a text that begins with one.
@pytest.mark.parametrize('legacy, first, later', [(False, True, False), (True, True, True)])
def test_spaces_before_texts_are_those_of_the_class(model, legacy, first, later):
    codec = opened(model, tokenizer_class='LlamaTokenizer', legacy=legacy)._codec
    with_space, without = SentencePiece(model).encode('king'), SentencePiece(model).encode('king', first=False)
    assert with_space != without
    assert codec.encode('king') == (with_space if first else without)
    assert codec.encode('king', first=False) == (with_space if later else without)
    assert codec.encode(' king') == with_space and codec.encode(' king', first=False) == with_space


def test_metaspace_puts_a_space_before_the_first_text_only():
    codec = opened(others.unigram(), eos_token='</s>')._codec
    assert codec.decode(codec.encode('king')) == 'king'
    assert codec.encode(' king', first=False) == codec.encode('king') != codec.encode('king', first=False)


def test_user_defined_piece_that_is_a_mark_is_kept_apart():
    model = others.sentencepiece_model(user_defined_symbols=['<end_of_turn>', '<tab>'])
    tokenizer = opened(model, additional_special_tokens=['<end_of_turn>'])
    index = tokenizer._codec.id_of('<end_of_turn>')
    for text in ['<end_of_turn>', 'a<end_of_turn><end_of_turn>', ' <end_of_turn> b']:
        ids = tokenizer.encode(text)
        assert index not in ids and tokenizer.decode(ids).split() == text.split()
    assert tokenizer._codec.id_of('<tab>') in tokenizer.encode('a<tab>b')


def test_truncation_and_padding_of_the_file_are_left_out():
    kept = {'truncation': {'max_length': 3, 'strategy': 'LongestFirst', 'stride': 0, 'direction': 'Right'},
            'padding': {'strategy': {'Fixed': 99}, 'direction': 'Right', 'pad_to_multiple_of': None, 'pad_id': 0,
                        'pad_type_id': 0, 'pad_token': '<|endoftext|>'}}
    text = 'the king and the queen and the king'
    assert opened(others.byte_level(**kept), eos_token='</s>').encode(text) == opened(
        others.byte_level(), eos_token='</s>').encode(text)


@pytest.mark.parametrize('content', [b'', b'[]', b'{}', b'{"model": {}}', b'\xff', b'{' * 10_000, b'[' * 100_000])
def test_what_is_no_tokenizer_is_a_value_error(content):
    with pytest.raises(ValueError):
        TokenizerJson(content)
    with pytest.raises(ValueError):
        SentencePiece(content + b'x')


def test_an_id_beyond_any_vocabulary_is_a_value_error():
    data = others.byte_level()
    data['model']['vocab']['far'] = 2**32 - 1
    with pytest.raises(ValueError, match='beyond any vocabulary'):
        TokenizerJson(json.dumps(data).encode())

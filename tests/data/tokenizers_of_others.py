"""Small tokenizers in the files that other people's come in, for the tests of `foreign`, `codecs` and `chat`."""

import io
import json
import pathlib

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from llm.data.tokenizer import Tokenizer
from tests.data.conftest import prose

HARD = json.loads((pathlib.Path(__file__).parent / 'hard_strings.json').read_text())
MARKS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<s>', '</s>', '<bos>', '<start_of_turn>', '<end_of_turn>',
         '<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>')
TEXTS = [prose(number, 30) for number in range(100)] + HARD


def byte_level(merges: int = 100, **keys) -> dict:
    """A `tokenizer.json` as GPT-2's, as a dict: byte-level BPE, with all control tokens of known chat formats."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=256 + len(MARKS) + merges, special_tokens=list(MARKS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return {**json.loads(made.to_str()), **keys}


def unigram() -> dict:
    """As XLNet's: normalised, and with control tokens that a text's own characters add up to."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first')
    made.decoder = decoders.Metaspace(prepend_scheme='first')
    made.train_from_iterator(TEXTS, trainers.UnigramTrainer(
        vocab_size=300, special_tokens=['<unk>', '<s>', '</s>', '<sep>', '<cls>', '<pad>'], unk_token='<unk>',
        show_progress=False))
    made.post_processor = processors.TemplateProcessing(
        single='$A <sep> <cls>', special_tokens=[('<sep>', 3), ('<cls>', 4)])
    return json.loads(made.to_str())


def sentencepiece_model(**keys) -> bytes:
    """As Llama 2's, unless said otherwise: BPE with bytes, and a space before the text."""
    model = io.BytesIO()
    lines = [line for text in TEXTS for line in text.splitlines() if line and '\0' not in line]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **{
        'model_type': 'bpe', 'vocab_size': 700, 'byte_fallback': True, 'normalization_rule_name': 'identity',
        'remove_extra_whitespaces': False, 'allow_whitespace_only_pieces': True, 'hard_vocab_limit': False,
        'character_coverage': 0.99, 'minloglevel': 2, **keys})
    return model.getvalue()


def files(model: dict | bytes, **config) -> dict[str, bytes]:
    """That model's file, and a tokenizer_config.json."""
    name = 'tokenizer.json' if isinstance(model, dict) else 'tokenizer.model'
    content = json.dumps(model).encode() if isinstance(model, dict) else model
    return {name: content, 'tokenizer_config.json': json.dumps(config).encode()}


def opened(model: dict | bytes, **config) -> Tokenizer:
    """The tokenizer of these files."""
    return Tokenizer.from_files(files(model, **config), 'there')

"""References of tokenizers: what transformers makes of hard strings, with small tokenizers of every family's kind.

In: the strings. Out: FOLDER/<name>/, the files of a tokenizer, and expected.json: ids of each string, the text they
decode to, the ids of control tokens. transformers is told to take what looks like a control token for text.
Left out: tokenizers of released models (`real.py`).
"""

import io
import json
import pathlib
from typing import Any

import sentencepiece
import tokenizers
import transformers

STRINGS = json.loads((pathlib.Path(__file__).parents[2] / 'data/hard_strings.json').read_text())
# What the vocabularies are learned from: of every kind that the strings are, but not those alone.
TEXTS = [*STRINGS, *(f'{first} {second} {third} the {second}s, and {third}.'
                     for first in ('The king', 'a Queen', "It's")
                     for second in ('castle', 'love', 'function', 'caf\u00e9')
                     for third in ('was', 'never', '2001'))]
VOCAB = 700
CLASSES = ('GPT2Tokenizer', 'LlamaTokenizer', 'Qwen2Tokenizer', 'GemmaTokenizer', 'BertTokenizer', 'RobertaTokenizer',
           'XLNetTokenizer')


def write(folder: pathlib.Path) -> None:
    transformers.utils.logging.set_verbosity_error()
    for name in CLASSES:
        tokenizer = getattr(transformers, name)().train_new_from_iterator(iter(TEXTS), VOCAB, show_progress=False)
        tokenizer.save_pretrained(folder / name)
        if name in ('LlamaTokenizer', 'GemmaTokenizer'):
            add_bytes(folder / name / 'tokenizer.json')
    llama3(folder / 'GPT2Tokenizer', folder / 'Llama3')
    sentencepieces(folder / 'SentencePiece')
    for path in sorted(folder.iterdir()):
        expected = encoded(transformers.AutoTokenizer.from_pretrained(path))
        (path / 'expected.json').write_text(json.dumps(expected))


def encoded(tokenizer: Any) -> dict[str, list]:
    """{'ids': of each string, 'decoded': the text of these ids, 'control': the ids of control tokens}."""
    ids = [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in STRINGS]
    decoded = [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in ids]
    control = sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
    return {'ids': ids, 'decoded': decoded, 'control': control}


def characters(pad_id: int) -> Any:
    """A tokenizer of fewer than 131 tokens: four special ones, then the printable characters of ASCII."""
    special = ['<s>', '</s>', '<unk>']
    special.insert(pad_id, '<pad>')
    vocab = {token: index for index, token in enumerate((*special, *map(chr, range(32, 127))))}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token='<unk>')),
        bos_token='<s>', eos_token='</s>', unk_token='<unk>', pad_token='<pad>')


def add_bytes(path: pathlib.Path) -> None:
    """The 256 byte tokens that released vocabularies of this kind have, and a trained one does not."""
    data = json.loads(path.read_text())
    vocab = data['model']['vocab']
    for byte in range(256):
        vocab.setdefault(f'<0x{byte:02X}>', len(vocab))
    data['model']['byte_fallback'] = True
    path.write_text(json.dumps(data))


def llama3(source: pathlib.Path, target: pathlib.Path) -> None:
    """As Llama 3 was released: a regular expression before the bytes, whole words before merges, bos by a template."""
    data = json.loads((source / 'tokenizer.json').read_text())
    data['added_tokens'] = []
    data['pre_tokenizer'] = {'type': 'Sequence', 'pretokenizers': [
        {'type': 'Split', 'pattern': {'Regex': r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
                                               r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'},
         'behavior': 'Isolated', 'invert': False},
        {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}]}
    data['model']['ignore_merges'] = True
    vocab = data['model']['vocab']
    for token in ('<|begin_of_text|>', '<|eot_id|>', '<|start_header_id|>', '<|end_header_id|>'):
        index = len(vocab) + len(data['added_tokens'])
        data['added_tokens'].append({'id': index, 'content': token, 'single_word': False, 'lstrip': False,
                                     'rstrip': False, 'normalized': False, 'special': True})
    begin = data['added_tokens'][0]
    data['post_processor'] = {
        'type': 'TemplateProcessing', 'pair': [],
        'single': [{'SpecialToken': {'id': begin['content'], 'type_id': 0}}, {'Sequence': {'id': 'A', 'type_id': 0}}],
        'special_tokens': {begin['content']: {'id': begin['content'], 'ids': [begin['id']],
                                              'tokens': [begin['content']]}}}
    target.mkdir(parents=True)
    (target / 'tokenizer.json').write_text(json.dumps(data))
    (target / 'tokenizer_config.json').write_text(json.dumps({
        'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<|begin_of_text|>', 'eos_token': '<|eot_id|>'}))


def sentencepieces(folder: pathlib.Path) -> None:
    """A SentencePiece model and nothing else, as Llama 2 was first released."""
    model = io.BytesIO()
    lines = [line for text in TEXTS for line in text.splitlines() if '\0' not in line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type='bpe', vocab_size=VOCAB, byte_fallback=True,
        normalization_rule_name='identity', remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        split_digits=True, hard_vocab_limit=False, character_coverage=0.99, minloglevel=2)
    folder.mkdir(parents=True)
    (folder / 'tokenizer.model').write_bytes(model.getvalue())
    (folder / 'tokenizer_config.json').write_text(json.dumps({
        'tokenizer_class': 'LlamaTokenizer', 'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>',
        'add_bos_token': True, 'legacy': False}))
    (folder / 'config.json').write_text(json.dumps({'model_type': 'llama'}))

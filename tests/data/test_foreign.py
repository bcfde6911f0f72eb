"""Files of other people's tokenizers: what is read of them, what a run keeps, and one line for whatever is wrong."""

import json

from etils import epath
import pytest
import sentencepiece
import tokenizers

from llm.data import converted, foreign
from llm.data import tokenizer as tokenizer_lib
from llm.data.chat import FORMATS, jinja
from llm.data.tokenizer import Tokenizer
from llm.errors import UserError
from tests.data import tokenizers_of_others as others
from tests.data.tokenizers_of_others import HARD, files, opened

CHAT = [{'role': 'user', 'content': 'the king'}, {'role': 'assistant', 'content': 'and'}]


@pytest.fixture(scope='module')
def byte_level():
    return others.byte_level()


@pytest.fixture(scope='module')
def model():
    return others.sentencepiece_model()


def written(folder, contents) -> epath.Path:
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


# What is read.

def test_special_tokens_are_the_files(byte_level):
    ids = byte_level['model']['vocab']
    tokenizer = opened(byte_level, bos_token={'content': '<s>', 'special': True}, eos_token='</s>', pad_token='<bos>')
    assert tokenizer.special_ids == {'pad': ids['<bos>'], 'bos': ids['<s>'], 'eos': ids['</s>']} and tokenizer.foreign
    assert tokenizer.describe() == {'sha256': tokenizer.sha256, 'vocab_size': len(ids), 'chat_template': '',
                                    'special_ids': tokenizer.special_ids}
    assert tokenizer.show([ids['<bos>'], ids['<s>'], *tokenizer.encode('é'), ids['</s>']]) == '<s>é</s>'


def test_answers_end_as_the_chat_format_says_and_documents_as_the_tokenizer(byte_level):
    ids = byte_level['model']['vocab']
    tokenizer = Tokenizer.from_files(foreign.with_chat_template(
        files(byte_level, eos_token='<|endoftext|>'), 'chatml'), 'there')
    assert tokenizer.special_ids['eos'] == tokenizer.encode_chat(CHAT)[0][-1] == ids['<|im_end|>']
    assert tokenizer.encode_document('the king') == (
        [ids['<|endoftext|>'], *tokenizer.encode('the king'), ids['<|endoftext|>']],
        [0] + [1] * (len(tokenizer.encode('the king')) + 1))


@pytest.mark.parametrize('config, begin', [
    ({}, '<s>'), ({'add_bos_token': False}, '</s>'), ({'add_bos_token': True}, '<s>')])
def test_documents_begin_with_what_the_tokenizer_puts_there(model, config, begin):
    tokenizer = opened(model, bos_token='<s>', eos_token='</s>', **config)
    assert tokenizer.show(tokenizer.encode_document('the king')[0]) == f'{begin}the king</s>'


def test_tokens_that_no_file_names_are_the_customary_ones(byte_level, model):
    ids = byte_level['model']['vocab']
    assert opened(byte_level).special_ids == {'pad': ids['</s>'], 'bos': ids['<s>'], 'eos': ids['</s>']}
    assert opened(model).special_ids == {'pad': 0, 'bos': 1, 'eos': 2}


def test_named_templates_are_read_by_their_default(byte_level):
    listed = [{'name': 'tools', 'template': 'x'}, {'name': 'default', 'template': jinja(FORMATS['chatml'])}]
    assert opened(byte_level, eos_token='</s>', chat_template=listed).chat_template == 'chatml'


def test_hash_is_of_every_file(byte_level):
    hashes = {opened(byte_level, eos_token='</s>', **more).sha256 for more in ({}, {'pad_token': '<s>'}, {'x': 1})}
    shorter = {**byte_level, 'model': {**byte_level['model'], 'merges': byte_level['model']['merges'][:-1]}}
    hashes.add(opened(shorter, eos_token='</s>').sha256)
    more = foreign.with_chat_template(files(byte_level, eos_token='</s>'), 'chatml')
    hashes.add(Tokenizer.from_files(more, 'there').sha256)
    assert len(hashes) == 5


# What a run keeps.

def test_run_keeps_a_folder_that_reads_the_same(tmp_path, byte_level):
    source = written(tmp_path / 'theirs', {**files(byte_level, eos_token='</s>'), 'model.bin': b'x', 'run.py': b'x',
                                           'tokenizer.model': b'not read where tokenizer.json is'})
    assert tokenizer_lib.place(tmp_path) == tmp_path / 'tokenizer.model'
    tokenizer_lib.install(str(source), epath.Path(tmp_path))
    assert tokenizer_lib.place(tmp_path) == tmp_path / 'tokenizer'
    names = sorted(path.name for path in (tmp_path / 'tokenizer').iterdir())
    assert names == ['tokenizer.json', 'tokenizer_config.json']
    kept = Tokenizer.from_folder(tmp_path)
    assert kept.describe() == Tokenizer.from_path(str(source)).describe()
    tokenizer_lib.install(str(tmp_path / 'tokenizer'), epath.Path(tmp_path / 'child'))
    assert Tokenizer.from_folder(tmp_path / 'child').sha256 == kept.sha256


@pytest.mark.parametrize('end, unk, pad', [('</s>', '<bos>', '<bos>'), ('<s>', '<s>', '</s>'), ('</s>', None, '<s>')])
def test_a_pad_that_ends_answers_gives_way_to_another_token(byte_level, end, unk, pad):
    bos = '</s>' if end == '<s>' else '<s>'
    theirs = files(byte_level, bos_token=bos, eos_token=end, pad_token={'content': end}, unk_token=unk)
    theirs['special_tokens_map.json'] = json.dumps({'pad_token': end}).encode()
    changed, index = foreign.with_pad_of_its_own(theirs, 'there')
    ids = byte_level['model']['vocab']
    assert index == ids[pad] and Tokenizer.from_files(changed, 'there').special_ids == {
        **Tokenizer.from_files(theirs, 'there').special_ids, 'pad': ids[pad]}
    assert foreign.with_pad_of_its_own(changed, 'there') == (changed, index)


def test_a_tokenizer_with_one_control_token_has_no_other_pad(byte_level):
    theirs = files(byte_level, bos_token='</s>', eos_token='</s>', unk_token='</s>')
    with pytest.raises(UserError, match="pads with the end of an answer, '</s>', and has no other control token"):
        foreign.with_pad_of_its_own(theirs, 'there')


def test_run_with_our_own_keeps_its_file(tmp_path):
    tokenizer_lib.train((others.prose(number, 30) for number in range(50)), 320, 10**6, str(tmp_path / 'mine.model'))
    tokenizer_lib.install(str(tmp_path / 'mine.model'), epath.Path(tmp_path))
    kept = Tokenizer.from_folder(tmp_path)
    assert not kept.foreign and kept.sha256 == Tokenizer.from_file(str(tmp_path / 'mine.model')).sha256


# Other forms.

@pytest.mark.parametrize('lower', [True, False])
def test_vocab_txt_is_run_as_bert_runs_it(tmp_path, lower):
    pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *'abcdefghijklmnopqrstuvwxyz0123456789.,!?T', 'the', 'king',
              *(f'##{letter}' for letter in 'abcdefghijklmnopqrstuvwxyz0123456789'), '##ing', '日', '[', ']', '<', '>']
    folder = written(tmp_path / 'bert', {'vocab.txt': ('\n'.join(pieces) + '\n').encode(),
                                         'tokenizer_config.json': {'do_lower_case': lower}})
    reference = tokenizers.BertWordPieceTokenizer(str(folder / 'vocab.txt'), lowercase=lower)
    reference._tokenizer.encode_special_tokens = True
    tokenizer = Tokenizer.from_path(str(folder))
    for text in HARD:
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode_document('the king')[0] == [2, *tokenizer.encode('the king'), 3]
    assert tokenizer.special_ids == {'pad': 0, 'bos': 2, 'eos': 3, 'mask': 4}


def gguf(**keys):
    return {f'tokenizer.ggml.{key}': value for key, value in keys.items() if value is not None}


def test_gguf_with_merges_is_the_tokenizer_json_that_it_was_made_of(byte_level):
    vocab = sorted(byte_level['model']['vocab'], key=byte_level['model']['vocab'].get)
    kind = [3 if token in others.MARKS else 1 for token in vocab]
    metadata = gguf(model='gpt2', pre='gpt-2', tokens=vocab, token_type=kind, eos_token_id=2, bos_token_id=1,
                    merges=[' '.join(pair) for pair in byte_level['model']['merges']])
    template = {'tokenizer.chat_template': jinja(FORMATS['chatml'])}
    tokenizer = Tokenizer.from_files(converted.from_gguf(metadata | template, 'a.gguf'), 'a.gguf')
    same = opened(byte_level, eos_token='</s>')
    assert [tokenizer.encode(text) for text in HARD] == [same.encode(text) for text in HARD]
    assert tokenizer.chat_template == 'chatml' and tokenizer.special_ids['eos'] == 2
    digits = converted.from_gguf(metadata | gguf(pre='smollm'), 'a.gguf')
    assert len(Tokenizer.from_files(digits, 'a.gguf').encode('2024')) == 4


def test_gguf_with_scores_is_the_sentencepiece_model_that_it_was_made_of(model):
    plain = sentencepiece.SentencePieceProcessor(model_proto=model)
    kind = [2 if plain.is_unknown(i) else 3 if plain.is_control(i) else 6 if plain.is_byte(i) else 1
            for i in range(len(plain))]
    metadata = gguf(model='llama', tokens=[plain.id_to_piece(i) for i in range(len(plain))], token_type=kind,
                    scores=[plain.get_score(i) for i in range(len(plain))], bos_token_id=1, eos_token_id=2,
                    unknown_token_id=0)
    tokenizer = Tokenizer.from_files(converted.from_gguf(metadata, 'a.gguf'), 'a.gguf')
    same = opened(model, tokenizer_class='LlamaTokenizer')
    assert [tokenizer.encode(text) for text in HARD] == [same.encode(text) for text in HARD]
    assert tokenizer.special_ids == {'pad': 0, 'bos': 1, 'eos': 2, 'unk': 0}


# What is wrong.

GGUF = gguf(model='gpt2', pre='gpt-2', tokens=['a', 'b', 'ab'], merges=['a b'], eos_token_id=0)


@pytest.mark.parametrize('change, words', [
    (gguf(model='t5'), r"tokenizer.ggml.model='t5'"), (gguf(pre='tekken'), r"tokenizer.ggml.pre='tekken'.*smollm"),
    (gguf(tokens=['a', 'a']), 'no whole tokenizer.ggml.tokens'), (gguf(token_type=[1]), 'token_type'),
    (gguf(merges=['ab']), 'no whole tokenizer.ggml.merges'), (gguf(eos_token_id=3), 'eos token is 3, and there are 3'),
    (gguf(model='llama'), 'no whole tokenizer.ggml.scores'),
    (gguf(tokens=5), 'tokens=5 is of another type'), (gguf(tokens=[1, 2, 3]), 'of another type'),
    (gguf(merges=[1]), 'of another type'), (gguf(pre=['gpt-2']), 'of another type'),
    (gguf(bos_token_id='a'), 'of another type'),
    ({'tokenizer.chat_template': 7}, 'chat_template=7 is of another type')])
def test_bad_gguf_is_one_line(change, words):
    with pytest.raises(UserError, match=words) as caught:
        converted.from_gguf(GGUF | change, 'a.gguf')
    assert '\n' not in str(caught.value) and str(caught.value).startswith('a.gguf')


@pytest.mark.parametrize('contents, words', [
    ({'README.md': b''}, 'has no tokenizer'),
    ({'tokenizer.json': b'{'}, 'tokenizer.json: it is not sound JSON'),
    ({'tokenizer.json': b'[1]'}, 'no JSON object but list'),
    ({'tokenizer.json': {'model': {'type': 'Magic'}}}, 'tokenizers cannot run it'),
    ({'tokenizer.model': b'\x80\x02}q\x00.'}, 'not a SentencePiece model'),
    ({'tokenizer_config.json': b'nothing'}, 'tokenizer_config.json: it is not sound JSON'),
    ({'tokenizer_config.json': b'{"eos_token": "</s>", "eos_token": "<s>"}'}, "'eos_token' is there twice"),
    ({'tokenizer_config.json': b'{"model_max_length": NaN}'}, 'NaN is no number of JSON'),
    ({'tokenizer_config.json': {'eos_token': 7}}, '7 where a token should be'),
    ({'tokenizer_config.json': {'eos_token': '<nowhere>'}}, "no token '<nowhere>'"),
    ({'tokenizer_config.json': {'eos_token': '</s>', 'added_tokens_decoder': {'99999': {'content': '<new>'}}}},
     "no token '<new>' with id 99999"),
    ({'tokenizer_config.json': {'eos_token': '</s>'}, 'special_tokens_map.json': {'eos_token': '<s>'}}, 'them agree'),
    ({'tokenizer_config.json': {'eos_token': '</s>', 'add_prefix_space': True}}, 'add_prefix_space=True'),
    ({'tokenizer_config.json': {'eos_token': '</s>', 'chat_template': 7}}, 'chat_template is not a text'),
    ({'tokenizer_config.json': {'eos_token': '</s>', 'chat_template': ['x']}}, 'chat_template is not a text'),
    ({'tokenizer_config.json': {'eos_token': '</s>', 'chat_template': '\ud800'}}, 'chat_template is not a text'),
    ({'tokenizer_config.json': {'eos_token': '</s>'}, 'chat_template.jinja': b'\xff'}, 'jinja is not UTF-8'),
    ({'vocab.txt': b'a\nb\n', 'tokenizer.json': None}, r'\[UNK\] not among'),
    ({'vocab.txt': b'[UNK]\na\na\n', 'tokenizer.json': None}, '3 lines and 2 different'),
    ({'vocab.txt': b'\xff', 'tokenizer.json': None}, 'vocab.txt is not UTF-8')])
def test_whatever_is_wrong_is_one_line(tmp_path, byte_level, contents, words):
    start = {} if {'README.md', 'tokenizer.model'} & contents.keys() else {'tokenizer.json': byte_level}
    folder = written(tmp_path, {name: content for name, content in (start | contents).items() if content is not None})
    with pytest.raises(UserError, match=words) as caught:
        Tokenizer.from_path(str(folder))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('kind', ['byte_level', 'model'])
def test_an_added_token_that_is_null_is_one_line(kind, request):
    with pytest.raises(UserError, match="no token '' with id 5"):
        opened(request.getfixturevalue(kind), eos_token='</s>', added_tokens_decoder={'5': None})


def test_parts_that_are_no_tables_are_one_line(byte_level):
    """Where a class of transformers has its own, the library does not see the file's."""
    damaged = {**byte_level, 'decoder': {'type': 'Fuse'}, 'normalizer': ['NFC']}
    with pytest.raises(UserError, match='normalizer or pre_tokenizer is not as tokenizers writes it'):
        opened(damaged, eos_token='</s>', tokenizer_class='LlamaTokenizer')


def test_a_link_may_go_to_the_blobs_of_the_hubs_cache_and_nowhere_else(tmp_path, byte_level):
    theirs = files(byte_level, eos_token='</s>')
    folder, blobs = tmp_path / 'hub/models--a--b/snapshots/0123', written(tmp_path / 'hub/models--a--b/blobs', theirs)
    folder.mkdir(parents=True)
    for name in theirs:
        (folder / name).symlink_to(f'../../blobs/{name}')
    assert foreign.gather(epath.Path(folder)) == theirs
    (tmp_path / 'link').symlink_to(folder)
    assert foreign.gather(epath.Path(tmp_path / 'link')) == theirs
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other/tokenizer.json').symlink_to(blobs / 'tokenizer.json')
    with pytest.raises(UserError, match=r'other/tokenizer.json is a link to .*, outside of its folder'):
        Tokenizer.from_path(str(tmp_path / 'other'))


def test_chat_format_without_its_control_tokens_is_refused(byte_level):
    with pytest.raises(UserError, match="chat template chatml, but no control token '<|im_start|>'"):
        Tokenizer.from_files(foreign.with_chat_template(files(others.sentencepiece_model()), 'chatml'), 'there')
    with pytest.raises(UserError, match='chat_template=chatlm is not known; use one of chatml'):
        foreign.with_chat_template({}, 'chatlm')


def test_huge_file_is_not_read(tmp_path):
    with open(tmp_path / 'tokenizer.json', 'wb') as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match='1099511627776 bytes'):
        Tokenizer.from_path(str(tmp_path))

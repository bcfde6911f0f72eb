"""Chat formats: their algebra, our Jinja templates of them, what is recognised, and what is refused by name."""

import itertools

from jinja2.sandbox import ImmutableSandboxedEnvironment
import pytest

from llm.data import chat
from llm.errors import UserError
from tests.data import tokenizers_of_others as others
from tests.data.tokenizers_of_others import opened

FOREIGN = sorted(set(chat.FORMATS) - {'quartet-1'})  # ours: test_tokenizer.py
CONTENTS = ['hi', '  spaced ', '\n\nlead', 'tail\n', '', '日本語 😀', '<|im_end|></s><end_of_turn><|eot_id|>']


@pytest.fixture(scope='module')
def tokenizers():
    """By the name of their chat format, which our own template of it has them found by."""
    data = others.byte_level()
    tokens = {'llama3': '<|begin_of_text|>', 'gemma': '<bos>'}
    return {name: opened(data, eos_token='</s>', unk_token='<|endoftext|>', chat_template=chat.jinja(form),
                         bos_token=next((token for key, token in tokens.items() if name.startswith(key)), '<s>'))
            for name, form in chat.FORMATS.items() if name in FOREIGN}


def chats(system: bool = True):
    """Chats of one to five turns, every content in every place."""
    for count, shift, first in itertools.product(range(1, 6), range(len(CONTENTS)), (False, True)):
        turns = [{'role': ('user', 'assistant')[number % 2], 'content': CONTENTS[(number + shift) % len(CONTENTS)]}
                 for number in range(count)]
        if not first:
            yield turns
        elif system:
            yield [{'role': 'system', 'content': CONTENTS[shift - 1]}, *turns]


def rendered(template: str, messages: list[dict[str, str]], ask: bool) -> str:
    """As transformers renders it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=messages, add_generation_prompt=ask, bos_token='<B>',
                                                    eos_token='<E>')


@pytest.mark.parametrize('name', chat.FORMATS)
def test_our_template_writes_what_the_format_says(name):
    form, template = chat.FORMATS[name].bind('<B>', '<E>'), chat.jinja(chat.FORMATS[name])
    for messages in chats(system=form.system is not None):
        asks = messages[-1]['role'] != 'assistant'
        text = ''.join(run.text for run in (form.prompt if asks else form.runs)(messages))
        assert text + ('' if asks else form.after) == rendered(template, messages, asks)


@pytest.mark.parametrize('name', FOREIGN)
def test_prompt_and_answer_are_the_chat_and_answers_are_learned(tokenizers, name):
    tokenizer = tokenizers[name]
    assert tokenizer.chat_template == name
    for messages in chats(system=chat.FORMATS[name].system is not None):
        if messages[-1]['role'] == 'user':
            for answer in CONTENTS:
                whole, learn = tokenizer.encode_chat([*messages, {'role': 'assistant', 'content': answer}])
                ids = tokenizer.encode_answer(answer)
                assert tokenizer.encode_prompt(messages) + ids == whole and ids[-1] == tokenizer.special_ids['eos']
                assert learn[-len(ids):] == [1] * len(ids) and learn[-len(ids) - 1] == 0
                roles = [message['role'] for message in messages]
                assert sum(one > before for one, before in zip(learn[1:], learn)) == roles.count('assistant') + 1


@pytest.mark.parametrize('name', FOREIGN)
def test_contents_are_no_control_tokens(tokenizers, name):
    tokenizer = tokenizers[name]
    marks = tokenizer._codec.names.keys()
    plain, hostile = (tokenizer.encode_prompt([{'role': 'user', 'content': content}])
                      for content in ('x', ''.join(others.MARKS)))
    assert [index for index in plain if index in marks] == [index for index in hostile if index in marks]


@pytest.mark.parametrize('name', chat.FORMATS)
def test_beginning_of_an_answer_is_gone_on_with(tokenizers, tokenizer, name):
    tokenizer = tokenizers.get(name, tokenizer)
    asked = [{'role': 'user', 'content': 'why?'}]
    begun = tokenizer.encode_prompt([*asked, {'role': 'assistant', 'content': 'the king'}])
    prompt = tokenizer.encode_prompt(asked)
    assert begun[:len(prompt)] == prompt and 'the king' in tokenizer.decode(begun[len(prompt):])
    assert tokenizer.begun(begun) == begun[len(prompt):] and tokenizer.begun(prompt) == []
    assert begun[-1] != tokenizer.special_ids['eos']


@pytest.mark.parametrize('name, messages, words', [
    ('gemma', 'su', 'no system message'), ('mistral-v0.2', 'su', 'no system message'),
    ('gemma', 'uu', 'take turns'), ('llama2', 'sau', 'take turns'), ('gemma3', 'us', 'one system message'),
    ('llama3.1', 'uas', 'one system message'), ('llama2', 's', 'has none'), ('qwen3', 'sa', 'no such message'),
    ('chatml', 'ut', 'no role')])
def test_chat_that_a_format_cannot_say_is_one_line(name, messages, words):
    roles = {'s': 'system', 'u': 'user', 'a': 'assistant', 't': 'tool'}
    with pytest.raises(UserError, match=f'{name}.*{words}') as caught:
        chat.FORMATS[name].runs([{'role': roles[letter], 'content': 'x'} for letter in messages])
    assert '\n' not in str(caught.value)


def test_thoughts_are_refused_and_the_last_answer_has_none():
    form = chat.FORMATS['qwen3']
    messages = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}] * 2
    text = ''.join(run.text for run in form.runs(messages))
    assert text.count('<think>') == 1 and text.endswith('assistant\n<think>\n\n</think>\n\nb<|im_end|>')
    with pytest.raises(UserError, match='</think>'):
        form.runs([*messages[:1], {'role': 'assistant', 'content': '<think>x</think>y'}])
    with pytest.raises(UserError, match='no such message'):
        form.runs([{'role': 'user', 'content': '<tool_response>\nx</tool_response>'}, *messages[1:2]])


def test_released_templates_are_known_by_their_hash():
    assert set(chat.KNOWN.values()) <= chat.FORMATS.keys() and all(len(key) == 64 for key in chat.KNOWN)
    assert set(chat.FORMATS) - set(chat.KNOWN.values()) == {'quartet-1'}


UNKNOWN = ["{{ 'x' * 10**9 }}", "{% for message in messages %}{{ message.content }}{% endfor %}", "{{ 1 / 0 }}",
           chat.jinja(chat.FORMATS['chatml']) + ' ']


@pytest.mark.parametrize('template', UNKNOWN)
def test_unknown_template_is_refused_by_name_and_not_run(template):
    tokenizer = opened(others.byte_level(), eos_token='</s>', chat_template=template)
    assert tokenizer.encode_document('the king')[0]
    with pytest.raises(UserError, match=r'chat template unknown-\w{8}, .*never executed.*chatml') as caught:
        tokenizer.encode_chat([{'role': 'user', 'content': 'x'}])
    assert '\n' not in str(caught.value)


def test_no_template_is_said_so():
    with pytest.raises(UserError, match='has no chat template.*--chat_template'):
        opened(others.byte_level(), eos_token='</s>').encode_prompt([])

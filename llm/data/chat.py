"""Chat formats as data: what stands before and after each message, and by which text a format is recognised.

In: a chat (list of {'role', 'content'}), or the text of a Jinja template. Out: runs of text and of control tokens, with
what is learned; a format, or None; a Jinja template of ours for export.
Left out: token ids (`tokenizer.py`). No template is ever executed: a known one is recognised by its SHA-256.
"""

import dataclasses
import functools
import hashlib
import re
from typing import NamedTuple

from llm.errors import UserError

ROLES = ('system', 'user', 'assistant')
# In the pieces below, the tokenizer's own tokens of these names.
BOS, EOS = '{bos}', '{eos}'


class Run(NamedTuple):
    """A part of a chat as it is encoded: one control token, or a text that is encoded as a whole."""

    text: str
    is_mark: bool
    learned: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """One way to write a chat; pairs are what stands before and after a message's content."""

    name: str
    marks: tuple[str, ...]  # the control tokens in the pieces
    begin: str = ''
    system: tuple[str, str] | None = None  # None: the format has no system message
    user: tuple[str, str]
    answer: str = ''  # before an answer: where the policy begins
    said: tuple[str, str] = ('', '')  # around an answer's content, and learned like it
    thought: str = ''  # what a chat's last message has before its content, where it is an answer
    end: str  # the control token after an answer
    after: str = ''  # between an answer's end and what follows
    default_system: str | None = None  # said where a chat has no system message
    in_user: bool = False  # the system message stands within the first user message, before its content
    trims: str = ''  # white space is dropped around 'contents', or around whole 'turns'
    alternates: bool = False  # after the system message user and assistant take turns

    def bind(self, bos: str, eos: str) -> 'ChatFormat':
        """The same with a tokenizer's own tokens for BOS and EOS."""
        def bound(value):
            if isinstance(value, str):
                return value.replace(BOS, bos).replace(EOS, eos)
            return tuple(map(bound, value)) if isinstance(value, tuple) else value
        return ChatFormat(**{key: bound(value) for key, value in vars(self).items()})

    def runs(self, messages: list[dict[str, str]], *, goes_on: bool = False) -> list[Run]:
        """A chat, up to the end of its last message; raises UserError where this format cannot say it.

        `goes_on`: the last message is the beginning of an answer, and neither what follows it nor its end is there.
        """
        made, before = self._split(self.begin), ''
        turns = self._turns(messages)
        for number, (role, content) in enumerate(turns, 1):
            if before == 'assistant':
                made += self._split(self.after)
            if role == 'assistant':
                last = number == len(turns)
                made += [*self._split(self.answer), *self.answered(content, last=last, goes_on=goes_on and last)]
            else:
                made += self._told(role, content)
            before = role
        return _joined(made)

    def prompt(self, messages: list[dict[str, str]]) -> list[Run]:
        """A chat up to where the policy goes on: before its answer, or after the beginning of one that it is given."""
        if messages and messages[-1]['role'] == 'assistant':
            return self.runs(messages, goes_on=True)
        return _joined([*self.runs(messages), *self._split(self.answer)])

    def answered(self, content: str, *, last: bool = True, goes_on: bool = False) -> list[Run]:
        """An answer and its end; `last`: nothing follows it."""
        if self.thought and '</think>' in content:
            raise UserError(f'chat template {self.name} takes thoughts out of answers, and one has </think>; leave '
                            'thoughts out of chats')
        if self.thought and last:
            content = self.thought + content.lstrip('\n')
        text = self.said[0] + (content.strip() if self.trims else content)
        return _joined([Run(text, False, True)] if goes_on else
                       [Run(text + self.said[1], False, True), Run(self.end, True, True)])

    def cues(self) -> list[list[Run]]:
        """What a prompt has last before the policy's part: after a user's message, and else."""
        return [_joined(self._split(piece)) for piece in (self.user[1] + self.answer, self.answer)]

    def _told(self, role: str, content: str) -> list[Run]:
        before, after = self.system if role == 'system' else self.user
        return [*self._split(before), Run(content, False, False), *self._split(after)]

    def _turns(self, messages: list[dict[str, str]]) -> list[tuple[str, str]]:
        """(role, content) as they are written: default and merged system messages, white space."""
        turns = [(message['role'], message['content']) for message in messages]
        roles = [role for role, _ in turns]
        if not set(roles) <= set(ROLES):
            raise UserError(f'chat template {self.name} has no role {sorted(set(roles) - set(ROLES))[0]!r}; '
                            f'use {", ".join(ROLES)}')
        if 'system' in roles and self.system is None:
            raise UserError(f'chat template {self.name} has no system message; put it into the first user message')
        strict = self.in_user or self.alternates or self.default_system is not None
        if strict and 'system' in roles[1:]:
            raise UserError(f'chat template {self.name} has one system message, the first; message '
                            f'{roles.index("system", 1) + 1} of a chat is another')
        told = roles[roles[:1] == ['system']:]
        if self.alternates and told != [('user', 'assistant')[number % 2] for number in range(len(told))]:
            raise UserError(f'chat template {self.name} wants user and assistant to take turns, user first; '
                            f'the roles of a chat are {", ".join(roles)}')
        asked = (content for role, content in turns if role == 'user')  # a tool's answer stands there, too
        if self.thought and all(re.fullmatch('<tool_response>.*</tool_response>', text, re.DOTALL) for text in asked):
            raise UserError(f'chat template {self.name} thinks of what a user asks, and a chat has no such message; '
                            'add one')
        if self.trims == 'contents':
            turns = [(role, content if self.in_user and role == 'system' else content.strip())
                     for role, content in turns]
        if self.in_user and roles[:1] == ['system']:
            if len(turns) < 2:
                raise UserError(f'chat template {self.name} puts the system message into a user message, and a chat '
                                'has none; add one')
            turns = [('user', self.system[0] + turns[0][1] + self.system[1] + turns[1][1]), *turns[2:]]
        elif self.default_system is not None and roles[:1] != ['system']:
            turns = [('system', self.default_system), *turns]
        return [(role, content.strip()) for role, content in turns] if self.trims == 'turns' else turns

    def _split(self, text: str) -> list[Run]:
        """A piece of the format as runs, its control tokens apart."""
        parts = re.split('(' + '|'.join(map(re.escape, self.marks)) + ')', text)
        return [Run(part, number % 2 == 1, False) for number, part in enumerate(parts) if part]


def _joined(runs: list[Run]) -> list[Run]:
    """Neighbouring texts as one, because they are encoded as one, but never across what is learned; none is empty."""
    made: list[Run] = []
    for run in runs:
        if made and not run.is_mark and not made[-1].is_mark and run.learned == made[-1].learned:
            made[-1] = run._replace(text=made[-1].text + run.text)
        elif run.text:
            made.append(run)
    return made


def _chatml(name: str, default_system: str | None = None, thought: str = '') -> ChatFormat:
    return ChatFormat(name=name, marks=('<|im_start|>', '<|im_end|>'), system=('<|im_start|>system\n', '<|im_end|>\n'),
                      user=('<|im_start|>user\n', '<|im_end|>\n'), answer='<|im_start|>assistant\n', end='<|im_end|>',
                      after='\n', default_system=default_system, thought=thought)


def _llama3(name: str, before_system: str = '', default_system: str | None = None) -> ChatFormat:
    def head(role):
        return f'<|start_header_id|>{role}<|end_header_id|>\n\n'
    return ChatFormat(name=name, marks=(BOS, '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'), begin=BOS,
                      system=(head('system') + before_system, '<|eot_id|>'), user=(head('user'), '<|eot_id|>'),
                      answer=head('assistant'), end='<|eot_id|>', default_system=default_system, trims='contents')


def _gemma(name: str, system: tuple[str, str] | None) -> ChatFormat:
    return ChatFormat(name=name, marks=(BOS, '<start_of_turn>', '<end_of_turn>'), begin=BOS, system=system,
                      user=('<start_of_turn>user\n', '<end_of_turn>\n'), answer='<start_of_turn>model\n',
                      end='<end_of_turn>', after='\n', in_user=system is not None, trims='contents', alternates=True)


def _mistral(name: str, after: str) -> ChatFormat:
    return ChatFormat(name=name, marks=(BOS, EOS), begin=BOS, user=('[INST] ', ' [/INST]'), end=EOS, after=after,
                      alternates=True)


# Ours: bos, then each message: its role's mark, its content; eos after each answer.
QUARTET = ChatFormat(name='quartet-1', marks=('<|bos|>', '<|system|>', '<|user|>', '<|assistant|>', '<|eos|>'),
                     begin='<|bos|>', system=('<|system|>', ''), user=('<|user|>', ''), answer='<|assistant|>',
                     end='<|eos|>')
_DATE = 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n'  # the date that the template falls back on
FORMATS = {form.name: form for form in (
    QUARTET,
    _chatml('chatml'),
    _chatml('smollm2', 'You are a helpful AI assistant named SmolLM, trained by Hugging Face'),
    _chatml('qwen2', 'You are a helpful assistant.'),
    _chatml('qwen2.5', 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.'),
    _chatml('qwen3', thought='<think>\n\n</think>\n\n'),
    _llama3('llama3'),
    _llama3('llama3.1', _DATE, ''),
    _gemma('gemma', None),
    _gemma('gemma3', ('', '\n\n')),
    _mistral('mistral-v0.1', ' '),
    _mistral('mistral-v0.2', ''),
    ChatFormat(name='llama2', marks=(BOS, EOS), system=('<<SYS>>\n', '\n<</SYS>>\n\n'),
               user=(BOS + '[INST] ', ' [/INST]'), said=(' ', ' '), end=EOS, in_user=True, trims='turns',
               alternates=True),
    ChatFormat(name='zephyr', marks=(EOS,), system=('<|system|>\n', EOS + '\n'), user=('<|user|>\n', EOS + '\n'),
               answer='<|assistant|>\n', end=EOS, after='\n'),
)}
# SHA-256 of the Jinja templates that write one of these, as models were released with them: with line ends in their
# texts as such or as \n, and with or without one after the last line. llama3.1 is also Llama 3.2's, which has the day's
# date where it is not told another; here the date is always the same.
# An entry is proven by a text with that hash: rendered in Jinja's sandbox as transformers does, on chats of every order
# of roles and of hard contents, with and without a prompt for an answer, it gave what `runs` and `prompt` give, or they
# refuse the chat. The texts are not ours and are not kept here; an entry without that proof does not belong here.
KNOWN: dict[str, str] = {
    '153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3': 'chatml',
    'fcf7a096fe99a48fd9ad2b250bf9237e96e8f48bffec1c7ea4d3f225176cd40e': 'chatml',
    '872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788': 'smollm2',
    'de9cde7d1b0ca0cc87459a6673e0d12fb89c070bdb24e4a30b6e4d187b226221': 'smollm2',
    '793202280c0910ab26bc6eb57c8212c2417324c6d8c4efd0d10d59092ab3e3eb': 'qwen2',
    'f0206845c9ebc3abb4735d44f286eb81ce99238ad2accc710c6fc60e6cb8ccc8': 'qwen2',
    '55b2f4a26ac9ee719330a61a0c39d9e538b0e9322212f048326318cff4f8674a': 'qwen2.5',
    'cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f': 'qwen2.5',
    'a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8': 'qwen3',
    'e132ae041e1217b5e1114eb9dc292484a7f478df945d72fa49ba01b88d8ec01a': 'qwen3',
    '4f46ecd43418f216df8c26936c60e5d04bcc81db47db5d86fbe889f64212dd4c': 'llama3',
    'ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122': 'llama3',
    '5816fce10444e03c2e9ee1ef8a4a1ea61ae7e69e438613f3b17b69d0426223a4': 'llama3.1',
    '93c0e9aa3629bbd77e68dbc0f5621f6e6b23aa8d74b932595cdb8d64684526d7': 'llama3.1',
    'd82792f95932f1c9cef5c4bd992f171225e3bf8c7b609b4557c9e1ec96be819f': 'llama3.1',
    'e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65': 'llama3.1',
    '1e51d5c0fec2f83da1953fb850b7b532b7da02d0dc35f9201e671e0b9a35a123': 'gemma',
    'ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6': 'gemma',
    '7de1c58e208eda46e9c7f86397df37ec49883aeece39fb961e0a6b24088dd3c4': 'gemma3',
    '8d9e3a3c114fb2053ec500184677af4f7e5f8ec2582443cd535834e68b3ade29': 'gemma3',
    '26a59556925c987317ce5291811ba3b7f32ec4c647c400c6cc7e3a9993007ba7': 'mistral-v0.2',
    '5951babac5d8025290ba7b3167799edc85091ba3f1617a4604cfed71421159cb': 'mistral-v0.1',
    '7e995b379ec01747807246483647cd99030abf331653f1119e16d7ac041a3495': 'mistral-v0.1',
    '1623de5159d584da0b6c78f86ae57b2328746122f2c58446ab7f84bce8c7c57f': 'llama2',
    '17b9854f459dd1e767c9a01a117f61fc1ddf30ca7e5fdd450e4ea20933f7933c': 'llama2',
    '9780fae5bfea3cfd7be37d328c6edfd296a8869be8131495bbe7eb37e780c88c': 'llama2',
    'e8d5b5a546d3f19df16a5320c614fab05bdc4edd50e850f1afd947b503ea41cf': 'llama2',
    '4f39e3a4b9e3d369b42fd00d93a78f171914bb4e58ec84fc420433d7a153288a': 'zephyr',
    '66291cf0045c2425a3a667cf3cbb7af2b11f09e025c02f97245323ab79119362': 'zephyr',
}


def recognise(template: str) -> ChatFormat | None:
    """The format that a Jinja template writes, where it is exactly one of those known here, or of our own."""
    name = KNOWN.get(hashlib.sha256(template.encode()).hexdigest())
    return FORMATS[name] if name else _by_jinja().get(template)


def jinja(form: ChatFormat) -> str:
    """A Jinja template of our own that writes this format, for people who read it with transformers."""
    content = "message['content']" + (' | trim' if form.trims else '')
    system = _say(form.system[0], content, form.system[1]) if form.system else (
        "{{ raise_exception('this chat format has no system message') }}")
    user = _say(form.user[0], content, form.user[1])
    if form.in_user:  # the system message is told with the message after it
        told = ' ~ '.join(filter(None, [
            _quoted(form.system[0]), "messages[0]['content']", _quoted(form.system[1]),
            f'({content})' if form.trims == 'contents' else "message['content']"]))
        first = _say(form.user[0], f'({told})' + ('' if form.trims == 'contents' else ' | trim'), form.user[1])
        system, user = '', ("{% if loop.index0 == 1 and messages[0]['role'] == 'system' %}" + first
                            + '{% else %}' + user + '{% endif %}')
    default = '' if form.default_system is None else (
        "{% if messages[0]['role'] != 'system' %}" + _say(form.system[0] + form.default_system + form.system[1], '', '')
        + '{% endif %}')
    answer = _say(form.answer + form.said[0], content, form.said[1] + form.end + form.after)
    if form.thought:
        answer = ('{% if loop.last %}' + _say(form.answer + form.thought, "message['content'].lstrip('\\n')",
                                              form.end + form.after) + '{% else %}' + answer + '{% endif %}')
    return (_say(form.begin, '', '') + default + '{% for message in messages %}'
            + "{% if message['role'] == 'system' %}" + system + "{% elif message['role'] == 'user' %}" + user
            + '{% else %}' + answer + '{% endif %}{% endfor %}'
            + '{% if add_generation_prompt %}' + _say(form.answer, '', '') + '{% endif %}')


@functools.cache
def _by_jinja() -> dict[str, ChatFormat]:
    return {jinja(form): form for form in FORMATS.values()}


def _say(before: str, expression: str, after: str) -> str:
    """What writes a text, the value of an expression and a text; of these, those that are not empty."""
    parts = [_quoted(before), f'({expression})' if expression else '', _quoted(after)]
    return '{{ ' + ' ~ '.join(filter(None, parts)) + ' }}' if any(parts) else ''


def _quoted(text: str) -> str:
    """A Jinja expression of a text, with the tokenizer's own tokens by their variables."""
    variables = {BOS: 'bos_token', EOS: 'eos_token'}
    parts = [part for part in re.split(f'({re.escape(BOS)}|{re.escape(EOS)})', text) if part]
    escapes = str.maketrans({'\\': '\\\\', "'": "\\'", '\n': '\\n'})
    return ' ~ '.join(variables.get(part) or f"'{part.translate(escapes)}'" for part in parts)

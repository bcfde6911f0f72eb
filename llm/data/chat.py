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
                made += [*self._split(self.answer), *self.answered(content, goes_on=goes_on and number == len(turns))]
            else:
                made += self._told(role, content)
            before = role
        return _joined(made)

    def prompt(self, messages: list[dict[str, str]]) -> list[Run]:
        """A chat up to where the policy goes on: before its answer, or after the beginning of one that it is given."""
        if messages and messages[-1]['role'] == 'assistant':
            return self.runs(messages, goes_on=True)
        return _joined([*self.runs(messages), *self._split(self.answer)])

    def answered(self, content: str, *, goes_on: bool = False) -> list[Run]:
        """An answer and its end."""
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


def _chatml(name: str, default_system: str | None = None) -> ChatFormat:
    return ChatFormat(name=name, marks=('<|im_start|>', '<|im_end|>'), system=('<|im_start|>system\n', '<|im_end|>\n'),
                      user=('<|im_start|>user\n', '<|im_end|>\n'), answer='<|im_start|>assistant\n', end='<|im_end|>',
                      after='\n', default_system=default_system)


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
    _llama3('llama3'),
    _llama3('llama3.1', _DATE, ''),
    _gemma('gemma', None),
    _gemma('gemma3', ('', '\n\n')),
    _mistral('mistral-v0.1', ' '),
    _mistral('mistral-v0.2', ''),
    ChatFormat(name='llama2', marks=(BOS, EOS), system=('<<SYS>>\n', '\n<</SYS>>\n\n'),
               user=(BOS + '[INST] ', ' [/INST]'), said=(' ', ' '), end=EOS, in_user=True, trims='turns', alternates=True),
    ChatFormat(name='zephyr', marks=(EOS,), system=('<|system|>\n', EOS + '\n'), user=('<|user|>\n', EOS + '\n'),
               answer='<|assistant|>\n', end=EOS, after='\n'),
)}
# SHA-256 of the Jinja templates that write one of these, as models were released with them.
_KNOWN: dict[str, str] = {
}


def recognise(template: str) -> ChatFormat | None:
    """The format that a Jinja template writes, where it is exactly one of those known here, or of our own."""
    name = _KNOWN.get(hashlib.sha256(template.encode()).hexdigest())
    return FORMATS[name] if name else _by_jinja().get(template)


def jinja(form: ChatFormat) -> str:
    """A Jinja template of our own that writes this format, for people who read it with transformers."""
    content = "message['content']" + (' | trim' if form.trims else '')
    system = _say(form.system[0], content, form.system[1]) if form.system else (
        "{{ raise_exception('this chat format has no system message') }}")
    user = _say(form.user[0], content, form.user[1])
    if form.in_user:  # the system message is told with the message after it
        told = f"{_quoted(form.system[0])} ~ messages[0]['content'] ~ {_quoted(form.system[1])} ~ "
        told += f"({content})" if form.trims == 'contents' else "message['content']"
        first = _say(form.user[0], f'({told})' + ('' if form.trims == 'contents' else ' | trim'), form.user[1])
        system, user = '', ("{% if loop.index0 == 1 and messages[0]['role'] == 'system' %}" + first
                            + '{% else %}' + user + '{% endif %}')
    default = '' if form.default_system is None else (
        "{% if messages[0]['role'] != 'system' %}" + _say(form.system[0] + form.default_system + form.system[1], '', '')
        + '{% endif %}')
    answer = _say(form.answer + form.said[0], content, form.said[1] + form.end + form.after)
    return (_say(form.begin, '', '') + default + '{% for message in messages %}'
            + "{% if message['role'] == 'system' %}" + system + "{% elif message['role'] == 'user' %}" + user
            + '{% else %}' + answer + '{% endif %}{% endfor %}'
            + '{% if add_generation_prompt %}' + _say(form.answer, '', '') + '{% endif %}')


@functools.cache
def _by_jinja() -> dict[str, ChatFormat]:
    return {jinja(form): form for form in FORMATS.values()}


def _say(before: str, expression: str, after: str) -> str:
    """What writes a text, the value of an expression (none where it is empty) and a text."""
    parts = [_quoted(before) if before else '', f'({expression})' if expression else '', _quoted(after) if after else '']
    return '{{ ' + ' ~ '.join(filter(None, parts)) + ' }}' if any(parts) else ''


def _quoted(text: str) -> str:
    """A Jinja expression of a text, with the tokenizer's own tokens by their variables."""
    variables = {BOS: 'bos_token', EOS: 'eos_token'}
    parts = [part for part in re.split(f'({re.escape(BOS)}|{re.escape(EOS)})', text) if part]
    escapes = str.maketrans({'\\': '\\\\', "'": "\\'", '\n': '\\n'})
    return ' ~ '.join(variables.get(part) or f"'{part.translate(escapes)}'" for part in parts) or "''"

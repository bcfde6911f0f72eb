"""SentencePiece, and the only home of special tokens and of the chat template.

In: texts, chats (lists of {'role', 'content'}). Out: token ids, with 1 beside each token that is learned.
Left out: where texts come from (`sources.py`), packing (`prepare.py`).

Users' text never becomes a control token: SentencePiece matches control and byte pieces by id alone, so
'<|eos|>' in a text is encoded as its seven characters are.
"""

from collections.abc import Iterable, Iterator
import hashlib
import io
import itertools
import os
from typing import Any

from etils import epath
import numpy as np
import sentencepiece

from llm.errors import UserError

ROLES = ('system', 'user', 'assistant')
SPECIAL = ('pad', 'bos', 'eos', 'unk', *ROLES)  # a special token's id in our own tokenizers is its place here
CHAT_TEMPLATE = 'quartet-1'  # bos, then each message: its role's mark, its content; eos after each answer

# SentencePiece writes a space as this character and would decode the character itself as a space.
_SPACE_MARK = '\u2581'


def piece_of(name: str) -> str:
    """The piece of a special token, as it stands in the SentencePiece model."""
    return f'<|{name}|>'


def train(texts: Iterable[str], vocab_size: int, train_bytes: int, path: str) -> None:
    """Trains BPE with byte fallback on the first `train_bytes` bytes of `texts`; writes the model to `path`.

    No normalisation, no dummy prefix: decode(encode(text)) == text for every text.
    Raises UserError where the text is too little for `vocab_size` pieces.
    """
    model = io.BytesIO()
    # Read before: SentencePiece makes its own error of one that comes out of an iterator.
    sentences = list(_first_bytes(texts, train_bytes))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, model_type='bpe',
            vocab_size=vocab_size, byte_fallback=True, normalization_rule_name='identity',
            add_dummy_prefix=False, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            split_digits=True, max_sentence_length=2**30, minloglevel=2,
            control_symbols=[piece_of(name) for name in ROLES],
            **{f'{name}_id': SPECIAL.index(name) for name in ('pad', 'bos', 'eos', 'unk')},
            **{f'{name}_piece': piece_of(name) for name in ('pad', 'bos', 'eos', 'unk')})
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f'vocab_size={vocab_size}: SentencePiece could not train on this text ({reason}); '
                        'use another vocab_size or more text') from None
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f'{target.name}.{os.getpid()}.partial'
    partial.write_bytes(model.getvalue())
    partial.replace(target)


def _first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        data = text.encode()[:limit]
        limit -= len(data)
        # An empty sentence ends SentencePiece's iterator early in some versions: skip it.
        if data:
            yield data.decode(errors='ignore')
        if limit <= 0:
            return


class Tokenizer:
    """A SentencePiece model with the special tokens of `SPECIAL`.

    Attributes: vocab_size; sha256 of the model's bytes; special_ids, name -> id; chat_template, its name;
    token_bytes_V, int64, UTF-8 bytes that each token stands for (0 for special tokens).
    """

    def __init__(self, model: bytes, where: str = 'the tokenizer'):
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise UserError(f'tokenizer.path={where} is not a SentencePiece model; name one') from None
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocab_size = len(self._model)
        self.chat_template = CHAT_TEMPLATE
        self.special_ids = {name: self._model.piece_to_id(piece_of(name)) for name in SPECIAL}
        for name, index in self.special_ids.items():
            if not (self._model.is_unknown(index) if name == 'unk' else self._model.is_control(index)):
                raise UserError(f'tokenizer.path={where} has no control piece {piece_of(name)}; '
                                'leave tokenizer.path empty to train one that has')
        self.token_bytes_V = np.array([self._num_bytes(i) for i in range(self.vocab_size)], np.int64)
        self._space_mark_ids = [self._model.piece_to_id(f'<0x{byte:02X}>') for byte in _SPACE_MARK.encode()]

    @classmethod
    def from_file(cls, path: str) -> 'Tokenizer':
        """Raises UserError where there is no such file or it is no tokenizer of ours."""
        file = epath.Path(path).expanduser()
        if not file.is_file():
            raise UserError(f'tokenizer.path={path} does not exist; name a SentencePiece .model file')
        return cls(file.read_bytes(), path)

    def describe(self) -> dict[str, Any]:
        """What a manifest says of the tokenizer."""
        return {'sha256': self.sha256, 'vocab_size': self.vocab_size, 'special_ids': self.special_ids,
                'chat_template': self.chat_template}

    def _num_bytes(self, index: int) -> int:
        if self._model.is_control(index) or self._model.is_unknown(index):
            return 0
        if self._model.is_byte(index):
            return 1
        return len(self._model.id_to_piece(index).replace(_SPACE_MARK, ' ').encode())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, never a special token's."""
        if _SPACE_MARK not in text:
            return self._model.encode(text)
        ids = []
        for number, part in enumerate(text.split(_SPACE_MARK)):
            ids += (self._space_mark_ids if number else []) + self._model.encode(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special tokens are left out, and bytes that are not UTF-8 become U+FFFD."""
        return self._model.decode([int(index) for index in ids])

    def show(self, ids: Iterable[int]) -> str:
        """The text of the ids for a person to read, with special tokens by name and padding left out."""
        names = {index: piece_of(name) for name, index in self.special_ids.items()}
        names[self.special_ids['pad']] = ''
        groups = itertools.groupby((int(index) for index in ids), key=names.get)
        return ''.join(name * len(list(group)) if name is not None else self.decode(group)
                       for name, group in groups)

    def encode_document(self, text: str) -> tuple[list[int], list[int]]:
        """(ids, learn) of bos text eos; learn is 1 on every token but bos."""
        ids = [self.special_ids['bos'], *self.encode(text), self.special_ids['eos']]
        return ids, [0] + [1] * (len(ids) - 1)

    def encode_chat(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        """(ids, learn) of a chat; learn is 1 on what the assistant says and on the eos after it."""
        ids, learn = [self.special_ids['bos']], [0]
        for message in messages:
            content = self.encode(message['content'])
            answers = message['role'] == 'assistant'
            end = [self.special_ids['eos']] if answers else []
            ids += [self.special_ids[message['role']], *content, *end]
            learn += [0] + ([1] * (len(content) + 1) if answers else [0] * len(content))
        return ids, learn

    def encode_prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids up to where the policy's first token comes: the assistant's mark, or the beginning it is given.

        encode_prompt(messages) + encode_answer(answer) are the ids of the whole chat, when the last message
        is not the assistant's.
        """
        if messages and messages[-1]['role'] == 'assistant':
            return self.encode_chat(messages)[0][:-1]
        return self.encode_chat(messages)[0] + [self.special_ids['assistant']]

    def encode_answer(self, text: str) -> list[int]:
        """Ids of an answer and its eos."""
        return self.encode(text) + [self.special_ids['eos']]

"""Text to token ids and back, by the two libraries that can: sentencepiece and tokenizers.

In: a SentencePiece model, or a `tokenizer.json`, as bytes. Out: ids of texts, texts of ids, which ids are control
tokens, how many bytes each token stands for.
Left out: what control tokens mean, chats, documents (`tokenizer.py`); where the bytes come from (`foreign.py`).

Users' text never becomes a control token: SentencePiece matches control pieces by id alone, tokenizers is told not to
look for special tokens, and where a text's own pieces would still add up to one, the text is cut inside them.
"""

from collections.abc import Iterable
import functools
import itertools
import json
import re
from typing import Any

import numpy as np
import sentencepiece
import tokenizers

from llm.data import json_file
from llm.errors import UserError

_SPACE_MARK = '\u2581'  # how SentencePiece writes a space
_SPACES = ('', ' ', _SPACE_MARK)
_MOST_TOKENS = 2**24  # ids claimed beyond that would be memory, not tokens
_BYTE_PIECE = re.compile(r'<0x[0-9A-F]{2}>')
# Appended to a model: normalizer_spec { add_dummy_prefix: false }; a later field of protobuf overrides an earlier one.
_NO_DUMMY_PREFIX = b'\x1a\x02\x18\x00'


class SentencePiece:
    """A SentencePiece model. Raises ValueError where the bytes are none.

    Attributes: vocab_size; names, id -> text of every control token; token_bytes_V, int64, UTF-8 bytes that each token
    stands for (0 for control tokens); unk_id, or None; roles, 'bos' and the like -> the text of the model's own; begin,
    ids that it puts before a document.
    """

    def __init__(self, model: bytes, marks: Iterable[str] = (), *, exact: bool = False, scheme: str = ''):
        """`marks` are control tokens besides those that the model calls so; `exact`: decode(encode(x)) == x.

        `scheme`: what texts get the model's space before them, as for `TokenizerJson`; '': the first.
        """
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
            self._rest = sentencepiece.SentencePieceProcessor(model_proto=model + _NO_DUMMY_PREFIX)
        except RuntimeError:
            raise ValueError('it is not a SentencePiece model') from None
        self.vocab_size = len(self._model)
        self.unk_id = self._model.unk_id() if self._model.unk_id() >= 0 else None
        self.roles = {role: self._model.id_to_piece(index) for role, index in (
            ('bos', self._model.bos_id()), ('eos', self._model.eos_id()), ('pad', self._model.pad_id())) if index >= 0}
        self._scheme = scheme
        self.begin = [self._model.bos_id()] if self._model.bos_id() >= 0 else []
        chosen = {self._model.piece_to_id(mark) for mark in marks} - {self.unk_id}
        self._hidden = {index for index in chosen if not self._model.is_control(index)}
        self.names = {index: self._model.id_to_piece(index) for index in range(self.vocab_size)
                      if self._model.is_control(index) or index in chosen}
        matched = sorted(self.names[index] for index in self._hidden)
        self._matched = re.compile('|'.join(map(re.escape, matched))) if matched else None
        self._space_mark_ids = [self._model.piece_to_id(f'<0x{byte:02X}>')
                                for byte in _SPACE_MARK.encode()] if exact else None
        self.token_bytes_V = np.array([self._num_bytes(i) for i in range(self.vocab_size)], np.int64)

    def _num_bytes(self, index: int) -> int:
        if index in self.names or self._model.is_unknown(index):
            return 0
        if self._model.is_byte(index):
            return 1
        return len(self._model.id_to_piece(index).replace(_SPACE_MARK, ' ').encode())

    def id_of(self, token: str) -> int | None:
        """The id of a token by its text, or None."""
        index = self._model.piece_to_id(token)
        return index if self._model.id_to_piece(index) == token else None

    def encode(self, text: str, *, first: bool = True) -> list[int]:
        """Ids of a text; `first`: it stands at the beginning, where some models put a space before it."""
        if self._space_mark_ids and _SPACE_MARK in text:  # which SentencePiece would decode as a space
            parts = text.split(_SPACE_MARK)
            return self.encode(parts[0]) + [index for part in parts[1:]
                                            for index in (*self._space_mark_ids, *self.encode(part))]
        cuts = [match.start() + 1 for match in self._matched.finditer(text)] if self._matched else []
        spaced = first
        if self._scheme:
            spaced = (self._scheme == 'always' or first and self._scheme == 'first') and text[:1] not in _SPACES
        ids: list[int] = []
        for begin, end in itertools.pairwise((0, *cuts, len(text))):
            ids += (self._model if spaced and not begin else self._rest).encode(text[begin:end])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids without control tokens; bytes that are not UTF-8 become U+FFFD."""
        return self._model.decode([index for index in map(int, ids)
                                   if index < self.vocab_size and index not in self._hidden])


class TokenizerJson:
    """A `tokenizer.json`. Raises ValueError where it is none that the library runs.

    The same attributes as `SentencePiece`; truncation and padding that the file asks for are left out.
    """

    def __init__(self, content: bytes, marks: Iterable[str] = (), *, scheme: str = ''):
        """`marks` are control tokens besides those that the file calls special.

        `scheme`: for a vocabulary of SentencePiece's kind, what stands for the file's own way with spaces: Metaspace,
        which puts one before 'always' every text, the 'first' or 'never' one, unless it begins with a space.
        """
        data = json_file.loads(content)
        try:
            self._read(data | {'truncation': None, 'padding': None}, set(marks), scheme)
        except (AttributeError, KeyError, TypeError):
            raise ValueError('it is not as tokenizers writes it') from None

    def _read(self, data: dict[str, Any], marks: set[str], scheme: str) -> None:
        if scheme and 'ByteLevel' not in _kinds(data.get('decoder')):
            data |= {'normalizer': None, 'pre_tokenizer': {
                'type': 'Metaspace', 'replacement': _SPACE_MARK, 'prepend_scheme': scheme, 'split': False}}
        for token in data.get('added_tokens') or ():
            token['special'] = token['special'] or token['content'] in marks
        self._model = _backend(data)
        later = data | {'pre_tokenizer': _without_prefix(data.get('pre_tokenizer'))}
        self._rest = self._model if later == data else _backend(later)
        self._ids = self._model.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._ids.values()) + 1
        if self.vocab_size > _MOST_TOKENS:
            raise ValueError(f'it has a token with id {self.vocab_size - 1}, beyond any vocabulary')
        unknown = data['model'].get('unk_token') or data['model'].get('unk_id')
        unknown = None if unknown in marks else unknown  # it is a control token first, as in GPT-2
        self.unk_id = self._ids.get(unknown) if isinstance(unknown, str) else unknown
        self.roles: dict[str, str] = {}  # the file names none
        special = {token['content'] for token in data.get('added_tokens') or () if token['special']}
        self.names = {self._ids[token]: token for token in {*special, *marks} if token in self._ids}
        self._forbidden = set(self.names) - {self.unk_id}
        kinds = set(_kinds(data.get('decoder')))
        self.token_bytes_V = np.zeros(self.vocab_size, np.int64)
        for token, index in self._ids.items():
            if index not in self.names and index != self.unk_id:
                self.token_bytes_V[index] = _num_bytes(token, kinds)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its text, or None."""
        return self._ids.get(token)

    @functools.cached_property
    def begin(self) -> list[int]:
        """Ids that the file itself puts before a text."""
        whole = self._model.encode('a', add_special_tokens=True)
        return list(itertools.takewhile(lambda index: index in self.names, whole.ids))

    def encode(self, text: str, *, first: bool = True) -> list[int]:
        """Ids of a text; `first`: it stands at the beginning, where some models put a space before it."""
        found = (self._model if first else self._rest).encode(text, add_special_tokens=False)
        spans = [span for index, span in zip(found.ids, found.offsets) if index in self._forbidden]
        if not spans:
            return found.ids
        if any(end - begin < 2 for begin, end in spans):
            raise UserError(f'a text of {len(text)} characters is encoded as a control token by the tokenizer; '
                            'leave that text out')
        ids: list[int] = []
        for begin, end in itertools.pairwise((0, *(begin + 1 for begin, _ in spans), len(text))):
            ids += self.encode(text[begin:end], first=first and not begin)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids without control tokens; bytes that are not UTF-8 become U+FFFD."""
        return self._model.decode([index for index in map(int, ids) if index not in self._forbidden],
                                  skip_special_tokens=False)


def _backend(data: dict[str, Any]) -> tokenizers.Tokenizer:
    try:
        made = tokenizers.Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # the library raises no narrower class
        raise ValueError(f'tokenizers cannot run it ({str(error).splitlines()[0][:160]})') from None
    made.encode_special_tokens = True
    return made


def _without_prefix(pre_tokenizer: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same without the space before what stands at the beginning."""
    if not pre_tokenizer:
        return pre_tokenizer
    if pre_tokenizer['type'] == 'Metaspace' and pre_tokenizer.get('prepend_scheme') == 'first':
        return pre_tokenizer | {'prepend_scheme': 'never'}
    parts = {key: [_without_prefix(part) for part in value] for key, value in pre_tokenizer.items()
             if key == 'pretokenizers'}
    return pre_tokenizer | parts


def _kinds(decoder: dict[str, Any] | None) -> Iterable[str]:
    """The types of a decoder and of all its parts."""
    if decoder:
        yield decoder['type']
        for part in decoder.get('decoders', ()):
            yield from _kinds(part)


def _num_bytes(token: str, kinds: set[str]) -> int:
    if 'ByteLevel' in kinds:
        return len(token)  # it writes each byte as one character
    if 'WordPiece' in kinds:  # a word's first piece stands for the space before it too
        return len(token[2:].encode()) if token.startswith('##') else len(token.encode()) + 1
    if 'ByteFallback' in kinds and _BYTE_PIECE.fullmatch(token):
        return 1
    return len(token.replace(_SPACE_MARK, ' ').encode())

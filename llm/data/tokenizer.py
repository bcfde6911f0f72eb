"""The one interface to token ids that every stage uses, and the training of our own tokenizer.

In: texts, chats (lists of {'role', 'content'}). Out: token ids, with 1 beside each token that is learned.
Left out: the libraries (`codecs.py`), chat formats (`chat.py`), other people's files (`foreign.py`), where texts come
from (`sources.py`), packing (`prepare.py`).

Users' text never becomes a control token: '<|eos|>' in a text is encoded as its seven characters are.
"""

from collections.abc import Iterable, Iterator, Mapping
import hashlib
import io
import itertools
import os
from typing import Any

from etils import epath
import sentencepiece

from llm.data import foreign
from llm.data.chat import ChatFormat, FORMATS, QUARTET, ROLES, Run
from llm.data.codecs import SentencePiece
from llm.errors import UserError

SPECIAL = ('pad', 'bos', 'eos', 'unk', *ROLES)  # a special token's id in our own tokenizers is its place here
OWN, FOREIGN = 'tokenizer.model', 'tokenizer'  # in a run's folder: our own model's file, a foreign one's folder


def piece_of(name: str) -> str:
    """The piece of a special token, as it stands in the SentencePiece model."""
    return f'<|{name}|>'


def train(texts: Iterable[str], vocab_size: int, train_bytes: int, path: str, *, kind: str = 'bpe') -> None:
    """Trains on the first `train_bytes` bytes of `texts`; writes the model to `path`.

    No normalisation, no dummy prefix. kind: 'bpe', with byte fallback: decode(encode(text)) == text for every text;
    'char', len(SPECIAL) control tokens and one for each of the most frequent characters; any other, and U+2581, which
    stands for the space in SentencePiece, is unknown.
    Raises UserError where the text is too little for `vocab_size` pieces.
    """
    model = io.BytesIO()
    # Read before: SentencePiece makes its own error of one that comes out of an iterator.
    sentences = list(_first_bytes(texts, train_bytes))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, model_type=kind,
            vocab_size=vocab_size, byte_fallback=kind == 'bpe', normalization_rule_name='identity',
            character_coverage=0.9995 if kind == 'bpe' else 1.0,  # what BPE leaves out becomes bytes
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


def place(folder: epath.PathLike) -> epath.Path:
    """Where a run's tokenizer is: the folder of a foreign one where that is there, else the file of our own."""
    theirs = epath.Path(folder) / FOREIGN
    return theirs if any((theirs / name).exists() for name in foreign.MODELS) else epath.Path(folder) / OWN


def install(path: str, folder: epath.Path) -> None:
    """Copies a tokenizer, as `Tokenizer.from_path` takes it, into a run's folder; raises UserError for a bad one."""
    source = epath.Path(path).expanduser()
    Tokenizer.from_path(path)
    if source.is_dir():
        foreign.save(foreign.gather(source), folder / FOREIGN)
    else:
        (folder / OWN).write_bytes(source.read_bytes())


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
    """Texts and chats as token ids, by our own SentencePiece model or by somebody else's tokenizer.

    Attributes: vocab_size; sha256 of the model's bytes, or of all files of a foreign one; foreign, whether it is one;
    special_ids, name -> id, where 'eos' ends an answer; chat_template, the chat format's name; token_bytes_V, int64,
    UTF-8 bytes that each token stands for (0 for control tokens).
    """

    def __init__(self, its: foreign.Parts, *, is_foreign: bool):
        self._codec, self._chat, self._begin, self._end = its.codec, its.chat, its.begin, its.end
        self.special_ids, self.chat_template, self.sha256 = its.special_ids, its.chat_template, its.sha256
        self.vocab_size, self.token_bytes_V = its.codec.vocab_size, its.codec.token_bytes_V
        self.foreign = is_foreign

    @classmethod
    def from_file(cls, path: str) -> 'Tokenizer':
        """Raises UserError where there is no such file or it is no tokenizer of ours."""
        file = epath.Path(path).expanduser()
        if not file.is_file():
            raise UserError(f'tokenizer.path={path} does not exist; name a SentencePiece .model file, or a folder '
                            'with a tokenizer')
        model = file.read_bytes()
        try:
            codec = SentencePiece(model, exact=True)
        except ValueError:
            raise UserError(f'tokenizer.path={path} is not a SentencePiece model; name one') from None
        ids = {name: codec.id_of(piece_of(name)) for name in SPECIAL}
        for name, index in ids.items():
            if index is None or (index != codec.unk_id if name == 'unk' else index not in codec.names):
                raise UserError(f'tokenizer.path={path} has no control piece {piece_of(name)}; '
                                'leave tokenizer.path empty to train one that has')
        return cls(foreign.Parts(codec, ids, [ids['bos']], [ids['eos']], QUARTET, QUARTET.name,
                                 hashlib.sha256(model).hexdigest()), is_foreign=False)

    @classmethod
    def from_path(cls, path: str) -> 'Tokenizer':
        """One of ours by its file, or a foreign one by its folder."""
        folder = epath.Path(path).expanduser()
        return cls.from_files(foreign.gather(folder), path) if folder.is_dir() else cls.from_file(path)

    @classmethod
    def from_folder(cls, folder: epath.PathLike) -> 'Tokenizer':
        """The tokenizer of a run, by the run's folder."""
        return cls.from_path(str(place(folder)))

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], where: str) -> 'Tokenizer':
        """A foreign one, of the files that `foreign.gather` or `converted.from_gguf` gave."""
        return cls(foreign.parts(files, where), is_foreign=True)

    def describe(self) -> dict[str, Any]:
        """What a manifest says of the tokenizer."""
        return {'sha256': self.sha256, 'vocab_size': self.vocab_size, 'special_ids': self.special_ids,
                'chat_template': self.chat_template}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, never a special token's."""
        return self._codec.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special tokens are left out, and bytes that are not UTF-8 become U+FFFD."""
        return self._codec.decode(ids)

    def show(self, ids: Iterable[int]) -> str:
        """The text of the ids for a person to read, with special tokens by name and padding left out."""
        names = dict(self._codec.names)
        if self.special_ids['pad'] not in self._end:
            names[self.special_ids['pad']] = ''
        groups = itertools.groupby((int(index) for index in ids), key=names.get)
        return ''.join(name * len(list(group)) if name is not None else self.decode(group)
                       for name, group in groups)

    def encode_document(self, text: str) -> tuple[list[int], list[int]]:
        """(ids, learn) of bos text eos; learn is 1 on every token but bos.

        A foreign tokenizer has what it puts before a text itself for bos, or else the end of the document before.
        """
        ids = [*self._begin, *self.encode(text), *self._end]
        return ids, [0] * len(self._begin) + [1] * (len(ids) - len(self._begin))

    def encode_chat(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        """(ids, learn) of a chat; learn is 1 on what the assistant says and on the eos after it."""
        return self._coded(self._format.runs(messages))

    def encode_prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids up to where the policy's first token comes: the assistant's mark, or the beginning it is given.

        encode_prompt(messages) + encode_answer(answer) are the ids of the whole chat, when the last message
        is not the assistant's.
        """
        return self._coded(self._format.prompt(messages))[0]

    def encode_answer(self, text: str) -> list[int]:
        """Ids of an answer and its eos."""
        return self._coded(self._format.answered(text), first=False)[0]

    def begun(self, prompt: list[int]) -> list[int]:
        """The end of what `encode_prompt` gave: the beginning that an answer was given, mostly none."""
        for cue in (self._coded(runs, first=False)[0] for runs in self._format.cues()):
            for start in range(len(prompt) - len(cue), -1, -1):
                if prompt[start:start + len(cue)] == cue:
                    return prompt[start + len(cue):]
        return []

    @property
    def _format(self) -> ChatFormat:
        if self._chat is None:
            has = f'the chat template {self.chat_template}' if self.chat_template else 'no chat template'
            raise UserError(f'the tokenizer has {has}, and templates are never executed; import it with '
                            f'--chat_template=NAME, one of {", ".join(sorted(FORMATS))}')
        return self._chat

    def _coded(self, runs: list[Run], *, first: bool = True) -> tuple[list[int], list[int]]:
        """(ids, learn) of a chat's runs; `first`: nothing stands before them."""
        ids: list[int] = []
        learn: list[int] = []
        for run in runs:
            ids += [self._codec.id_of(run.text)] if run.is_mark else self._codec.encode(
                run.text, first=first and not ids)
            learn += [int(run.learned)] * (len(ids) - len(learn))
        return ids, learn

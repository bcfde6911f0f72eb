"""Other people's tokenizers: the files of a Hugging Face folder, checked, and what they say.

In: a folder with tokenizer.json, tokenizer.model (or spiece.model), or vocab.txt, and beside it tokenizer_config.json,
special_tokens_map.json, chat_template.jinja where they are; or such files out of a GGUF file (`converted.py`).
Out: the files as a run keeps them, in `<run>/tokenizer/`, again such a folder; `Parts` for a `Tokenizer`.
Left out: code that comes with a tokenizer, and templates: nothing of either is ever executed.
"""

from collections.abc import Mapping
import hashlib
import json
import os
from typing import Any, NamedTuple

from etils import epath

from llm.data import chat
from llm.data import converted
from llm.data import json_file
from llm.data.codecs import SentencePiece, TokenizerJson
from llm.errors import UserError
from llm.identity import digest

MODELS = ('tokenizer.json', 'tokenizer.model')  # one of them is in a run's folder; the first, where a source has both
BESIDE = ('tokenizer_config.json', 'special_tokens_map.json', 'chat_template.jinja')
_SOURCES = {'tokenizer.json': 'tokenizer.json', 'tokenizer.model': 'tokenizer.model', 'spiece.model': 'tokenizer.model',
            'vocab.txt': 'tokenizer.json'}  # what a folder has, the first that is there -> what a run keeps of it
_MOST_BYTES = 128 * 2**20  # four times the largest tokenizer.json that we know of
_ROLES = ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')
# What the classes of transformers call them where no file does; only those that the tokenizer has are taken.
_CUSTOMS = {'bos': ('<s>', '<bos>', '<|endoftext|>'), 'eos': ('</s>', '<eos>', '<|endoftext|>'),
            'sep': ('[SEP]', '<sep>'), 'pad': ('[PAD]', '<pad>'), 'cls': ('[CLS]', '<cls>'),
            'mask': ('[MASK]', '<mask>')}


class Parts(NamedTuple):
    """What a tokenizer consists of."""

    codec: SentencePiece | TokenizerJson
    special_ids: dict[str, int]  # 'pad', 'bos', 'eos' (the end of an answer), and 'unk', 'mask' where there are
    begin: list[int]  # ids before a document
    end: list[int]  # ids after it
    chat: chat.ChatFormat | None
    chat_template: str  # the format's name; '' where there is no template, 'unknown-' and a hash for one not known
    sha256: str


def sources(folder: epath.Path) -> list[epath.Path]:
    """The files of a folder that `gather` makes a tokenizer of, the model first; raises UserError where it has none."""
    model = next((name for name in _SOURCES if (folder / name).is_file()), None)
    if model is None:
        raise UserError(f'{folder} has no tokenizer; name a folder with tokenizer.json, tokenizer.model or vocab.txt')
    return [folder / name for name in (model, *BESIDE) if (folder / name).is_file()]


def gather(folder: epath.Path) -> dict[str, bytes]:
    """A folder's tokenizer files, by the names under which a run keeps them; raises UserError where it has none."""
    model, *beside = sources(folder)
    files = {path.name: _bytes(path) for path in beside}
    if model.name == 'tokenizer.json' and _is_mistral(folder):
        config = _json(files, 'tokenizer_config.json', str(folder))
        files['tokenizer_config.json'] = json.dumps({**config, 'tokenizer_class': 'TokenizersBackend'}).encode()
    content = _bytes(model)
    if model.name == 'vocab.txt':
        content = converted.wordpiece(content, _json(files, 'tokenizer_config.json', str(folder)), str(folder))
    return {_SOURCES[model.name]: content, **files}


def _is_mistral(folder: epath.Path) -> bool:
    """Whether it is a model for which transformers 5 runs tokenizer.json as it is, whatever class the config names."""
    config = {'config.json': _bytes(folder / 'config.json')} if (folder / 'config.json').is_file() else {}
    return str(_json(config, 'config.json', str(folder)).get('model_type')) in ('mistral', 'mixtral', 'ministral')


def with_chat_template(files: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    """The files with the chat format of that name instead of their own."""
    if name not in chat.FORMATS:
        raise UserError(f'chat_template={name} is not known; use one of {", ".join(sorted(chat.FORMATS))}')
    return {**files, 'chat_template.jinja': chat.jinja(chat.FORMATS[name]).encode()}


def with_pad_of_its_own(files: Mapping[str, bytes], where: str) -> tuple[dict[str, bytes], int]:
    """The files with a pad token that is no end of an answer, and its id: for who reads the last token but padding."""
    its = parts(files, where)
    ids = its.special_ids
    if ids['pad'] != ids['eos']:
        return dict(files), ids['pad']
    role = next((role for role in ('unk', 'bos') if ids.get(role, ids['eos']) != ids['eos']), None)
    if role is None:
        raise UserError(f'{where}: the tokenizer pads with the end of an answer, {its.codec.names[ids["eos"]]!r}, and '
                        'has no other control token; train the scorer with a tokenizer that has a pad_token')
    config, also = (_json(files, name, where) for name in BESIDE[:2])
    pad = _declared(config, also, where)['unk'] if role == 'unk' else its.codec.names[ids['bos']]
    changed = {'tokenizer_config.json': config} | ({'special_tokens_map.json': also} if also else {})
    return {**files, **{name: json.dumps(data | {'pad_token': pad}).encode()
                        for name, data in changed.items()}}, ids[role]


def save(files: Mapping[str, bytes], folder: epath.Path) -> None:
    """Writes them where no reader sees half of them: the model, which a reader needs, comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(files, key=lambda name: name in MODELS):
        partial = folder / f'{name}.partial'
        partial.write_bytes(files[name])
        partial.replace(folder / name)


def parts(files: Mapping[str, bytes], where: str) -> Parts:
    """What these files are to us; raises UserError, one line, for whatever in them is damaged or contradicts itself."""
    config = _json(files, 'tokenizer_config.json', where)
    try:
        tokens = _declared(config, _json(files, 'special_tokens_map.json', where), where)
        listed = config.get('added_tokens_decoder') or {}
        added = {int(index): _content(token) or '' for index, token in listed.items()}
        special = _special(config)
    except UserError:
        raise
    except (AttributeError, TypeError, ValueError):
        raise UserError(f'{where}: tokenizer_config.json or special_tokens_map.json is not as transformers writes '
                        'it; restore that file') from None
    template = _template(files, config, where)
    form = chat.recognise(template) if template else None
    marks = {mark for mark in (form.marks if form else ()) if mark not in (chat.BOS, chat.EOS)}
    marks |= special | {token for role, token in tokens.items() if role != 'unk'}
    name = next(name for name in MODELS if name in files)
    try:
        kind = SentencePiece if name == 'tokenizer.model' else TokenizerJson
        codec = kind(files[name], marks, scheme=_scheme(config))
    except ValueError as error:
        raise UserError(f'{where}/{name}: {error}; restore that file') from None
    wrong = [(token, f' with id {index}') for index, token in added.items() if codec.id_of(token) != index]
    wrong += [(token, '') for token in tokens.values() if codec.id_of(token) is None]
    for token, at in wrong:
        raise UserError(f'{where}/{name} has no token {token!r}{at}, which a file beside it names; save the tokenizer '
                        'again with transformers')
    if name == 'tokenizer.json':
        _contradictions(json_file.loads(files[name]), config, where)
    tokens = {**_customary(codec, tokens), **tokens}
    eos, bos = (tokens.get(one) or tokens.get(other) for one, other in (('eos', 'sep'), ('bos', 'cls')))
    if eos is None:
        raise UserError(f'{where} names no eos_token; name one in tokenizer_config.json')
    form = _bound(form, bos or eos, eos, codec, where) if form else None
    ids = {role: codec.id_of(token) for role, token in tokens.items()} | {
        'bos': codec.id_of(bos or eos), 'eos': codec.id_of(form.end if form else eos)}
    pads = (ids.get('pad'), ids.get('unk'), codec.unk_id, codec.id_of(eos))
    ids['pad'] = next(index for index in pads if index is not None)
    begin, end = codec.begin, [codec.id_of(eos)]
    if 'add_bos_token' in config:
        begin = [ids['bos']] if config['add_bos_token'] else []
    unknown = 'unknown-' + hashlib.sha256(template.encode()).hexdigest()[:8] if template else ''
    return Parts(codec, {role: ids[role] for role in ('pad', 'bos', 'eos', 'unk', 'mask') if role in ids},
                 begin or end, end, form, form.name if form else unknown,
                 digest({name: hashlib.sha256(content).hexdigest() for name, content in files.items()}))


def _bound(form: chat.ChatFormat, bos: str, eos: str, codec: SentencePiece | TokenizerJson, where: str
           ) -> chat.ChatFormat:
    """The format with the tokenizer's own tokens; raises UserError where it lacks one as a control token."""
    form = form.bind(bos, eos)
    for mark in form.marks:
        if codec.id_of(mark) not in codec.names:
            raise UserError(f'{where} has the chat template {form.name}, but no control token {mark!r}; use another '
                            'chat template')
    return form


def _bytes(path: epath.Path) -> bytes:
    """A file's content; a link may only go to the folder itself, or, in a cache of the hub, to its blobs."""
    folder, real = os.path.realpath(path.parent), os.path.realpath(path)
    above = os.path.dirname(folder)
    roots = [folder] + [os.path.join(os.path.dirname(above), 'blobs')] * (os.path.basename(above) == 'snapshots')
    if not any(real.startswith(root + os.sep) for root in roots):
        raise UserError(f'{path} is a link to {real}, outside of its folder; put the file itself there')
    size = path.stat().length
    if size > _MOST_BYTES:
        raise UserError(f'{path} has {size} bytes, more than {_MOST_BYTES}: no tokenizer is so large; '
                        'use the released file')
    return path.read_bytes()


def _json(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    try:
        return json_file.loads(files[name]) if name in files else {}
    except ValueError as error:
        raise UserError(f'{where}/{name}: {error}; restore that file') from None


def _content(token: Any) -> str | None:
    """The text of a token that a file names, as itself or with its settings."""
    text = token.get('content') if isinstance(token, dict) else token
    if not isinstance(text, str | None):
        raise UserError(f'a tokenizer file has {text!r} where a token should be; restore that file')
    return text


def _scheme(config: Mapping) -> str:
    """Which texts get a space before them where a class of transformers says so itself; '' where the model's file does.

    It has its own way since version 5: a text that begins with a space gets none.
    """
    if str(config.get('tokenizer_class')).removesuffix('Fast') != 'LlamaTokenizer':
        return ''
    if config.get('add_prefix_space') is False:
        return 'never'
    return 'always' if config.get('legacy') else 'first'


def _declared(config: Mapping, also: Mapping, where: str) -> dict[str, str]:
    """Tokens by role, as the files name them; raises UserError where two files name different ones."""
    found: dict[str, str] = {}
    for role in _ROLES:
        named = [token for token in (_content(data.get(f'{role}_token')) for data in (config, also)) if token]
        if len(set(named)) > 1:
            raise UserError(f'{where}: {role}_token is {named[0]!r} in tokenizer_config.json, {named[1]!r} in '
                            'special_tokens_map.json; make them agree')
        found |= {role: token for token in named}
    return found


def _special(config: Mapping) -> set[str]:
    """Further tokens that a config calls special."""
    listed = [token for key in ('additional_special_tokens', 'extra_special_tokens')
              for token in (config.get(key) or ()) if isinstance(config.get(key), list)]
    added = [token for token in (config.get('added_tokens_decoder') or {}).values()
             if isinstance(token, dict) and token.get('special')]
    return {_content(token) for token in (*listed, *added)} - {None}


def _customary(codec: SentencePiece | TokenizerJson, tokens: Mapping[str, str]) -> dict[str, str]:
    """Tokens by role where no file names any: the model's own, or control tokens of a customary text."""
    if 'eos' in tokens or 'sep' in tokens:
        return {}
    customs = {role: next((name for name in names if codec.id_of(name) in codec.names), None)
               for role, names in _CUSTOMS.items()}
    return {role: token for role, token in (customs | codec.roles).items() if token}


def _template(files: Mapping[str, bytes], config: Mapping, where: str) -> str:
    """The text of the chat template, '' for none; the file counts before the config, as in transformers."""
    if 'chat_template.jinja' in files:
        try:
            return files['chat_template.jinja'].decode()
        except UnicodeDecodeError:
            raise UserError(f'{where}/chat_template.jinja is not UTF-8; restore that file') from None
    template = config.get('chat_template') or ''
    try:
        if isinstance(template, list):  # several by name
            template = next((item['template'] for item in template if item.get('name') == 'default'), '')
        return template.encode().decode()  # no half of a surrogate pair
    except (AttributeError, KeyError, TypeError, UnicodeEncodeError):
        raise UserError(f'{where}/tokenizer_config.json: chat_template is not a text; restore that file') from None


def _contradictions(data: Mapping, config: Mapping, where: str) -> None:
    """Refuses a config that asks for another encoding than tokenizer.json has."""
    normalizer, pre = (data.get(name) or {} for name in ('normalizer', 'pre_tokenizer'))
    if not isinstance(normalizer, dict) or not isinstance(pre, dict):  # which the library does not see by some schemes
        raise UserError(f'{where}/tokenizer.json: its normalizer or pre_tokenizer is not as tokenizers writes it; '
                        'restore that file')
    pairs = {}
    if normalizer.get('type') == 'BertNormalizer':
        pairs = {'do_lower_case': normalizer.get('lowercase'), 'strip_accents': normalizer.get('strip_accents'),
                 'tokenize_chinese_chars': normalizer.get('handle_chinese_chars')}
    if pre.get('type') == 'ByteLevel':
        pairs = {'add_prefix_space': pre.get('add_prefix_space')}
    for key, said in pairs.items():
        if key in config and config[key] is not None and config[key] != said:
            raise UserError(f'{where}/tokenizer_config.json: {key}={config[key]}, but tokenizer.json says {said}; '
                            'make them agree')

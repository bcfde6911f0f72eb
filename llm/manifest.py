"""What a sealed step says of itself, the checks that refuse a parent that does not fit, and the lineage.

In: the fields a stage knows, completed by `checkpoint.py` with the leaves it saved; folders of sealed steps.
Out: `<folder>/<step>.manifest.json`, whose presence means that the step is complete; `Manifest` read back;
one-line `UserError`s; the chain of parents.
Left out: arrays and their verification (`checkpoint.py`).
"""

import dataclasses
import json
from typing import Any

from etils import epath

from llm.errors import UserError
from llm.identity import digest

VERSION = 1
_SUFFIX = '.manifest.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """One sealed step, in plain JSON; `checkpoint.py` fills the fields that have defaults."""

    stage: str
    identity: str  # SHA-256, hex, of what the run's result depends on
    model: dict[str, Any]  # the fields of ModelConfig
    tokenizer: dict[str, Any]  # sha256, vocab_size, special_ids, chat_template
    heads: list[str]  # of 'token', 'scalar'
    reward: dict[str, float] | None  # mean and deviation of a reward model's scores
    objective: str
    data: dict[str, Any]
    seed: int
    mesh: dict[str, int]
    packages: dict[str, str]
    git_commit: str
    parents: dict[str, dict[str, Any]]  # role -> `parent_record`
    version: int = VERSION
    step: int = 0
    best: bool = False
    leaves: dict[str, dict[str, dict]] = dataclasses.field(default_factory=dict)  # item -> path -> shape, ...
    files: dict[str, str] = dataclasses.field(default_factory=dict)  # name -> SHA-256 of canonical JSON
    time: str = ''  # UTC, ISO 8601

    @property
    def fingerprint(self) -> str:
        """One hash over the fingerprints of all leaves."""
        return digest(self.leaves)


def manifest_path(folder: epath.PathLike, step: int) -> epath.Path:
    return epath.Path(folder) / f'{step}{_SUFFIX}'


def sealed_steps(folder: epath.PathLike) -> list[int]:
    """The steps of a folder that have a manifest, oldest first; none where there is no folder."""
    folder = epath.Path(folder)
    if not folder.exists():
        return []
    names = [path.name.removesuffix(_SUFFIX) for path in folder.glob(f'*{_SUFFIX}')]
    return sorted(int(name) for name in names if name.isdecimal())


def write(folder: epath.PathLike, manifest: Manifest) -> None:
    """Writes atomically: a reader sees no file or the whole of it (loss of power apart: no fsync)."""
    fields = dataclasses.asdict(manifest)
    path = manifest_path(folder, manifest.step)
    unfinished = path.parent / f'{path.name}.unfinished'
    unfinished.write_text(json.dumps({'sha256': digest(fields), **fields}, indent=1))
    unfinished.replace(path)


def read(folder: epath.PathLike, step: int) -> Manifest:
    """Raises UserError, one line, for a manifest that is absent, damaged or of another version."""
    path = manifest_path(folder, step)
    try:
        fields = json.loads(path.read_bytes())
        checksum = fields.pop('sha256')
    except FileNotFoundError:
        known = ', '.join(map(str, sealed_steps(folder))) or 'none'
        raise UserError(f'{path} is not there: no such sealed step; use one of these: {known}') from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path} is damaged ({first_line(error)}); use another step') from None
    if fields.get('version') != VERSION:
        raise UserError(f'{path} has version={fields.get("version")!r}, this code reads version={VERSION}; '
                        f'use the code that wrote it')
    known = {field.name for field in dataclasses.fields(Manifest)}
    if fields.keys() != known or digest(fields) != checksum:
        wrong = ', '.join(sorted(fields.keys() ^ known)) or 'its SHA-256 does not match'
        raise UserError(f'{path} is damaged ({wrong}); use another step')
    return Manifest(**fields)


def check_parent(manifest: Manifest, *, key: str, where: str, stages: tuple[str, ...], head: str,
                 model: dict | None = None, tokenizer: dict | None = None) -> None:
    """Refuses a parent that does not fit its child.

    Args:
      manifest: the parent's.
      key: the config key that names the parent, as `init_from`.
      where: what that key says.
      stages: stages that may be parents in this role.
      head: the head the child needs.
      model: what the parent's model config must be, as a dict; None: anything.
      tokenizer: likewise for its tokenizer.

    Raises UserError naming the key, both values and the remedy.
    """
    start = f'{key}={where}:'
    if manifest.stage not in stages:
        raise UserError(f'{start} stage={manifest.stage!r}, wanted {" or ".join(map(repr, stages))}; '
                        f'give a step of such a stage')
    if head not in manifest.heads:
        raise UserError(f'{start} heads={manifest.heads}, wanted {head!r}; give a step that has this head')
    for name, found, wanted in (('tokenizer', manifest.tokenizer, tokenizer),
                                ('model', manifest.model, model)):
        for field in sorted(found.keys() | wanted.keys()) if wanted is not None else ():
            if found.get(field) != wanted.get(field):
                raise UserError(f'{start} {name}.{field}={found.get(field)!r}, wanted {wanted.get(field)!r}; '
                                f'give a parent with the same {name}')


def parse_reference(reference: str, key: str = 'init_from') -> tuple[str, int | None]:
    """`PATH[@step]` -> (path, step or None); `key` is the config key that holds it."""
    path, at, step = reference.rpartition('@')
    if not at or '/' in step:
        return reference, None
    if not path or not step.isdecimal():
        raise UserError(f'{key}={reference!r}: {step!r} after @ is not a step; write PATH or PATH@100')
    return path, int(step)


def parent_record(folder: epath.PathLike, manifest: Manifest) -> dict[str, Any]:
    """What a child keeps of its parent in `Manifest.parents`; `folder` is the one that holds the manifest."""
    return {'path': str(folder), 'stage': manifest.stage, 'identity': manifest.identity,
            'step': manifest.step, 'fingerprint': manifest.fingerprint}


def lineage(folder: epath.PathLike, step: int) -> list[tuple[str, dict[str, Any], Manifest | None]]:
    """A step and all its ancestors, nearest first, as (role, parent_record, manifest).

    The role of a parent's parent is dotted (`reward_from.init_from`). The manifest is None where the recorded
    folder does not hold that step any longer. Raises UserError if the step itself cannot be read.
    """
    manifest = read(folder, step)
    return [('', parent_record(folder, manifest), manifest), *_ancestors('', manifest)]


def lineage_lines(folder: epath.PathLike, step: int) -> list[str]:
    """The lineage for printing, down to the raw data: a line for each ancestor."""
    lines = []
    for role, record, manifest in lineage(folder, step):
        data = 'not found there any longer' if manifest is None else f'data {json.dumps(manifest.data)}'
        lines.append(f'{role or "this step"}: {record["stage"]} {record["path"]}@{record["step"]} '
                     f'identity {record["identity"][:8]} weights {record["fingerprint"][:8]} {data}')
    return lines


def _ancestors(prefix: str, child: Manifest):
    for role, record in child.parents.items():
        try:
            manifest = read(record['path'], record['step'])
        except UserError:
            manifest = None
        if manifest and parent_record(record['path'], manifest) != record:
            manifest = None  # another run lies there now
        yield prefix + role, record, manifest
        if manifest:
            yield from _ancestors(f'{prefix}{role}.', manifest)


def first_line(error: Exception) -> str:
    """What an error says, in one line: its beginning, and its end, where a system's message stands."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].split(' [')[0]
    return line if len(line) <= 240 else f'{line[:80]} ... {line[-150:]}'

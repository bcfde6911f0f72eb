"""What the rows of a sweep run, what they share, and how much of it is there.

In: a config's file, a row's overrides, a workdir. Out: `Row`s, whose stages are known by keys: two stages of one key
are one run; `Finished`, which finds the folders of ended runs.
Left out: starting anything (`schedule`); devices: a row may need others than there are here.
"""

from collections.abc import Callable, Mapping
import dataclasses
import os
from typing import Any

from absl import flags
from etils import epath
from ml_collections import config_flags

from llm.config import DataConfig, StageConfig
from llm.errors import UserError
from llm.identity import digest, identity_dict
from llm.pipeline import parse, topological
from llm.resolve import content, find_parent, identify, references, tokenizer_identity
from llm.run import read_result, Result

Progress = Callable[[str, int, int], None]
Contents = dict[str, dict[str, str]]  # source -> split -> SHA-256


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One call of `llm.main`."""

    number: int  # from 1
    overrides: Mapping[str, Any]
    stages: Mapping[str, StageConfig]  # parents first
    data: Mapping[str, Contents]  # by stage
    keys: Mapping[str, str]  # by stage: what its run depends on, before its parents have chosen a step

    def __str__(self) -> str:
        return f'row {self.number} ({", ".join(f"{key}={value}" for key, value in self.overrides.items())})'

    @property
    def flags(self) -> list[str]:
        return override_flags(self.overrides)

    def value(self, key: str) -> Any:
        """What the row's config says under a key, set by the row or not."""
        if key in self.overrides:
            return self.overrides[key]
        found: Any = {'stages': self.stages} if key.startswith('stages.') else next(iter(self.stages.values()))
        for part in key.split('.'):
            found = found[part] if isinstance(found, Mapping) else getattr(found, part)
        return found


def override_flags(overrides: Mapping[str, Any]) -> list[str]:
    """As `llm.main` takes them: strings bare, everything else as Python writes it."""
    return [f'--config.{key}={value if isinstance(value, str) else repr(value)}' for key, value in overrides.items()]


def read_rows(config: str, rows: list[Mapping[str, Any]], progress: Progress) -> list[Row]:
    """Raises UserError for a row that cannot run, and for two rows that are one run."""
    contents: dict[str, Contents] = {}  # hashing is slow, and rows mostly share their data
    read = []
    for number, overrides in enumerate(rows, 1):
        try:
            read.append(_row(number, config, overrides, contents, progress))
        except UserError as error:
            raise UserError(f'row {number}: {error}') from error
    _check(read)
    return read


def load_config(config: str, overrides: Mapping[str, Any]):
    """The ConfigDict that `llm.main` makes of the same flags."""
    words = ['sweep', f'--config={config}', *override_flags(overrides)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=words)
    values(words)
    values.config.keys()  # a config that could not be loaded complains when it is first used
    return values.config


def _row(number: int, config: str, overrides: Mapping[str, Any], contents: dict[str, Contents],
         progress: Progress) -> Row:
    try:
        loaded = load_config(config, overrides)
    except Exception as error:  # a config file is a program: it may raise anything
        line = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise UserError(f'{dict(overrides)}: {line}') from error
    stages = parse(loaded)
    stages = {name: stages[name] for name in topological(stages)}
    data, keys = {}, {}
    for name, stage in stages.items():
        sections = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
        named = digest([stage.stage, {key: dataclasses.asdict(section) for key, section in sections.items()
                                      if isinstance(section, DataConfig)}])
        if named not in contents:
            contents[named] = content(name, stage, progress)
        data[name] = contents[named]
        keys[name] = _key(name, stage, data[name], keys)
    return Row(number, overrides, stages, data, keys)


def _key(name: str, stage: StageConfig, data: Contents, keys: Mapping[str, str]) -> str:
    parents = {}
    for key, reference in references(name, stage).items():
        if reference.startswith('stage:'):
            parents[key] = keys[reference.removeprefix('stage:')]
        else:
            parent = find_parent(stage.stage, key, reference, {})
            parents[key] = [parent.manifest.identity, parent.step]
    return digest([name, identity_dict(stage), data, None if parents else tokenizer_identity(stage, {}), parents])


def _check(rows: list[Row]) -> None:
    """Rows that share a run must agree on how long it is; and rows that share all runs are not two."""
    length: dict[str, tuple[int, int]] = {}
    same: dict[tuple[str, ...], int] = {}
    for row in rows:
        for name, key in row.keys.items():
            stop = row.stages[name].stop_step
            other, first = length.setdefault(key, (stop, row.number))
            if other != stop:
                raise UserError(f'rows {first} and {row.number} share a run of {name}, with stop_step={other} and '
                                f'{stop}; sweep optim.schedule_steps with it, which makes two runs of it')
        first = same.setdefault(tuple(row.keys.values()), row.number)
        if first != row.number:
            raise UserError(f'rows {first} and {row.number} are the same run: what sets them apart changes no result; '
                            f'leave one out')


class Finished:
    """Which stages of rows have ended in a workdir; what was found once is not looked for again."""

    def __init__(self, workdir: str | os.PathLike):
        self._root = epath.Path(os.path.abspath(workdir))
        self._found: dict[str, tuple[epath.Path, Result]] = {}

    def of(self, row: Row) -> dict[str, tuple[epath.Path, Result]]:
        """Folder and result of each stage of the row that has ended, parents first."""
        done: dict[str, tuple[epath.Path, Result]] = {}
        for name, stage in row.stages.items():
            if row.keys[name] not in self._found:
                self._look(row, name, stage, done)
            if row.keys[name] in self._found:
                done[name] = self._found[row.keys[name]]
        return done

    def unfinished(self, row: Row) -> dict[str, str]:
        """Key -> stage, of those that have not ended, parents first."""
        done = self.of(row)
        return {key: name for name, key in row.keys.items() if name not in done}

    def _look(self, row: Row, name: str, stage: StageConfig, done: dict[str, tuple[epath.Path, Result]]) -> None:
        named = references(name, stage)
        if any(reference.startswith('stage:') and reference.removeprefix('stage:') not in done
               for reference in named.values()):
            return
        try:
            parents = {key: find_parent(stage.stage, key, reference, done) for key, reference in named.items()}
        except UserError:  # a damaged parent: the row itself will say so
            return
        folder = identify(name, stage, row.data[name], self._root, parents)[1]
        result = read_result(folder)
        if result is not None and (result.why != 'stop_step' or result.last_step >= stage.stop_step):
            self._found[row.keys[name]] = folder, result

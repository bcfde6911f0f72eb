"""What the folder of one run says, read from its small files alone.

In: a folder as `llm.run` describes it, finished or not. Out: its files as dicts and lists.
Left out: checkpoints, but for their manifests. A file that is absent, torn or damaged is read as empty.
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

from llm.errors import UserError
from llm.manifest import Manifest, read, sealed_steps


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run's folder; each file is read when it is first asked for."""

    folder: pathlib.Path

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        return self._json('identity.json')

    @functools.cached_property
    def result(self) -> dict[str, Any]:
        """Empty until the stage has ended."""
        return self._json('result.json')

    @functools.cached_property
    def figures(self) -> dict[str, Any]:
        return self._json('figures.json')

    @functools.cached_property
    def data(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Source -> split -> what it held and what was left out."""
        return self._json('data.json')

    @functools.cached_property
    def rewinds(self) -> list[dict[str, Any]]:
        """The steps that went wrong."""
        value = _parsed(_text(self.folder / 'rewinds.json'))
        return value if isinstance(value, list) else []

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        return self._lines('metrics.jsonl')

    @functools.cached_property
    def samples(self) -> list[dict[str, Any]]:
        return self._lines('samples.jsonl')

    @functools.cached_property
    def manifest(self) -> Manifest | None:
        """Of the chosen step; of the newest one, while nothing is chosen."""
        steps = sealed_steps(self.folder / 'checkpoints')
        try:
            return read(self.folder / 'checkpoints', self.result.get('step', steps[-1])) if steps else None
        except UserError:
            return None

    @property
    def name(self) -> str:
        return str(self.identity.get('name', self.folder.name))

    @property
    def config(self) -> dict[str, Any]:
        config = self.identity.get('config')
        return config if isinstance(config, dict) else {}

    @property
    def kind(self) -> str:
        """'pretrain', 'sft', 'reward' or 'ppo'; '' where it cannot be read."""
        return str(self.config.get('stage', ''))

    @property
    def training(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get('kind') == 'train']

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get('kind') == 'evaluate']

    def _json(self, name: str) -> dict[str, Any]:
        value = _parsed(_text(self.folder / name))
        return value if isinstance(value, dict) else {}

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """The lines that are objects: the last one may be torn while a run writes."""
        # Not splitlines(): it also breaks lines at characters that may stand inside an answer.
        values = map(_parsed, _text(self.folder / name).split('\n'))
        return [value for value in values if isinstance(value, dict)]


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text('utf-8', errors='replace')
    except OSError:
        return ''


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None

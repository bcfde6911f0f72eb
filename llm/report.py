"""The page about a pipeline: `report.html`, one file that needs no other, no network and no script.

In: the folders of its runs, of which only small files are read (`llm.run` lists them); the defaults of config keys.
Out: `<workdir>/report.html`. What is missing or damaged in a folder leaves its part of the page out, with a word why.
Left out: what is measured (`stages`, `yardsticks`), what each part shows (`report_parts`), how it is drawn (`plots`).
"""

from collections.abc import Mapping
import dataclasses
import functools
import json
import os
import pathlib
from typing import Any

import jinja2

from llm import plots
from llm import report_parts
from llm.config import UserError
from llm.manifest import Manifest, read, sealed_steps
from llm.report_parts import duration, number, Part, Table


@dataclasses.dataclass(frozen=True)
class Stage:
    """What the folder of one run says."""

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
    def data(self) -> dict[str, Any]:
        return self._json('data.json')

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
        return self.identity.get('name', self.folder.name)

    @property
    def config(self) -> dict[str, Any]:
        return self.identity.get('config', {})

    @property
    def kind(self) -> str:
        return self.config.get('stage', '')

    @property
    def hash8(self) -> str:
        return self.folder.name.rpartition('-')[2]

    def _json(self, name: str) -> dict[str, Any]:
        value = _parsed(_text(self.folder / name))
        return value if isinstance(value, dict) else {}

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """The lines that are objects: the last one may be torn while a run writes."""
        values = map(_parsed, _text(self.folder / name).splitlines())
        return [value for value in values if isinstance(value, dict)]


def write(workdir: str | os.PathLike, folders: Mapping[str, str | os.PathLike], defaults: Mapping[str, Any]) -> pathlib.Path:
    """Writes `report.html` into the workdir, whole or not at all, and returns its path.

    Args:
      folders: of the runs, by stage name, parents first.
      defaults: of every config key, by kind of stage; under 'source', those of a data source.
    """
    stages = [Stage(pathlib.Path(folder)) for folder in folders.values()]
    path = pathlib.Path(workdir) / 'report.html'
    partial = path.with_suffix('.partial')
    partial.write_text(_template().render(page(pathlib.Path(workdir).resolve().name, stages, defaults)), 'utf-8')
    os.replace(partial, path)
    return path


def newest(workdir: str | os.PathLike) -> dict[str, pathlib.Path]:
    """The folders of a workdir's newest run of each name, parents first. Raises UserError where there are none."""
    found = {}
    for path in pathlib.Path(workdir).glob('*/identity.json'):
        stage = Stage(path.parent)
        if '.replaced-' not in path.parent.name and stage.kind in report_parts.KINDS:
            known = found.get(stage.name)
            if known is None or _changed(known) < _changed(path.parent):
                found[stage.name] = path.parent
    if not found:
        raise UserError(f'{workdir} holds no run; name the workdir of a pipeline, e.g. runs/quickstart')
    order = list(report_parts.KINDS)
    return dict(sorted(found.items(), key=lambda item: (order.index(Stage(item[1]).kind), item[0])))


def page(title: str, stages: list[Stage], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What the template is given."""
    return {
        'title': title,
        'facts': report_parts.facts(stages),
        'cards': [report_parts.card(stage, stages) for stage in stages],
        'stages': [{'name': stage.name, 'parts': report_parts.KINDS[stage.kind](stage)} for stage in stages
                   if stage.kind in report_parts.KINDS],
        'parts': [cleaning(stages), differences(stages, defaults), timing(stages), provenance(stages)]}


def cleaning(stages: list[Stage]) -> Part:
    """What was left out of the data, and why."""
    splits = [(stage.name, source, split, said) for stage in stages for source, by_split in stage.data.items()
              for split, said in by_split.items()]
    if not splits:
        return Part('Data', absent='no run of this pipeline has a data.json')
    reasons = list(dict.fromkeys(reason for *_, said in splits for reason in said.get('dropped', {})))
    rows = [[stage, source, split, number(said.get('documents')), number(said.get('kept')),
             *(number(said.get('dropped', {}).get(reason, 0)) for reason in reasons),
             number(said.get('rows')), number(said.get('tokens'))] for stage, source, split, said in splits]
    examples = [(f'{stage}, {source}, {split}: {reason.replace("_", " ")}', text) for stage, source, split, said in splits
                for reason, texts in said.get('examples', {}).items() for text in texts]
    head = ['stage', 'source', 'split', 'documents', 'kept', *(reason.replace('_', ' ') for reason in reasons), 'rows', 'tokens']
    return Part('Data', 'What each source held, what was left out of it and why, and what remained to learn from.',
                table=Table(head, rows, names=3), quotes=examples)


def differences(stages: list[Stage], defaults: Mapping[str, Any]) -> Part:
    """Where the config of a stage leaves the defaults."""
    plain = json.loads(json.dumps(dict(defaults)))  # tuples become lists, as in identity.json
    rows = [[stage.name, key, _shown(old), _shown(new)] for stage in stages
            for key, old, new in _changes(stage.config, plain.get(stage.kind, {}), plain.get('source', {}))]
    if not rows:
        return Part('Configuration', absent='every key of every stage has its default')
    return Part('Configuration', 'Keys that differ from configs/base.py, which explains each of them.',
                table=Table(['stage', 'key', 'base', 'here'], rows, names=4))


def timing(stages: list[Stage]) -> Part:
    """Seconds by phase of every stage that has ended."""
    by_stage = {stage.name: stage.result['phases'] for stage in stages if stage.result.get('phases')}
    if not by_stage:
        return Part('Time', absent='no stage has ended yet')
    phases = list(dict.fromkeys(phase for seconds in by_stage.values() for phase in seconds))
    rows = [[name, *(duration(seconds.get(phase)) for phase in phases), duration(sum(seconds.values()))]
            for name, seconds in by_stage.items()]
    minutes = {name: {phase: seconds.get(phase, 0) / 60 for phase in phases} for name, seconds in by_stage.items()}
    return Part('Time', 'Of the process that ended each stage. Each second counts once; compiling is counted apart from '
                'what it was done for.', plots=[('Minutes by phase', plots.bars(minutes, 'minutes'))],
                table=Table(['stage', *phases, 'all'], rows))


def provenance(stages: list[Stage]) -> Part:
    """Which weights came from which, under which code."""
    rows = []
    for stage in stages:
        if manifest := stage.manifest:
            parents = ', '.join(f'{record["stage"]}@{record["step"]} {record["fingerprint"][:8]}'
                                for record in manifest.parents.values())
            rows.append([stage.name, manifest.identity[:16], str(manifest.step), manifest.fingerprint[:16], parents or '–',
                         manifest.tokenizer['sha256'][:16], manifest.git_commit[:12], manifest.time])
    if not rows:
        return Part('Provenance', absent='no step is sealed yet')
    packages = next(stage.manifest.packages for stage in stages if stage.manifest)
    return Part('Provenance', 'Hashes of what each result depends on, of the weights that children start from, and of '
                'their parents.', table=Table(['stage', 'identity', 'step', 'weights', 'parents', 'tokenizer', 'commit', 'sealed'],
                                             rows, names=8),
                footnote='  '.join(f'{name} {version}' for name, version in packages.items()))


def _changes(config: Mapping[str, Any], base: Mapping[str, Any], source: Mapping[str, Any], path: str = ''):
    """(dotted key, default, value) of the leaves that differ; names of sources have the defaults of a source."""
    for key, value in config.items():
        where = f'{path}{key}'
        if where in ('stage', 'init_from', 'reward_from', 'model'):
            continue  # the chain and the cards say these
        default = source if path.endswith('sources.') else base.get(key)
        if isinstance(value, dict) and isinstance(default, dict) and (default or key == 'sources'):
            yield from _changes(value, default, source, f'{where}.')
        elif value != default:
            yield where, default, value


def _shown(value: Any) -> str:
    return '–' if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _changed(folder: pathlib.Path) -> float:
    """When a run last wrote what a report reads."""
    return max(path.stat().st_mtime for path in folder.glob('*.json*'))


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text('utf-8', errors='replace')
    except FileNotFoundError:
        return ''


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined,
                                     trim_blocks=True, lstrip_blocks=True)
    return environment.get_template('report.html.jinja')

"""What a sweep ended in: a record of each row, a table, and a plot of the swept axes.

In: rows, why each failed, folders and results of its stages. Out: sweep.json, sweep.csv, sweep.svg in the workdir.
Left out: the page of one pipeline (`llm.report`), which every row writes anew.
"""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import itertools
import json
import os
import pathlib
from typing import Any

from etils import epath
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llm.run import Result
from tools.sweeps.rows import Row

Record = dict[str, Any]
_LOG_SPREAD = 30  # largest over smallest value, from which an axis is logarithmic
_MARKERS = 'osD^vPX*'
_STYLE = {'svg.hashsalt': 'sweep', 'axes.spines.top': False, 'axes.spines.right': False,
          'axes.grid': True, 'grid.color': '#dddddd', 'axes.axisbelow': True, 'legend.frameon': False, 'font.size': 9}


def record(row: Row, swept: Sequence[str], why: str | None,
           done: Mapping[str, tuple[epath.Path, Result]]) -> Record:
    """One row, in plain JSON, with its values of all keys that the sweep sets."""
    return {'row': row.number, 'swept': {key: row.value(key) for key in swept}, 'failed': why, 'stages': {
        name: {'folder': folder.name, **{
            key: value for key, value in dataclasses.asdict(result).items()
            if key in ('metric', 'before', 'after', 'step', 'last_step', 'why', 'seconds')}}
        for name, (folder, result) in done.items()}}


def cells(row: Record) -> dict[str, Any]:
    """The record as a row of a table on the screen."""
    stages = {f'{name} {stage["metric"]}': f'{stage["after"]:.4g} @{stage["step"]} {stage["seconds"]:.0f}s'
              for name, stage in row['stages'].items()}
    shown = {short: _shown(row['swept'][key]) for key, short in short_names(row['swept']).items()}
    return {'row': row['row'], **shown, **stages, **({'failed': row['failed']} if row['failed'] else {})}


def write(workdir: str | os.PathLike, config: str, rows: Sequence[Row], table: Sequence[Record]) -> list[pathlib.Path]:
    """The three files, each whole or not at all; returns their paths."""
    paths = [pathlib.Path(workdir) / f'sweep.{suffix}' for suffix in ('json', 'csv', 'svg')]
    writers = (lambda path: path.write_text(json.dumps({'config': config, 'rows': list(table)}, indent=1)),
               lambda path: _write_csv(path, table),
               lambda path: plot(path, rows, table))
    for path, writer in zip(paths, writers):
        partial = path.with_name(f'partial.{path.name}')
        writer(partial)
        os.replace(partial, path)
    return paths


def _write_csv(path: pathlib.Path, table: Sequence[Record]) -> None:
    flat = [{'row': row['row'], **row['swept'], 'failed': row['failed'] or '',
             **{f'{name}/{key}': value for name, stage in row['stages'].items() for key, value in stage.items()}}
            for row in table]
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in flat for key in row)))
        writer.writeheader()
        writer.writerows(flat)


def plot(path: pathlib.Path, rows: Sequence[Row], table: Sequence[Record]) -> None:
    """A panel for each stage that the sweep changes, a point for each of its runs."""
    names = [name for name in rows[0].stages if len({row.keys[name] for row in rows}) > 1]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6 * max(1, len(names)), 4.2), layout='constrained')
        for number, name in enumerate(names, 1):
            _panel(figure.add_subplot(1, len(names), number), name, rows, table)
        figure.savefig(path, metadata={'Date': None} if path.suffix == '.svg' else None)


def _panel(axes: Axes, name: str, rows: Sequence[Row], table: Sequence[Record]) -> None:
    """The first axis is x, the second is told by colour, all others by the marker."""
    runs = {row.keys[name]: (row, entry['stages'][name]) for row, entry in zip(rows, table) if name in entry['stages']}
    swept = swept_keys(name, rows)
    short = short_names(swept)
    x, *others = swept
    ticks = list(dict.fromkeys(_hashable(row.value(x)) for row in rows))
    numeric = all(map(_is_number, ticks))
    groups: dict[tuple, list[tuple[float, float]]] = {}
    for row, stage in runs.values():
        group = tuple(row.value(key) for key in others)
        place = _hashable(row.value(x))
        groups.setdefault(_hashable(group), []).append((place if numeric else ticks.index(place), stage['after']))
    colours = {value: f'C{number}' for number, value in enumerate(dict.fromkeys(group[:1] for group in groups))}
    markers = dict(zip(dict.fromkeys(group[1:] for group in groups), itertools.cycle(_MARKERS)))
    for group, points in groups.items():
        label = ', '.join(f'{short[key]}={_plain(value)}' for key, value in zip(others, group))
        axes.plot(*zip(*sorted(points)), color=colours[group[:1]], marker=markers[group[1:]], linewidth=1, label=label)
    if numeric and min(ticks) > 0 and max(ticks) / min(ticks) > _LOG_SPREAD:
        axes.set_xscale('log')
    axes.minorticks_off()
    axes.set_xticks(ticks if numeric else range(len(ticks)), [_plain(tick) for tick in ticks])
    metric = next((stage['metric'] for _, stage in runs.values()), '')
    axes.set(title=f'{name}, {len(runs)} runs', xlabel=short[x], ylabel=f'held-out {metric}')
    if others and groups:
        axes.legend(fontsize=7, loc='upper left', bbox_to_anchor=(0, -.16))


def all_keys(rows: Sequence[Row]) -> list[str]:
    """Whatever any row sets."""
    return list(dict.fromkeys(key for row in rows for key in row.overrides))


def swept_keys(name: str, rows: Sequence[Row]) -> list[str]:
    """The keys that set a stage's runs apart: first the numeric one with most values, its own before its parents'."""
    values = {key: list(dict.fromkeys(_hashable(row.value(key)) for row in rows)) for key in all_keys(rows)}
    telling = [key for key in values if len(values[key]) > 1 and (
        not key.startswith('stages.') or key.split('.')[1] in _ancestors(name, rows[0]))]
    return sorted(telling or values, key=lambda key: (not all(map(_is_number, values[key])),
                                                      not key.startswith(f'stages.{name}.'), -len(values[key])))


def _ancestors(name: str, row: Row) -> set[str]:
    """The stage and all that it comes from, in this pipeline."""
    stage, found = row.stages[name], {name}
    for reference in (getattr(stage, key, None) for key in ('init_from', 'reward_from')):
        if reference and reference.startswith('stage:'):
            found |= _ancestors(reference.removeprefix('stage:'), row)
    return found


def short_names(keys: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    """Keys without the parts that tell nobody anything: `stages.`, and sections before a name that is unique."""
    def short(key: str) -> str:
        parts = key.removeprefix('stages.').split('.')
        return f'{parts[0]} {parts[-1]}' if key.startswith('stages.') else parts[-1]
    shorts = {key: short(key) for key in keys}
    return {key: name if list(shorts.values()).count(name) == 1 else key for key, name in shorts.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return f'{value:g}' if isinstance(value, float) else str(value)


def _plain(value: Any) -> str:
    """Not to be read as mathematics."""
    return _shown(value).replace('$', r'\$')


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else (
        value if value.__hash__ else repr(value))

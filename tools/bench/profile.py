"""Where a workload's time goes: a trace of one turn by jax.profiler, and its longest operations.

In: a workload of ours, a folder. Out: the trace in `<folder>/<workload>/`, which TensorBoard and ui.perfetto.dev read;
a table of operations by the time they take.
Left out: memory. The trace is read with the standard library: xprof, the maintained reader, brings a web server, a
database and a cloud's client.

On a CPU several threads work at one operation, so times are sums over threads; what an operation waits for within
another one counts for the inner one alone.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
import gzip
import json
import pathlib
import re
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

_SHOWN = 25
_INSTANCE = re.compile(r'[.]\d+$')  # of an operation that occurs more than once
_NO_OPERATION = ('end: ', 'ThunkExecutor')  # marks, and what waits for operations


class Spent(NamedTuple):
    """On one kind of operation, its numbered instances together."""

    microseconds: float
    calls: int
    longest: str  # the instance that took most


def longest(trace: dict[str, Any]) -> list[tuple[str, Spent]]:
    """Operations of the threads on which XLA computes, those that take most first."""
    names = {(event['pid'], event['tid']): event['args']['name'] for event in trace['traceEvents']
             if event.get('ph') == 'M' and event.get('name') == 'thread_name'}
    by_thread = defaultdict(list)
    for event in trace['traceEvents']:
        thread = event.get('pid'), event.get('tid')
        if event.get('ph') == 'X' and names.get(thread, '').startswith('tf_XLA'):
            by_thread[thread].append(event)
    instances: dict[str, Counter[str]] = defaultdict(Counter)
    calls: Counter[str] = Counter()
    for name, microseconds in (pair for events in by_thread.values() for pair in own_times(events)):
        if not name.startswith(_NO_OPERATION):
            kind = _INSTANCE.sub('', name)
            instances[kind][name] += microseconds
            calls[kind] += 1
    found = {kind: Spent(sum(each.values()), calls[kind], each.most_common(1)[0][0])
             for kind, each in instances.items()}
    return sorted(found.items(), key=lambda pair: -pair[1].microseconds)


def own_times(events: Iterable[dict[str, Any]]) -> Iterable[tuple[str, float]]:
    """(name, microseconds) of one thread's events, each without those within it."""
    open_events: list[list] = []  # [name, end, own]
    for event in sorted(events, key=lambda event: (event['ts'], -event['dur'])):
        while open_events and event['ts'] >= open_events[-1][1]:
            name, _, own = open_events.pop()
            yield name, own
        if open_events:
            open_events[-1][2] -= event['dur']
        open_events.append([event['name'], event['ts'] + event['dur'], event['dur']])
    for name, _, own in open_events:
        yield name, own


def read(folder: pathlib.Path) -> dict[str, Any]:
    """The newest trace in a folder, as jax.profiler writes it."""
    path = max(folder.rglob('*.trace.json.gz'), key=lambda path: path.stat().st_mtime_ns)
    with gzip.open(path, 'rt') as file:
        return json.load(file)


def show(name: str, folder: pathlib.Path) -> None:
    found = longest(read(folder))
    total = sum(spent.microseconds for _, spent in found) or 1.0
    drawn = Table(title=f'{name}: {total / 1e6:.3g} s of threads in operations; {folder}', title_justify='left')
    for column in ('operation', 'calls', 'ms', 'share', 'most in'):
        drawn.add_column(column, justify='left' if column in ('operation', 'most in') else 'right', overflow='fold')
    for operation, spent in found[:_SHOWN]:
        drawn.add_row(operation, str(spent.calls), f'{spent.microseconds / 1e3:,.1f}',
                      f'{spent.microseconds / total:.1%}', spent.longest)
    Console(markup=False, highlight=False).print(drawn)

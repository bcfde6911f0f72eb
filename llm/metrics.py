"""What a run says while it runs: rows on disk, TensorBoard, bars on the screen, the table at the end.

In: scalars, on the host or on a device; step and token counts.
Out: `<folder>/metrics.jsonl`, `<folder>/tensorboard/`, standard output.
Left out: which numbers and how often (the stages), the page about a finished run (`report`), uploading: the
folder must be local, because a bucket's objects cannot be appended to.

A row is one JSON object: `step`, `kind` ('train' or 'evaluate'), the numbers, and `time`, which holds all
that two runs of one config do not share. Without `time`, the rows of two such runs are equal, byte for byte.
"""

import atexit
import contextlib
import dataclasses
import datetime
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from llm.chips import mfu

# Text of users and of models goes through it: brackets and colons in it are not markup.
console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)

_TERMINAL_SECONDS = 0.1  # between two drawings of a bar
_PLAIN_SECONDS = 10.0  # between two lines about the same work
_PLAIN_WIDTH = 120  # characters of a table, where no terminal says how wide it is


def say(text: str) -> None:
    """Prints a line, above the bars if there are any."""
    console.print(text)


@dataclasses.dataclass
class _Work:
    first: int  # what was already done when the work was first heard of
    began: float
    shown: float = -math.inf
    bar: TaskID | None = None


class Bars:
    """Work in progress: bars on a terminal, elsewhere a line now and every ten seconds; a line at the end."""

    def __init__(self):
        self._works: dict[str, _Work] = {}
        # No refresh thread: a bar moves when its work says so.
        columns = TextColumn('{task.description}'), BarColumn(), TextColumn('{task.fields[text]}')
        self._live = Progress(*columns, console=console, auto_refresh=False, transient=True)
        atexit.register(self.stop)  # gives the cursor back after an error

    def __call__(self, what: str, done: int, total: int, text: str = '') -> None:
        """`done` of `total` units of the work called `what`; the total ends it. Cheap in tight loops.

        A total of 0 is one that is not known yet.
        """
        now = time.monotonic()
        work = self._works.setdefault(what, _Work(first=done, began=now))
        wait = _TERMINAL_SECONDS if console.is_terminal else _PLAIN_SECONDS
        finished = 0 < total <= done
        if not finished and now - work.shown < wait:
            return
        work.shown = now
        share = f'{done:,}/{total:,}' if total else f'{done:,}'
        line = '  '.join(filter(None, (share, text, _duration(work, now, done, total))))
        if finished:
            self.end(what)
        if finished or not console.is_terminal:
            say(f'{what}  {line}')
        else:
            self._draw(what, work, done, total, line)

    def end(self, what: str) -> None:
        """Takes the work's bar away, whether or not it reached its total."""
        work = self._works.pop(what, None)
        if work and work.bar is not None:
            self._live.remove_task(work.bar)
        if not self._live.tasks:
            self.stop()

    def stop(self) -> None:
        """Gives the screen back."""
        if self._live.live.is_started:  # where it is not, stopping prints an empty line
            self._live.stop()

    def _draw(self, what: str, work: _Work, done: int, total: int, line: str) -> None:
        self._live.start()
        if work.bar is None:
            work.bar = self._live.add_task(what, total=total or None, text='')
        self._live.update(work.bar, completed=done, text=line, refresh=True)


progress = Bars()  # the one screen of this process: `progress(what, done, total)`


class Metrics:
    """One run's numbers, as a context: opening it forgets what a resumed run is about to do again.

    Args:
      folder: the run's own folder, local.
      total_steps: where the bar ends.
      name: of the run, on the screen.
      resume_step: the step just restored; later rows are dropped. None: all rows are dropped.
      flops_per_token: of the model, forward and backward; 0: unknown, no FLOP/s in the rows.
      peak_flops: of all devices together (see `llm.chips`); 0: unknown, no MFU in the rows.
      timing: what else a row's `time` says, of the whole run so far: goodput, and seconds by phase as `phases`.
      writes: whether rows are written: by one process of a job.

    Log before saving: a row of step s written after the save of s is lost if the process dies in between.
    """

    def __init__(self, folder: str | os.PathLike, *, total_steps: int, name: str, resume_step: int | None,
                 flops_per_token: float = 0.0, peak_flops: float = 0.0, writes: bool = True,
                 timing: Callable[[], dict[str, Any]] = dict):
        self._writes = writes
        self._folder = pathlib.Path(folder)
        self._total_steps = total_steps
        self._name = name
        self._resume_step = -1 if resume_step is None else resume_step
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._timing_of_run = timing

    def __enter__(self) -> 'Metrics':
        if self._writes:
            self._open()
        self._began = time.monotonic()
        self._aside_seconds = 0.0
        self._last: tuple[int, float, float] | None = None  # of the row before: tokens, clock, seconds aside
        progress(self._name, max(self._resume_step, 0), self._total_steps)
        return self

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / 'metrics.jsonl'
        _drop_rows(path, self._resume_step)
        self._rows = path.open('a', encoding='utf-8')
        self._events = EventFileWriter(str(self._folder / 'tensorboard'), flush_secs=10)
        # Tells TensorBoard to forget the later steps of the event files before this one.
        self._events.add_event(Event(wall_time=time.time(), step=self._resume_step + 1,
                                     session_log=SessionLog(status=SessionLog.START)))

    def __exit__(self, *error) -> None:
        progress.end(self._name)
        if self._writes:
            self._rows.close()
            self._events.close()

    def train(self, step: int, metrics: Mapping[str, Any], tokens: int) -> None:
        """A row of training, and the bar moved; waits until the device has the numbers.

        Args:
          step: updates done so far.
          metrics: scalars by name; 'loss' is shown beside the bar.
          tokens: consumed so far, since step 0 (so that a resumed run says the same).
        """
        values = _floats(metrics)
        timing = self._timing(tokens)
        self._write(step, 'train', {'tokens': tokens, **values}, timing)
        text = [f'loss {values["loss"]:.4f}'] if 'loss' in values else []
        if 'tokens_per_second' in timing:
            text.append(f'{timing["tokens_per_second"]:,.0f} tokens/s')
        progress(self._name, step, self._total_steps, '  '.join(text))

    def evaluate(self, step: int, metrics: Mapping[str, Any]) -> None:
        """A row of held-out numbers, and a line on the screen."""
        values = _floats(metrics)
        self._write(step, 'evaluate', values, self._clock())
        self.note(f'step {step:,}  ' + '  '.join(f'{key} {value:.4g}' for key, value in values.items()))

    def anomaly(self, step: int, metrics: Mapping[str, Any]) -> None:
        """A row of a step that went wrong: the last one of its process, dropped when the run goes back."""
        self._write(step, 'anomaly', _floats(metrics), self._clock())

    def note(self, text: str) -> None:
        """A line on the screen, under this run's name; not a row."""
        say(f'{self._name}  {text}')

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Around what is not training (evaluation, sampling): its time does not count in speed."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._aside_seconds += time.monotonic() - began

    def _clock(self) -> dict[str, Any]:
        return {'unix_seconds': time.time(), 'seconds': time.monotonic() - self._began, **self._timing_of_run()}

    def _timing(self, tokens: int) -> dict[str, Any]:
        """Speed since the row before; a process's first row has none, because it compiled."""
        clock, last = self._clock(), self._last
        self._last = tokens, clock['seconds'], self._aside_seconds
        if last is None:
            return clock
        seconds = clock['seconds'] - last[1] - (self._aside_seconds - last[2])
        clock['tokens_per_second'] = speed = (tokens - last[0]) / seconds
        if self._flops_per_token:
            clock['flops_per_second'] = self._flops_per_token * speed
        if self._flops_per_token and self._peak_flops:
            clock['mfu'] = mfu(speed, self._flops_per_token, self._peak_flops)
        return clock

    def _write(self, step: int, kind: str, values: dict[str, float], timing: dict[str, Any]) -> None:
        assert not {'step', 'kind', 'time'} & set(values), f'reserved: {sorted(values)}'
        if not self._writes:
            return
        # JSON has no nan and inf; as strings, `float` reads them back.
        row = {key: value if math.isfinite(value) else str(value) for key, value in values.items()}
        row = {'step': step, 'kind': kind, **row, 'time': timing}
        self._rows.write(json.dumps(row, allow_nan=False) + '\n')
        self._rows.flush()
        shown = values | {f'time/{key}': value for key, value in timing.items() if key != 'phases'}
        shown |= {f'time/{phase}': seconds for phase, seconds in timing.get('phases', {}).items()}
        scalars = [Summary.Value(tag=f'{kind}/{key}', simple_value=value) for key, value in shown.items()]
        self._events.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))


def table(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints rows under the columns that any of them has, in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    drawn = Table(title=title, title_justify='left')
    for column in columns:
        numbers = all(isinstance(row[column], (int, float)) for row in rows if column in row)
        drawn.add_column(column, justify='right' if numbers else 'left', overflow='fold')
    for row in rows:
        drawn.add_row(*(_cell(row.get(column, '')) for column in columns))
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    console.print(drawn)


def _cell(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def _floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items()}


def _duration(work: _Work, now: float, done: int, total: int) -> str:
    if 0 < total <= done:
        return f'in {_clock_face(now - work.began)}'
    if done <= work.first or not total:
        return ''
    return f'{_clock_face((total - done) * (now - work.began) / (done - work.first))} left'


def _clock_face(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _drop_rows(path: pathlib.Path, last_step: int) -> None:
    """Keeps the rows up to that step, in their bytes; a row torn by a kill goes too. At -1, nothing stays."""
    if not path.exists():
        return
    kept = [line for line in path.read_text('utf-8').splitlines() if 0 <= _step(line) <= last_step]
    beside = path.with_suffix('.tmp')
    beside.write_text(''.join(line + '\n' for line in kept), 'utf-8')
    os.replace(beside, path)


def spent(folder: str | os.PathLike, step: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds by phase as the last row up to that step has them, and as the last row of all has them."""
    path = pathlib.Path(folder) / 'metrics.jsonl'
    kept, last = {}, {}
    for line in path.read_text('utf-8').splitlines() if path.exists() else ():
        if _step(line) >= 0:
            last = json.loads(line)['time'].get('phases', {})
            kept = last if _step(line) <= step else kept
    return kept, last


def _step(line: str) -> int:
    try:
        return json.loads(line)['step']
    except json.JSONDecodeError:
        return -1

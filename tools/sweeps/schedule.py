"""When the rows of a sweep run: N at a time, and no two that would make the same stage.

In: rows; which of a row's stages are not finished; how a row is started. Out: why each row failed, or nothing.
Left out: what a row is (`rows`), how it is started (`sweep`).

A row goes through its stages parents first. So a row waits while a running one has before it a stage that both need,
and goes on as soon as that stage is there: the running row's later stages are another's only if their keys are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

R = TypeVar('R')


class Process(Protocol):
    """What a started row is known by; subprocess.Popen is one."""

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""


def run(rows: Sequence[R], *, jobs: int, unfinished: Callable[[R], Mapping[str, str]], start: Callable[[R], Process],
        pause: Callable[[], None], say: Callable[[str], None]) -> dict[R, str | None]:
    """Runs what is not finished; a stage that failed is not tried again for another row.

    Args:
      unfinished: key -> stage, parents first; empty where the row is done.
      pause: is called between two looks at what runs.
    """
    ended: dict[R, str | None] = {row: None for row in rows if not unfinished(row)}
    waiting = [row for row in rows if row not in ended]
    running: dict[R, Process] = {}
    broken: dict[str, str] = {}  # key of a stage -> why it is not there
    if ended:
        say(f'{len(ended)} of {len(rows)} rows are finished')
    while waiting or running:
        for row, process in list(running.items()):
            if (code := process.poll()) is not None:
                del running[row]
                ended[row] = _why(row, code, unfinished(row), broken)
                say(f'{row}: {ended[row] or "done"}')
        busy = {key for row in running for key in unfinished(row)}
        for row in list(waiting):
            left = unfinished(row)
            if lost := [why for key, why in broken.items() if key in left]:
                waiting.remove(row)
                ended[row] = lost[0]
                say(f'{row}: not run, {lost[0]}')
            elif len(running) < jobs and busy.isdisjoint(left):
                waiting.remove(row)
                if left:
                    say(f'{row}: runs {", ".join(left.values())}')
                    running[row] = start(row)
                    busy |= left.keys()
                else:  # others have made all of it
                    ended[row] = None
        if running:
            pause()
    return ended


def _why(row: R, code: int, left: Mapping[str, str], broken: dict[str, str]) -> str | None:
    """Why the row is not done, or None; the stage at which it ended is noted as broken."""
    if code == 0 and not left:
        return None
    key, stage = next(iter(left.items()), (None, 'the end'))
    why = f'{stage} ended with exit code {code}'
    if key is not None:
        broken[key] = f'{why} in {row}'
    return why

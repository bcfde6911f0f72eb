"""A worker: a process that does one workload, turn by turn, when it is told to. Ours and the peers' alike.

In: standard input: the job as a line of JSON, then an empty line for each turn.
Out: standard output: a line of JSON once the work is warm (its packages, its arithmetic), then one for each turn, what
was measured by name. A name ends in its unit; of those that end in `/s` more is better, of the others less.
Left out: what is measured (whoever calls `serve`), who is told when (`compare.py`). The standard library alone: peers
run it in environments of their own.
"""

from collections.abc import Callable, Iterable
import importlib.metadata
import json
import os
import sys
import time
from typing import Any, NamedTuple

Turn = Callable[[], dict[str, float]]


class Work(NamedTuple):
    """What a worker does in a turn, all of it waited for, and the arithmetic of its first measure.

    `flops` are of one unit of what is counted a second, or of the whole turn where seconds are measured; 0: not known.
    """

    turn: Turn
    flops: float = 0.0


def serve(make: Callable[[dict[str, Any]], Work], packages: Iterable[str]) -> None:
    """Answers until standard input ends. Of two turns nothing is told: programs are compiled, memory is asked for."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever libraries print is no answer
    job = json.loads(sys.stdin.readline())
    work = make(job)
    for _ in range(2):
        work.turn()
    if 'profile' in job:
        trace(job['profile'], work.turn)

    def answer(said: dict[str, Any]) -> None:
        print(json.dumps(said), file=answers, flush=True)
    answer({'packages': {name: importlib.metadata.version(name) for name in packages}, 'flops': work.flops})
    for _ in sys.stdin:
        answer(work.turn())


def trace(folder: str, turn: Turn) -> None:
    """One turn under JAX's profiler, in our own processes: peers are not asked for it."""
    import jax
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # calls of Python would be most of the trace
    with jax.profiler.trace(folder, profiler_options=options):
        turn()


def timed(unit: str, updates: Callable[[], float]) -> Turn:
    """A turn that counts: `updates` does them and returns how many of the unit were done."""
    def turn() -> dict[str, float]:
        began = time.perf_counter()
        count = updates()
        return {f'{unit}/s': count / (time.perf_counter() - began)}
    return turn

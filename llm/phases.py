"""Where the time of a run goes: seconds by what it was doing, and the share of them that taught it something.

In: the names of phases, as a run enters and leaves them; what was spent before a crash or a rewind.
Out: wall-clock seconds by phase, which add up to the whole; goodput.
Left out: speeds (`metrics`), the time in which no process ran, time on the device: what is dispatched in one phase
and waited for in another counts where it was waited for.
"""

import collections
from collections.abc import Iterator
import contextlib
import time
from typing import Any

import jax

USEFUL = ('train', 'rollout', 'score', 'update')  # `train` is what no part of a step has a name for
RESTART = 'restart'  # what a crash or a rewind cost: steps that were lost, and being there again
_COMPILING = '/jax/core/compile/'  # tracing, lowering, compiling; what a cache gives back counts with it


class Phases(contextlib.AbstractContextManager):
    """Each second counts once: for the innermost phase that is open, `compile` for what JAX compiles in it.

    As a context it listens to JAX; without one, compiling counts where it happens.
    """

    def __init__(self, first: str = 'setup'):
        self._seconds: collections.Counter[str] = collections.Counter()
        self._open = [first]
        self._since = time.monotonic()
        self._compiled: list[tuple[float, float]] = []  # beginning and length of what was not within a later one
        self._compiling = 'compile'

    def __enter__(self) -> 'Phases':
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *error) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """What happens in this context is that phase."""
        self._turn()
        self._open.append(phase)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def compiled(self, seconds: float) -> None:
        """That many seconds up to now were compiling, and maybe some of them are known already: traces nest."""
        began, known = time.monotonic() - seconds, 0.0
        while self._compiled and self._compiled[-1][0] >= began:
            known += self._compiled.pop()[1]
        self._compiled.append((began, seconds))
        self._seconds[self._compiling] += seconds - known
        self._seconds[self._open[-1]] -= seconds - known

    def resume(self, kept: dict[str, float], spent: dict[str, float]) -> None:
        """The run goes on from where it had spent `kept`, though it had spent `spent`: the rest was lost.

        So is what this process took to get there, and what it compiles again.
        """
        self._turn()
        lost = sum(spent.values()) - sum(kept.values())
        if kept:
            lost += sum(self._seconds.values())
            self._compiling = RESTART
            self._seconds.clear()
        self._seconds.update(kept)
        self._seconds[RESTART] += lost

    def seconds(self) -> dict[str, float]:
        """So far, by phase, in the order in which they were first entered."""
        self._turn()
        return {phase: seconds for phase, seconds in self._seconds.items() if seconds > 0}

    def timing(self) -> dict[str, Any]:
        """For a row: seconds by phase, and goodput, of the whole run so far."""
        seconds = {phase: round(spent, 3) for phase, spent in self.seconds().items()}
        return {'goodput': goodput(seconds), 'phases': seconds}

    def _turn(self) -> None:
        now = time.monotonic()
        self._seconds[self._open[-1]] += now - self._since
        self._since = now

    def _listen(self, event: str, seconds: float, **_) -> None:
        if event.startswith(_COMPILING):
            self.compiled(seconds)


def goodput(seconds: dict[str, float]) -> float:
    """The useful share of a run's seconds by phase."""
    return sum(seconds.get(phase, 0.0) for phase in USEFUL) / (sum(seconds.values()) or 1.0)

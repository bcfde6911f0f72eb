"""Whether a step of training went wrong, and what is done about it: the run goes back and leaves that batch out.

In: every step's numbers, in order; `guard` of the config. Out: `Rewind`, raised before anything of such a step is
saved; `rewinds.json` in the run's folder; `Diverged` when a run has gone back too often.
Left out: going back, which is what a restart does (`pipeline.execute`, `journal`); which batch a step takes (`loop`).

A number that is not finite is always wrong. A spike is one only where `guard.spike` says so, by what was seen before:
a median and deviations from it, which no outlier moves far.
"""

import json
import math
import statistics
from typing import Any, NamedTuple

from etils import epath
import jax

from llm.config import GuardConfig
from llm.errors import Diverged

# Which numbers may spike, and in which direction that is bad, causes first. A reward that leaps up was not earned.
_SIGNS = {'reward': (1, -1), 'kl': (1,), 'loss': (1,), 'grad_norm': (1,)}
_NORMAL = 1.4826  # deviations of a normal distribution in its median absolute deviation
_LEAST = 0.02  # of a deviation, relative to the median or to 1: losses that hardly vary have no spikes of a hair


class Rewind(Exception):
    """A step went wrong: the run is to go on from its newest sealed step, without that step's batch."""

    def __init__(self, step: int, metric: str, value: float, why: str):
        super().__init__(f'step {step}: {metric} is {value:.6g}{why}')
        self.step, self.metric, self.value = step, metric, value


class Rewound(NamedTuple):
    """One entry of `rewinds.json`."""

    step: int  # that went wrong
    metric: str
    value: float | str  # JSON has no word for what is not finite
    batch: int  # which the step took, counted from 0; it is left out from here on
    sealed: int  # the newest step that was sealed, to go on from


class Guard:
    """Looks at all steps of a run, when it is convenient: numbers stay on the device until then.

    Args:
      host: of the journal; holds the numbers that were accepted last, so that a restarted run sees what this one does.
    """

    def __init__(self, config: GuardConfig, host: dict[str, Any]):
        self._config, self._host = config, host
        self._waiting: list[tuple[int, dict[str, Any]]] = []

    def saw(self, step: int, metrics: dict[str, Any]) -> None:
        self._waiting.append((step, metrics))

    def look(self) -> None:
        """Accepts the steps seen since the last look; waits for the device. Raises Rewind at the first bad one."""
        waiting, self._waiting = self._waiting, []
        for step, metrics in jax.device_get(waiting):
            values = {name: float(value) for name, value in metrics.items()}
            for name in (*(known for known in _SIGNS if known in values), *values):
                if not math.isfinite(values[name]):
                    raise Rewind(step, name, values[name], '')
            if self._config.spike:
                self._compare(step, values)

    def _compare(self, step: int, values: dict[str, float]) -> None:
        seen = self._host.setdefault('guard', {})
        watched = [name for name in _SIGNS if name in values]
        for name in watched:
            if why := spike(name, values[name], seen.get(name, []), self._config):
                raise Rewind(step, name, values[name], why)
        for name in watched:
            seen[name] = [*seen.get(name, []), values[name]][-self._config.window:]


def spike(name: str, value: float, seen: list[float], config: GuardConfig) -> str:
    """Why that is a spike after what was seen, or ''; nothing is one before half a window was seen."""
    if 2 * len(seen) < config.window:
        return ''
    median = statistics.median(seen)
    deviation = max(_NORMAL * statistics.median(abs(one - median) for one in seen), _LEAST * max(1.0, abs(median)))
    beyond = max(sign * (value - median) / deviation for sign in _SIGNS[name])
    return f', {beyond:.3g} deviations beyond {median:.6g}' if beyond > config.spike else ''


def rewinds(folder: epath.Path) -> tuple[Rewound, ...]:
    """What a run has gone back for, in order."""
    path = folder / 'rewinds.json'
    return tuple(Rewound(**entry) for entry in json.loads(path.read_text())) if path.exists() else ()


def entry(rewind: Rewind, *, batch: int, sealed: int) -> Rewound:
    value = rewind.value if math.isfinite(rewind.value) else str(rewind.value)
    return Rewound(rewind.step, rewind.metric, value, batch, sealed)


def check_rewinds(name: str, config: GuardConfig, before: tuple[Rewound, ...], rewind: Rewind) -> None:
    """Raises Diverged where a run has gone back as often as it may."""
    if len(before) >= config.rewinds:
        raise Diverged(f'{name} diverged: {rewind}, after guard.rewinds={config.rewinds} batches were left out; '
                       f'use a lower optim.learning_rate, or look at its data') from rewind

"""The journal of one run: checkpoints, metrics, samples and the best step.

In: a `Run`, its train state, held-out numbers.
Out: `checkpoints/`, `metrics.jsonl`, `samples.jsonl`, `figures.json`, a `Result`.
Left out: how bytes are kept and verified (`checkpoint`), how rows are written (`metrics`).
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import math
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from llm import processes
from llm import provenance
from llm import train_state
from llm.checkpoint import Checkpoints, load_params
from llm.chips import peak_flops
from llm.errors import Preempted, UserError
from llm.guard import Guard, Rewind
from llm.identity import digest
from llm.loop import every
from llm.manifest import Manifest, parent_record
from llm.metrics import Metrics, spent
from llm.run import Result, Run, write_json
from llm.train_state import TrainState


def averaged(state: TrainState) -> Any:
    """The parameters to evaluate and hand on: their average, where one is kept."""
    return state.params if state.ema is None else state.ema


class Journal(contextlib.AbstractContextManager):
    """Checkpoints, metrics and the best step of one run: what its loop reads at the start and writes as it goes.

    When made, the newest sound step is restored, if there is one: `state`, `step` and `host` are then its, and
    metric rows beyond it are dropped. `host` is JSON (Python ints and doubles). The journal's own part of it says
    which evaluation was the best (`best_step`, `best`), how many came after it (`stale`), and what the first one,
    of the parent's weights, said (`before`), and why the run ended before its time, if it did (`why`); the rest is
    the stage's.

    Args:
      head, objective: for the manifest.
      metric: the held-out number that decides which step is the best.
      higher_is_better: its direction.
      flops_per_token: of a step, for FLOP/s and MFU in the rows; 0: not known, neither is written.
      host: the stage's own part, at the start.
      normalizer: of a scorer: params -> mean and deviation of its scores, for the manifest.
    """

    def __init__(self, run: Run, state: TrainState, *, head: str, objective: str, metric: str,
                 higher_is_better: bool, flops_per_token: float = 0.0, host: dict[str, Any] | None = None,
                 normalizer: Callable[[Any], dict[str, float]] | None = None):
        self._run, self._head, self._objective, self._metric = run, head, objective, metric
        self._sign = 1 if higher_is_better else -1
        self._normalizer = normalizer
        with contextlib.ExitStack() as stack:
            self._checkpoints = stack.enter_context(Checkpoints(
                run.folder / 'checkpoints', keep=run.config.keep_checkpoints, say=run.say))
            self.fresh = not self._checkpoints.steps()
            if self.fresh:
                self.state, self.step = state, 0
                self.host = {'best_step': 0, 'best': None, 'before': None, 'stale': 0, 'why': None, **(host or {})}
            else:
                self.state, self.step, self.host = self._restore(state)
                run.say(f'{run.name}  goes on from step {self.step}')
            self._last, self._leaving = self.step, False
            self._guard = Guard(run.config.guard, self.host)
            run.phases.resume(*spent(run.folder, -1 if self.fresh else self.step))
            self._metrics = stack.enter_context(Metrics(
                run.folder, total_steps=run.config.stop_step, name=run.name,
                resume_step=None if self.fresh else self.step, flops_per_token=flops_per_token,
                peak_flops=peak_flops(jax.devices()[0].device_kind) * run.mesh.size,
                timing=run.phases.timing, writes=processes.is_first()))
            stack.enter_context(run.phases.during('train'))
            self._stack = stack.pop_all()

    def _restore(self, state: TrainState) -> tuple[TrainState, int, dict[str, Any]]:
        like = train_state.abstract(_items(state))
        jax.tree.map(lambda leaf: leaf.delete(), state)  # there may be no room for two
        restored = self._checkpoints.restore(like)
        return _state(restored.items), restored.step, restored.host

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    @property
    def best_step(self) -> int:
        return self.host['best_step']

    @property
    def stale(self) -> int:
        return self.host['stale']

    @property
    def stop(self) -> int:
        """The last step of this run: the configured one, or the one just restored if the run had ended by itself."""
        return self._run.config.stop_step if self.host['why'] is None else self.step

    @property
    def ended(self) -> bool:
        return self.host['why'] is not None

    def end(self, why: str) -> None:
        """The run ends with this step, before its time; to be said before the step is saved."""
        self.host['why'] = why
        self._metrics.note(f'ends: {why}')

    def saw(self, step: int, metrics: dict[str, Any]) -> None:
        """A step is done; called after every one. Its numbers are looked at before anything else is said of it."""
        self._guard.saw(step, metrics)
        processes.progress(f'{self._run.name} {step}')
        self._leaving = self._run.notice.now()

    def due(self, step: int) -> bool:
        """Whether to save after this step: every so often, the last one and the best one, and before leaving."""
        return (every(self._run.config.save_every_steps, step) or step == self.stop or self.best_step == step
                or self.ended or self._leaving)

    def train(self, step: int, metrics: dict[str, Any], tokens: int) -> None:
        """Writes a row of training numbers; `tokens` were consumed since step 0."""
        self._look()
        self._metrics.train(step, metrics, tokens)

    def evaluate(self, step: int, evaluator: Callable[[Any], dict[str, float]], params: Any,
                 eligible: Callable[[dict[str, float]], bool] = lambda values: True) -> dict[str, float]:
        """Writes a row of held-out numbers, returns them, and keeps count of the best among the eligible ones."""
        self._look()
        with self._aside('evaluate'):
            values = agreed(evaluator(params))
        self._metrics.evaluate(step, values)
        value, best = values[self._metric], self.host['best']
        if eligible(values) and not math.isnan(value) and (best is None or self._sign * value > self._sign * best):
            self.host |= {'best_step': step, 'best': value, 'stale': 0}
        else:
            self.host['stale'] += 1
        if step == 0:
            self.host['before'] = value
        return values

    def save(self, step: int, state: TrainState) -> None:
        """Saves in the background. Raises Rewind for a state with a number that is not finite.

        Where this machine is to be taken away the save is sealed first, and `Preempted` ends the run.
        """
        self._look()
        with self._aside('save'):
            if self._run.owner is not None:  # process 0's
                self._run.owner.check()
            reward = self._normalizer(averaged(state)) if self._normalizer else None
            if not self._checkpoints.save(step, _items(state), self.host, self._manifest(reward),
                                          best=self.host['best_step'] == step):
                self._refuse(step)
        self._last = step
        if self._leaving:
            self._checkpoints.wait()
            raise Preempted(f'{self._run.name} was asked to stop and is saved at step {step}; the same command goes on')

    def chosen(self, state: TrainState) -> Any:
        """The parameters of the best step, which children will start from; `state` is the last one."""
        with self._aside('save'):
            self._checkpoints.wait()
            if self.host['best_step'] == self._last:
                return averaged(state)
            return load_params(self._run.folder / 'checkpoints', self.host['best_step'],
                               train_state.abstract(state.params))[0]

    def samples(self, make: Callable[[], list[dict[str, Any]]]) -> None:
        """Keeps what the chosen step says, and shows the first of it."""
        with self._aside('samples'):
            rows = make()
        if processes.is_first():
            (self._run.folder / 'samples.jsonl').write_text(
                ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
        for row in rows[:3]:
            self._metrics.note('  '.join(f'{key}: {value}' for key, value in row.items()))

    def figures(self, make: Callable[[], dict[str, Any]]) -> None:
        """Keeps what is measured of the chosen step beside yardsticks, unless the config asks for none."""
        if self._run.config.figures.rows:
            with self._aside('figures'):
                values = finite({'step': self.best_step, **make()})
            if processes.is_first():
                write_json(self._run.folder / 'figures.json', values)

    def result(self) -> Result:
        """How the run ended; every save is sealed when this returns."""
        self._checkpoints.wait()
        if self.host['best'] is None:
            raise UserError(f'{self._run.name}: no held-out {self._metric} was a number; look at its validation data')
        phases = self._run.phases.seconds()
        return Result(
            stage=self._run.config.stage, step=self.host['best_step'], last_step=self._last,
            why=self.host['why'] or 'stop_step',
            metric=self._metric, before=self.host['before'], after=self.host['best'],
            seconds=sum(phases.values()), code=provenance.code(), phases=phases)

    @contextlib.contextmanager
    def _aside(self, phase: str) -> Iterator[None]:
        """Around what is not training: a phase of its own, which no speed counts."""
        with self._metrics.aside(), self._run.phases.during(phase):
            yield

    def _look(self) -> None:
        """No number of a step that went wrong is written as if it were one, and none of its weights is."""
        try:
            self._guard.look()
        except Rewind as rewind:
            self._metrics.anomaly(rewind.step, {rewind.metric: rewind.value})
            raise

    def _refuse(self, step: int) -> None:
        if step == self.step:  # the first one: there is nothing to go back to
            raise UserError(f'{self._run.name} begins with a number that is not finite; give it another init_from')
        raise Rewind(step, 'state', math.nan, '')

    def _manifest(self, reward: dict[str, float] | None) -> Manifest:
        run, config = self._run, self._run.config
        return Manifest(
            stage=config.stage, identity=digest(run.identity),
            model=run.model_config.stored(), tokenizer=run.tokenizer.describe(), heads=[self._head],
            reward=reward, objective=self._objective, data=_mixture(run), seed=config.seed,
            mesh=dict(run.mesh.shape), packages=provenance.packages(), git_commit=provenance.git_commit(),
            parents={key: parent_record(parent.folder / 'checkpoints', parent.manifest)
                     for key, parent in run.parents.items()})


def agreed(values: dict[str, float]) -> dict[str, float]:
    """Process 0's numbers, in every process: theirs may differ in the last bits, what is decided by them may not."""
    if jax.process_count() == 1:
        return values
    doubles = np.array(list(values.values()), np.float64).view(np.uint8)  # as float64 they would be rounded
    return dict(zip(values, np.asarray(multihost_utils.broadcast_one_to_all(doubles)).view(np.float64).tolist()))


def finite(value: Any) -> Any:
    """The same plain JSON with null for every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mixture(run: Run) -> dict[str, dict[str, Any]]:
    """Every source of a run: where it is from, its weight, early and late, and the SHA-256 of its splits."""
    described = {}
    for key, hashes in run.identity['data'].items():
        section, name = key.split('.', 1)
        data = getattr(run.config, section)
        source = data.sources[name]
        late = {} if source.late_weight is None or not data.late_from_step else {
            'late_weight': source.late_weight, 'late_from_step': data.late_from_step}
        described[key] = {'from': source.tfds or source.jsonl or source.text, 'weight': source.weight, **late, **hashes}
    return described


def _items(state: TrainState) -> dict[str, Any]:
    """What Orbax keeps of a state, item by item; a child loads `ema` where there is one, else `params`."""
    items = {'params': state.params, 'opt_state': state.opt_state, 'train': {'step': state.step, 'key': state.key}}
    return items if state.ema is None else {**items, 'ema': state.ema}


def _state(items: dict[str, Any]) -> TrainState:
    return TrainState(items['params'], items['opt_state'], **items['train'], ema=items.get('ema'))

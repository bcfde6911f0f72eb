"""One run of one stage: its folder, its parents, and the journal that it keeps.

In: what the pipeline resolved (`Run`), the train state.
Out: checkpoints with manifests, metric rows, the best step so far, a `Result` for the pipeline.
Left out: what is learned (the stages), which stage comes next (the pipeline), how bytes are kept (`checkpoint`).

A run's folder:
    identity.json     what the run's hash was made of, and its whole config
    owner.json        the process that works on it
    tokenizer.model   a copy of its own
    checkpoints/      N/ and N.manifest.json
    metrics.jsonl     a row for each logged step; tensorboard/ has the same
    samples.jsonl     what the finished stage says
    result.json       written last: its presence means finished
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import pathlib
import subprocess
import time
from collections.abc import Callable
from typing import Any

from etils import epath
import jax
from jax.sharding import Mesh

from llm import config as config_lib
from llm import train_state
from llm.checkpoint import Checkpoints, load_params
from llm.config import ModelConfig
from llm.data import tokenizer as tokenizer_lib
from llm.data.tokenizer import Tokenizer
from llm.manifest import Manifest
from llm.metrics import Metrics
from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from llm.sharding import AxisRules

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'grain', 'sentencepiece')


@dataclasses.dataclass(frozen=True)
class Parent:
    """A checkpoint that a run starts from: a run's folder, a step of it, and what that step says of itself."""

    folder: epath.Path
    step: int
    manifest: Manifest


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended; `result.json`."""

    stage: str
    step: int  # the chosen one, which children start from
    last_step: int
    why: str  # 'stop_step', or what ended the run before it
    metric: str  # the held-out number that chose the step
    before: float  # that number before the first step: the parent's
    after: float  # that number at the chosen step
    parents: dict[str, str]  # config key -> fingerprint of the parent's weights
    code: str  # SHA-256 of the source that made it
    seconds: float


@dataclasses.dataclass(frozen=True)
class Run:
    """What the pipeline hands to a stage."""

    name: str
    config: Any  # one of the four stage dataclasses; each stage knows which
    folder: epath.Path
    identity: str  # SHA-256
    data: dict[str, Any]  # content hashes of the sources, by name and split
    parents: dict[str, Parent]  # by config key: init_from, reward_from
    mesh: Mesh
    cache_dir: str  # prepared corpora, shared by the runs of a workdir
    say: Callable[[str], None]
    progress: Callable[[str, int, int], None]

    @property
    def rules(self) -> AxisRules:
        return AxisRules.from_config(self.config.exec.rules)

    @functools.cached_property
    def model_config(self) -> ModelConfig:
        """The parent's; a first stage's own."""
        if 'init_from' not in self.parents:
            return self.config.model
        return config_lib.from_dict(ModelConfig, self.parents['init_from'].manifest.model, 'manifest.model.')

    def load(self, key: str, model: Transformer, *, trunk_only: bool = False) -> Any:
        """The parameters of the parent behind a config key, on this run's mesh; maybe without the head."""
        parent = self.parents[key]
        shapes = train_state.abstract_params(initializer(model), self.mesh, self.rules)
        if trunk_only:
            shapes = {name: leaf for name, leaf in shapes.items() if not name.endswith('_head')}
        return load_params(parent.folder / 'checkpoints', parent.step, shapes)[0]

    def corpora(self, prepare: Callable, tokenizer: Tokenizer, split: str, data=None, **how) -> dict[str, Any]:
        """Prepared rows of every source that has this split, by source name."""
        data = data or self.config.data
        return {name: prepare(name, source, split, tokenizer, data=data, cache_dir=self.cache_dir,
                              progress=self.progress, **{'seq_len': self.config.seq_len, **how})
                for name, source in data.sources.items()}

    def manifest(self, step: int, tokenizer: Tokenizer, *, head: str, objective: str,
                 reward: dict[str, float] | None) -> Manifest:
        """What the sealed step will say of itself; leaves and files are filled in when it is saved."""
        config = self.config
        return Manifest(
            stage=config.stage, identity=self.identity, step=step, model=dataclasses.asdict(self.model_config),
            tokenizer={'sha256': tokenizer.sha256, 'vocab_size': tokenizer.vocab_size,
                       'special_ids': tokenizer.special_ids, 'chat_template': tokenizer.chat_template},
            heads=[head], reward=reward, objective=objective,
            data={'sources': self.data, 'weights': {name: s.weight for name, s in config.data.sources.items()}},
            seed=config.seed, mesh=dict(self.mesh.shape), packages=provenance()['packages'],
            git_commit=provenance()['git_commit'],
            parents={key: {'path': str(parent.folder), 'stage': parent.manifest.stage, 'step': parent.step,
                           'identity': parent.manifest.identity, 'fingerprint': parent.manifest.fingerprint()}
                     for key, parent in self.parents.items()})


def initializer(model: Transformer) -> Callable[[jax.Array], Any]:
    """key -> freshly drawn parameters, boxed with their logical axes."""
    def init(key: jax.Array) -> Any:
        tokens_BT = jax.numpy.zeros((1, 2), jax.numpy.int32)
        return model.init(key, tokens_BT, tokens_BT, MaskSpec())['params']
    return init


class Journal:
    """Checkpoints, metrics and the best step of one run: what its loop reads at the start and writes as it goes.

    On entry the newest sound step is restored, if there is one: `state`, `step` and `host` are then its, and
    metric rows beyond it are dropped. `host` is JSON (Python ints and doubles); the journal's own part of it
    (`best_step`, `best`, `before`, `stale`) says which evaluation was the best and how many came after it.
    """

    def __init__(self, run: Run, state: train_state.TrainState, *, tokenizer: Tokenizer, head: str, objective: str,
                 metric: str, higher_is_better: bool, host: dict[str, Any] | None = None):
        self._run, self._tokenizer, self._head, self._objective = run, tokenizer, head, objective
        self._metric, self._sign = metric, 1 if higher_is_better else -1
        self._started = time.monotonic()
        self._checkpoints = Checkpoints(run.folder / 'checkpoints', keep=run.config.keep_checkpoints, say=run.say)
        restored = self._checkpoints.restore(train_state.abstract(items_of(state)))
        self.fresh = restored is None
        self.step = 0 if self.fresh else restored.step
        self.state = state if self.fresh else train_state.TrainState(**restored.items['params'])
        self.host = {'best_step': 0, 'best': None, 'before': None, 'stale': 0, **(host or {})}
        if not self.fresh:
            self.host = restored.host
            run.say(f'{run.name}: goes on from step {self.step}')
        self._last = self.step
        self._metrics = Metrics(run.folder, total_steps=run.config.stop_step, name=run.name, resume_step=self.step,
                                fresh=self.fresh)

    def __enter__(self) -> 'Journal':
        return self

    def __exit__(self, *_) -> None:
        self._metrics.close()
        self._checkpoints.close()

    def train(self, step: int, metrics: dict[str, Any], tokens: int) -> None:
        """Writes a training row; `tokens` were trained on since the last one."""
        self._metrics.train(step, metrics, tokens)

    def evaluate(self, step: int, values: dict[str, float]) -> None:
        """Writes a row of held-out numbers, and keeps count of the best."""
        self._metrics.evaluate(step, values)
        value, best = values[self._metric], self.host['best']
        if best is None or self._sign * value > self._sign * best:
            self.host |= {'best_step': step, 'best': value, 'stale': 0}
        else:
            self.host['stale'] += 1
        if step == 0:
            self.host['before'] = value

    def save(self, step: int, state: train_state.TrainState, *, reward: dict[str, float] | None = None) -> None:
        manifest = self._run.manifest(step, self._tokenizer, head=self._head, objective=self._objective, reward=reward)
        self._checkpoints.save(step, items_of(state), dict(self.host), manifest, best=self.host['best_step'] == step)
        self._last = step

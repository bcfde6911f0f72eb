"""One run of one stage: what it is given, and how it ended.

In: what was resolved before it starts (`resolve`): config, folder, parents, mesh.
Out: rows, batches, a train state and parents' parameters for the stage; a `Result` for the pipeline.
Left out: what is learned (the stages), what is written on the way (`journal`), which stage comes next (`pipeline`).

A run's folder:
    identity.json     what the run's hash was made of, its whole config, its parents
    owner.json        the process that works on it
    tokenizer.model   a copy of its own; tokenizer/ instead, with files, where it is somebody else's
    checkpoints/      N/ and N.manifest.json
    metrics.jsonl     a row for each logged step; tensorboard/ has the same
    rewinds.json      the steps that went wrong, and the batches that are left out for it
    data.json         by config section and source ('data.bible') and split: what cleaning left out, what is left
    samples.jsonl     what the finished stage says
    figures.json      what it was measured by, beside yardsticks
    result.json       written last: its presence means finished
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import json
from typing import Any

from etils import epath
import jax
from jax.sharding import Mesh, NamedSharding
import numpy as np
import optax

from llm import train_state
from llm.checkpoint import load_params
from llm.config import DataConfig, ModelConfig
from llm.data.tokenizer import Tokenizer
from llm.door import from_dict
from llm.guard import Rewound
from llm.loop import batches, prefetch
from llm.manifest import Manifest
from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from llm.owner import Owner
from llm.phases import Phases
from llm.processes import first_then_others, Notice
from llm.sharding import AxisRules, batch_sharding, check_batch
from llm.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class Parent:
    """A checkpoint that a run starts from: a run's folder, a step of it, and what that step says of itself."""

    folder: epath.Path
    step: int
    manifest: Manifest

    @property
    def model_config(self) -> ModelConfig:
        return from_dict(ModelConfig, self.manifest.model, 'manifest.model.')


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
    seconds: float  # of all processes that worked on it, data and compiling included
    code: str  # SHA-256 of the source that made it
    phases: dict[str, float] = dataclasses.field(default_factory=dict)  # these seconds, by what was done in them


@dataclasses.dataclass(frozen=True)
class Run:
    """What the pipeline hands to a stage."""

    name: str
    config: Any  # one of the four stage dataclasses; each stage knows which
    folder: epath.Path
    identity: dict[str, Any]  # what the folder's hash is made of
    parents: dict[str, Parent]  # by config key: init_from, reward_from
    mesh: Mesh
    cache_dir: str  # prepared corpora, shared by the runs of a workdir
    say: Callable[[str], None]
    progress: Callable[[str, int, int], None]
    owner: Owner | None = None  # of the folder, while the stage runs; in process 0
    notice: Notice = dataclasses.field(default_factory=Notice)  # whether to save and leave
    phases: Phases = dataclasses.field(default_factory=Phases)  # where its time goes
    rewinds: tuple[Rewound, ...] = ()  # what it has gone back for

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self.folder)

    @property
    def skipped(self) -> list[int]:
        """Batches that no step takes."""
        return [rewound.batch for rewound in self.rewinds]

    @property
    def rules(self) -> AxisRules:
        return AxisRules.from_config(self.config.exec.rules)

    @property
    def rows_sharding(self) -> NamedSharding:
        return batch_sharding(self.mesh, self.rules)

    @property
    def model_config(self) -> ModelConfig:
        """The parent's; a first stage's own."""
        return self.parents['init_from'].model_config if self.parents else self.config.model

    @property
    def special_ids(self) -> dict[str, int]:
        """Name -> token, as the parent's manifest has them: known before the folder and its tokenizer are there."""
        return self.parents['init_from'].manifest.tokenizer['special_ids']

    def load(self, key: str, model: Transformer, *, trunk_only: bool = False) -> Any:
        """The parameters of the parent behind a config key, on this run's mesh; maybe without the head."""
        shapes = train_state.abstract_params(initializer(model), self.mesh, self.rules)
        if trunk_only:
            shapes = {name: leaf for name, leaf in shapes.items() if not name.endswith('_head')}
        parent = self.parents[key]
        return load_params(parent.folder / 'checkpoints', parent.step, shapes)[0]

    def train_state(self, init: Callable[[jax.Array], Any], tx: optax.GradientTransformation,
                    params: Any = None) -> TrainState:
        """A state with fresh parameters, or a parent's where they are given."""
        return train_state.create(init, tx, self.config.seed, self.mesh, self.rules, params=params,
                                  ema=self.config.optim.ema_decay > 0)

    def corpora(self, prepare: Callable, split: str, data: DataConfig | None = None, **how) -> dict[str, Any]:
        """Prepared rows of every source, by source name."""
        data = data or self.config.data
        with self.phases.during('data'), first_then_others(f'{self.name} {split} data'):
            rows = {name: prepare(name, source, split, self.tokenizer, data=data, cache_dir=self.cache_dir,
                                  progress=self.progress, **how) for name, source in data.sources.items()}
        for name, part in rows.items():
            self.say(f'{self.name}  {part.note}')
            self.account(data, name, split, {
                **part.cleaning, **{key: part.meta[key] for key in ('records', 'rows', 'tokens')}})
        return rows

    def account(self, data: DataConfig, name: str, split: str, said: dict[str, Any]) -> None:
        """Keeps in `data.json` what a person may read of a source's split, while the stage runs.

        What is known of the split's rows (their number, their tokens) stays when only its records are read again.
        """
        if self.owner is None:
            return  # the folder is another's
        section = next(key for key, value in vars(self.config).items() if value is data)
        path, place = self.folder / 'data.json', f'{section}.{name}'
        before = json.loads(path.read_text()) if path.exists() else {}
        splits = before.get(place, {})
        now = {**before, place: {**splits, split: {**splits.get(split, {}), **said}}}
        if now != before:
            write_json(path, now)

    def batches(self, rows: Callable[[np.ndarray], dict[str, np.ndarray]], step: int, batch_size: int,
                key: str = 'batch_size') -> Iterator[dict[str, jax.Array]]:
        """Batches of a stream from the one after `step` on, made ahead of their use.

        What is waited for one is the phase `wait`; the device may be busy meanwhile.
        """
        check_batch(key, batch_size, self.mesh, self.rules)
        made = prefetch(batches(rows, start=step, batch_size=batch_size, sharding=self.rows_sharding,
                                skipped=self.skipped), 2)

        def waited_for() -> Iterator[dict[str, jax.Array]]:
            with contextlib.closing(made):
                while True:
                    with self.phases.during('wait'):
                        batch = next(made)
                    yield batch
        return waited_for()


def initializer(model: Transformer) -> Callable[[jax.Array], Any]:
    """key -> freshly drawn parameters, boxed with their logical axes."""
    tokens_BT = np.zeros((1, 2), np.int32)
    return lambda key: model.init(key, tokens_BT, tokens_BT, MaskSpec())['params']


def read_result(folder: epath.Path) -> Result | None:
    path = folder / 'result.json'
    return Result(**json.loads(path.read_text())) if path.exists() else None


def write_json(path: epath.Path, value: Any) -> None:
    """Atomically: a reader finds the whole file or none."""
    partial = path.parent / f'{path.name}.partial'
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False))
    partial.replace(path)

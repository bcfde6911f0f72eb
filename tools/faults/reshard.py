"""A state saved on one mesh and restored on another: python -m tools.faults.reshard --workdir=DIR [--json=FILE]

A small transformer is trained for two steps on each of 8 meshes of 1, 2, 4 and 8 CPU devices, and saved. Each of these
states is restored on each of the other meshes: bit for bit the same, by fingerprints and by values; and the losses of
the next 20 steps there are those of 20 steps on the mesh it came from, but for rounding.

Trials: ordered pairs of different meshes, 56 in all, in an order drawn by the seed. Prints the largest difference, and
exits with 1 unless all states are equal and no loss differs by more than 1e-6 of itself.
"""

from collections.abc import Callable
import functools
import itertools
import pathlib
import random
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from configs import base
from configs import sizes
from llm import train_state
from llm.checkpoint import Checkpoints
from llm.config import ModelConfig, OptimConfig
from llm.door import from_dict
from llm.execution import ExecConfig, MeshConfig
from llm.fingerprint import describe, flatten
from llm.manifest import Manifest
from llm.model.transformer import Transformer
from llm.optim import make_optimizer
from llm.run import initializer
from llm.sharding import AxisRules, batch_sharding, global_batch, make_mesh
from llm.stages.pretrain import language_loss
from llm.train_state import TrainState
from llm.train_step import make_train_step
from tools.faults import script

MESHES = ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (1, 2, 2), (1, 8, 1), (2, 2, 2))  # data, fsdp, tensor
STEPS_BEFORE, STEPS = 2, 20
ROWS, LENGTH = 8, 16
TOLERANCE = 1e-6


class Place(NamedTuple):
    """A mesh, a state on it, and the compiled step."""

    mesh: Mesh
    rules: AxisRules
    state: TrainState
    step: Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]


def place(mesh: tuple[int, int, int]) -> Place:
    model_config = from_dict(ModelConfig, sizes.tiny().to_dict())
    execution = from_dict(ExecConfig, base.execution().to_dict() | {
        'mesh': dict(zip(('data', 'fsdp', 'tensor'), mesh)) | {'context': 1}, 'scan_unroll': 1})
    devices, rules = make_mesh(MeshConfig(*mesh)), AxisRules.from_config(execution.rules)
    model = Transformer(model_config, execution)
    tx = make_optimizer(from_dict(OptimConfig, base.stage('').optim.to_dict()))
    with jax.set_mesh(devices):
        state = train_state.create(initializer(model), tx, 0, devices, rules)
    objective = functools.partial(language_loss, model, z_loss=0.0)
    return Place(devices, rules, state, make_train_step(objective, tx, shardings=train_state.shardings(state)))


def rows(indices: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of random tokens, the same for an index on every mesh."""
    draws = np.stack([np.random.default_rng(index).integers(1, 64, LENGTH + 1) for index in indices]).astype(np.int32)
    ones = np.ones((len(indices), LENGTH), np.int32)
    return {'tokens_BT': draws[:, :-1], 'targets_BT': draws[:, 1:], 'segments_BT': ones,
            'positions_BT': np.arange(LENGTH, dtype=np.int32) * ones, 'mask_BT': ones.astype(np.float32)}


def train(there: Place, state: TrainState, start: int, steps: int) -> tuple[TrainState, list[float]]:
    """The state, donated, after these steps, and their losses."""
    losses = []
    with jax.set_mesh(there.mesh):
        for step in range(start, start + steps):
            indices = np.arange(step * ROWS, (step + 1) * ROWS)
            batch = global_batch(rows, indices, batch_sharding(there.mesh, there.rules))
            state, metrics = there.step(state, None, batch)
            losses.append(float(metrics['loss']))
    return state, losses


def items(state: TrainState) -> dict[str, Any]:
    return {'params': state.params, 'opt_state': state.opt_state, 'train': {'step': state.step, 'key': state.key}}


def restored(folder: pathlib.Path, there: Place) -> TrainState:
    with Checkpoints(folder, keep=2) as checkpoints:
        found = checkpoints.restore(train_state.abstract(items(there.state))).items
    return TrainState(found['params'], found['opt_state'], **found['train'], ema=None)


def bits(state: TrainState) -> dict[str, bytes]:
    """Of every leaf its fingerprint, and its bytes."""
    flat = {name: flatten(tree) for name, tree in items(state).items()}
    prints, _ = describe(flat)
    return {f'{name}/{path}': str(prints[name][path]).encode() + np.asarray(
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf).tobytes()
        for name, leaves in flat.items() for path, leaf in leaves.items()}


class Pair(NamedTuple):
    saved_on: tuple[int, int, int]
    restored_on: tuple[int, int, int]
    equal: bool
    difference: float  # the largest of a loss, relative


def trials(count: int, seed: int, workdir: pathlib.Path) -> list[Pair]:
    """That many pairs of meshes."""
    pairs = list(itertools.permutations(MESHES, 2))
    random.Random(seed).shuffle(pairs)
    places = {mesh: place(mesh) for mesh in sorted({mesh for pair in pairs[:count] for mesh in pair})}
    saved, expected = {}, {}
    for mesh in dict.fromkeys(source for source, _ in pairs[:count]):
        state, _ = train(places[mesh], jax.tree.map(jnp.copy, places[mesh].state), 0, STEPS_BEFORE)
        manifest = Manifest(stage='pretrain', identity='0' * 64, model={}, tokenizer={}, heads=['token'], reward=None,
                            objective='next token', data={}, seed=0, mesh={}, packages={}, git_commit='', parents={})
        with Checkpoints(workdir / str(mesh), keep=2) as checkpoints:
            checkpoints.save(STEPS_BEFORE, items(state), {}, manifest)
        saved[mesh] = bits(state)
        _, expected[mesh] = train(places[mesh], state, STEPS_BEFORE, STEPS)
    done = []
    for source, target in pairs[:count]:
        state = restored(workdir / str(source), places[target])
        equal = bits(state) == saved[source]
        _, losses = train(places[target], state, STEPS_BEFORE, STEPS)
        difference = max(abs(mine - theirs) / abs(theirs) for mine, theirs in zip(losses, expected[source]))
        done.append(Pair(source, target, equal, difference))
        script.say(str(done[-1]))
    return done


def figure(count: int, seed: int, workdir: pathlib.Path) -> script.Figure:
    done = trials(count, seed, workdir)
    equal, difference = sum(pair.equal for pair in done), max(pair.difference for pair in done)
    line = (f'reshard: {equal} of {len(done)} ordered pairs of {len(MESHES)} meshes restored bit-equal; losses over '
            f'{STEPS} steps within {difference:.1e}, relative')
    return line, equal == len(done) and difference <= TOLERANCE, {'pairs': [pair._asdict() for pair in done]}


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', 8)
    sys.exit(script.run(__doc__, len(MESHES) * (len(MESHES) - 1), figure))

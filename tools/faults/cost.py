"""What it costs that nothing is lost: python -m tools.faults.cost --workdir=DIR [--steps=600] [--json=FILE]

In: a folder. Out: seconds that saves block the loop, and those that fingerprints take of them, over the time of the
steps in between, at the default cadence; exit code 1 if they are more than 2 % of it.
Left out: what saves cost by being written in the background (it is shown, as how much slower steps are meanwhile: on
few cores writing competes with training, on a TPU it does not), evaluation, learning anything.

The model is `sizes.mini()`, 2.56 M parameters, with AdamW, on batches of 16 rows of 128 random tokens. Run it on an
idle machine: a step that waits for a core is a longer step, and hides the cost.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time
from typing import Any
from unittest import mock

import jax
import numpy as np

from configs import base
from configs import sizes
from llm import checkpoint
from llm import processes
from llm import provenance
from llm import train_state
from llm.checkpoint import Checkpoints
from llm.config import ModelConfig, OptimConfig
from llm.door import from_dict
from llm.execution import ExecConfig
from llm.loop import every
from llm.main import enable_compilation_cache
from llm.manifest import Manifest
from llm.model.transformer import Transformer
from llm.optim import make_optimizer
from llm.run import initializer
from llm.sharding import AxisRules, batch_sharding, global_batch, make_mesh
from llm.stages.pretrain import language_loss
from llm.train_step import make_train_step

DEFAULTS = base.pretrain(sizes.mini())
BOUND = 0.02  # of the time of the steps


def measure(folder: pathlib.Path, steps: int, cadence: int) -> dict[str, Any]:
    """Trains for that many steps, each waited for, and saves every `cadence` of them."""
    step_fn, state, batch = training()
    step_seconds, save_seconds, prints, behind = [], [], [], []
    with Checkpoints(folder, keep=2) as checkpoints, timed_fingerprints(prints):
        for step in range(steps + cadence + 1):  # the first save compiles fingerprints: it is not counted
            behind.append(checkpoints._pending is not None and not checkpoints._pending.done())
            began = time.monotonic()
            state, metrics = step_fn(state, None, batch)
            jax.block_until_ready(metrics['loss'])
            step_seconds.append(time.monotonic() - began)
            if every(cadence, step):
                began = time.monotonic()
                items = {'params': state.params, 'opt_state': state.opt_state,
                         'train': {'step': state.step, 'key': state.key}}
                assert checkpoints.save(step, items, {}, manifest())
                save_seconds.append(time.monotonic() - began)
    counted, behind, saves = step_seconds[cadence + 1:], behind[cadence + 1:], save_seconds[2:]
    assert len(saves) == steps // cadence
    alone = statistics.median([seconds for seconds, late in zip(counted, behind) if not late] or counted)
    meanwhile = statistics.median([seconds for seconds, late in zip(counted, behind) if late] or [alone])
    return {'steps': len(counted), 'saves': len(saves), 'step seconds': alone,
            'save blocks seconds': statistics.fmean(saves), 'of it fingerprint seconds': statistics.fmean(prints[2:]),
            'ratio': sum(saves) / sum(counted), 'fingerprint ratio': sum(prints[2:]) / sum(counted),
            'steps while writing': sum(behind), 'their seconds': meanwhile}


def training():
    """A compiled step of the default config with the mini model, its state, and a batch."""
    how, optim = from_dict(ExecConfig, DEFAULTS.exec.to_dict()), from_dict(OptimConfig, DEFAULTS.optim.to_dict())
    model = Transformer(from_dict(ModelConfig, DEFAULTS.model.to_dict()), how)
    mesh, rules = make_mesh(how.mesh), AxisRules.from_config(how.rules)
    jax.set_mesh(mesh)
    tx = make_optimizer(optim)
    state = train_state.create(initializer(model), tx, 0, mesh, rules)
    step_fn = make_train_step(functools.partial(language_loss, model, z_loss=0.0), tx,
                              shardings=train_state.shardings(state))
    shape = DEFAULTS.batch_size, DEFAULTS.seq_len
    draw = np.random.default_rng(0)

    def rows(indices: np.ndarray) -> dict[str, np.ndarray]:
        tokens_BT = draw.integers(0, DEFAULTS.model.vocab_size, (len(indices), shape[1]), np.int32)
        return {'tokens_BT': tokens_BT, 'targets_BT': np.roll(tokens_BT, -1, axis=1),
                'positions_BT': np.tile(np.arange(shape[1], dtype=np.int32), (len(indices), 1)),
                'segments_BT': np.ones_like(tokens_BT), 'mask_BT': np.ones(tokens_BT.shape, np.float32)}
    return step_fn, state, global_batch(rows, np.arange(shape[0]), batch_sharding(mesh, rules))


def timed_fingerprints(seconds: list[float]):
    describe = checkpoint.describe

    def timed(flat):
        began = time.monotonic()
        found = describe(flat)
        seconds.append(time.monotonic() - began)
        return found
    return mock.patch.object(checkpoint, 'describe', timed)


def manifest() -> Manifest:
    return Manifest(stage='pretrain', identity='', model=DEFAULTS.model.to_dict(), tokenizer={}, heads=['token'],
                    reward=None, objective='', data={}, seed=0, mesh={}, packages=provenance.packages(),
                    git_commit='', parents={})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', required=True, type=pathlib.Path)
    parser.add_argument('--steps', type=int, default=600)
    parser.add_argument('--cadence', type=int, default=DEFAULTS.save_every_steps, help='steps between two saves')
    parser.add_argument('--json', type=pathlib.Path, help='where the numbers go, too')
    args = parser.parse_args()
    if args.steps < args.cadence:
        parser.error(f'--steps={args.steps} holds no save; use --cadence={args.cadence} or more')
    processes.choose_platform()
    enable_compilation_cache()
    found = measure(args.workdir.absolute() / 'checkpoints', args.steps // args.cadence * args.cadence, args.cadence)
    for name, value in found.items():
        print(f'{name:28} {value:.5g}')
    print(f'saves cost {100 * found["ratio"]:.2f} % of the time of the steps, fingerprints '
          f'{100 * found["fingerprint ratio"]:.2f} %')
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0 if found['ratio'] <= BOUND else 1


if __name__ == '__main__':
    sys.exit(main())

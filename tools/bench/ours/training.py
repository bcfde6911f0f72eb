"""Updates of the stages that learn from rows: pretraining, SFT, the reward model.

In: a job. Out: tokens or pairs a second, of the stage's own compiled step, fed by its own loop and loader.
Left out: PPO (`ppo.py`).
"""

from collections import deque
from collections.abc import Callable
import sys
from typing import Any

import jax
import numpy as np

from llm.loop import fit
from llm.main import enable_compilation_cache
from llm.optim import make_optimizer
from llm.pipeline import STAGES
from llm.run import Run
from llm.stages import reward
from tools.bench import draws
from tools.bench.ours import packed
from tools.bench.ours.runs import paper_run
from tools.bench.serve import serve, timed, Work

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')

Rows = Callable[[np.ndarray], dict[str, np.ndarray]]


def make(job: dict[str, Any]) -> Work:
    """`job['updates']` updates a turn; what they consume is counted batch by batch."""
    enable_compilation_cache()
    run = paper_run(job)
    stage = STAGES[run.config.stage]
    program = stage.programs(run).programs['step']
    rows, count = {'pretrain': windows, 'sft': packed.texts, 'reward': pairs}[run.config.stage](run, job)
    counts: deque[float] = deque()  # of the batches that are made and not yet trained on

    def counted(indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = rows(indices)
        counts.append(count(batch))
        return batch
    state = run.train_state(stage.initial(run), make_optimizer(run.config.optim))
    read = reward.make_packed(run, run.config.exec.micro_batches) if run.config.stage == 'reward' else lambda rows: rows
    steps = fit(state, lambda state, rows: program.jitted(state, None, read(rows)),
                run.batches(counted, 0, run.config.batch_size), start=0, stop=sys.maxsize)

    def updates() -> float:
        for _ in range(job['updates']):
            _, state, metrics = next(steps)
        jax.block_until_ready((state, metrics))
        assert float(metrics['finite'])
        return sum(counts.popleft() for _ in range(job['updates']))
    unit = 'pairs' if run.config.stage == 'reward' else 'tokens'
    tokens = job['config']['seq_len'] * (2 if unit == 'pairs' else 1)
    return Work(timed(unit, updates), flops=program.model_flops / program.tokens * (tokens if unit == 'pairs' else 1))


def windows(run: Run, job: dict[str, Any]) -> tuple[Rows, Callable[[dict], float]]:
    """Whole rows of one document each, all of whose tokens count."""
    length, vocab = run.config.seq_len, run.model_config.vocab_size

    def rows(indices: np.ndarray) -> dict[str, np.ndarray]:
        ids_BT = np.random.default_rng([job['seed'], *indices]).integers(0, vocab, (len(indices), length + 1), np.int32)
        shape = len(indices), length
        return {'tokens_BT': ids_BT[:, :-1], 'targets_BT': ids_BT[:, 1:], 'mask_BT': np.ones(shape, np.float32),
                'positions_BT': np.broadcast_to(np.arange(length, dtype=np.int32), shape),
                'segments_BT': np.ones(shape, np.int32)}
    return rows, lambda batch: batch['tokens_BT'].size


def pairs(run: Run, job: dict[str, Any]) -> tuple[Rows, Callable[[dict], float]]:
    """Two answers each, of the lengths that the job names, padded to the row; the first is the better."""
    config = run.config
    sizes = draws.lengths(1024, *job['lengths'], job['seed']) if 'lengths' in job else [config.seq_len]

    def rows(indices: np.ndarray) -> dict[str, np.ndarray]:
        shape = len(indices), config.ranked_answers
        length_BR = np.array([[sizes[(2 * index + answer) % len(sizes)] for answer in range(shape[1])]
                              for index in indices], np.int32)
        ids_BRT = np.random.default_rng([job['seed'], *indices]).integers(
            1, run.model_config.vocab_size, (*shape, config.seq_len), np.int32)
        return {'tokens_BRT': np.where(np.arange(config.seq_len) < length_BR[..., None], ids_BRT, 0),
                'length_BR': length_BR, 'score_BR': np.tile(np.float32([1, 0]), (shape[0], 1)),
                'valid_BR': np.ones(shape, bool)}
    return rows, lambda batch: len(batch['length_BR'])


if __name__ == '__main__':
    serve(make, PACKAGES)

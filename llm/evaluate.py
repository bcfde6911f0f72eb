"""Held-out numbers: an objective's sums over rows that are never trained on; answers for a person to read.

In: objectives, parameters, rows; prompts. Out: Python floats; generated text.
Left out: which numbers decide (the stages), where they are written (the run's journal).
"""

from collections.abc import Callable, Iterator, Sequence
import math
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from llm.model.transformer import Transformer
from llm.objectives.loss import Loss
from llm.rollout.generate import make_generate
from llm.run import Run
from llm.sharding import global_batch
from llm.train_step import Objective, make_eval_step


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, spread evenly, so that every document of a long text is heard."""
    count = min(most, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def held_out_indices(run: Run, rows: Any, most: int | None = None) -> np.ndarray:
    """Of the rows that are measured: at most so many (None: `eval_rows`), spread evenly."""
    return np.array(spread(range(len(rows)), run.config.eval_rows if most is None else most), np.int64)


def held_out_batches(run: Run, rows: Any, batch_size: int, most: int | None = None) -> Iterator[dict[str, jax.Array]]:
    """The rows of `held_out_indices`, and `index_B`, in batches of one shape: the last is filled up with zeros."""
    chosen = held_out_indices(run, rows, most)

    def filled(indices: np.ndarray) -> dict[str, np.ndarray]:
        inside = indices < len(chosen)
        fields = rows.rows(chosen[np.where(inside, indices, 0)])
        for field in fields.values():
            field[~inside] = 0
        return {**fields, 'index_B': indices.astype(np.int32)}
    return (global_batch(filled, np.arange(start, start + batch_size), run.rows_sharding)
            for start in range(0, len(chosen), batch_size))


def make_evaluator(run: Run, objective: Objective, corpora: dict[str, Any],
                   packed: Callable[[Any], Any] = lambda rows: rows) -> Callable[[Any], dict[str, float]]:
    """params -> every term and metric of an objective, over all sources (`name`) and each (`name/source`).

    packed: a batch of the corpora's rows -> what the objective reads.
    """
    step = make_eval_step(objective)

    def evaluate(params: Any) -> dict[str, float]:
        losses = {name: [jax.device_get(step(params, None, packed(batch)))
                         for batch in held_out_batches(run, rows, run.config.batch_size)]
                  for name, rows in corpora.items()}
        values = means([loss for source in losses.values() for loss in source])
        if len(losses) > 1:
            for name, source in losses.items():
                values |= {f'{key}/{name}': value for key, value in means(source).items()}
        return values
    return evaluate


def means(losses: list[Loss]) -> dict[str, float]:
    """Every term and metric over all these batches; NaN where nothing had weight. Added in double precision."""
    sums: dict[str, list[tuple[float, float]]] = {}
    for loss in losses:
        for name, pair in ({name: term[:2] for name, term in loss.terms.items()} | loss.metrics).items():
            sums.setdefault(name, []).append((float(pair[0]), float(pair[1])))
    totals = {name: [sum(column) for column in zip(*pairs)] for name, pairs in sums.items()}
    return {name: total / weight if weight else math.nan for name, (total, weight) in totals.items()}


def answers(run: Run, params: Any, prompts: list[list[int]]) -> list[str]:
    """What the run's language model says after each prompt (token ids), as text; `config.samples` says how."""
    if not prompts:
        return []
    model = Transformer(run.model_config, run.config.exec)
    how, special = run.config.samples, run.tokenizer.special_ids
    width, size = max(map(len, prompts)), -(-len(prompts) // run.mesh.size) * run.mesh.size
    tokens_BT = np.full((size, width), special['pad'], np.int32)
    length_B = np.ones(size, np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, :len(prompt)], length_B[row] = prompt, len(prompt)
    batch = global_batch(lambda rows: {'tokens_BT': tokens_BT[rows], 'length_B': length_B[rows], 'index_B': rows},
                         np.arange(size, dtype=np.int32), run.rows_sharding)
    generate = jax.jit(make_generate(model, max_new_tokens=how.max_new_tokens, temperature=how.temperature,
                                     eos_id=special['eos'], pad_id=special['pad']))
    made = generate(params, batch['tokens_BT'], batch['length_B'], batch['index_B'], jax.random.key(run.config.seed))
    return texts(run, multihost_utils.process_allgather(made, tiled=True))[:len(prompts)]


def texts(run: Run, generation: Any) -> list[str]:
    """The chosen tokens of each sample, as text."""
    return [run.tokenizer.decode([int(token) for token in tokens_T[mask_T > 0]])
            for tokens_T, mask_T in zip(generation.tokens_BT, generation.mask_BT)]

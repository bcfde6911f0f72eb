"""Held-out numbers: every row counts once, whatever fills up the last batch; any step gives its own again."""

import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.execution import MeshConfig
from llm.evaluate import held_out_batches, make_evaluator, means, spread
from llm.objectives.loss import Loss, Term, weighted
from llm.pipeline import STAGES, open_step
from llm.sharding import AxisRules, batch_sharding, make_mesh
from tests import tiny


class Rows:
    """Row i holds i + 1 and has the weight 2 i + 1."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        assert indices.max() < self.count
        return {'value_BT': np.stack([indices + 1.0] * 2, axis=1).astype(np.float32),
                'mask_B': (2.0 * indices + 1.0).astype(np.float32)}


def run(batch_size: int = 8, eval_rows: int = 100, mesh: tuple[int, int, int] = (8, 1, 1)):
    """As much of a run as an evaluator reads."""
    config = types.SimpleNamespace(batch_size=batch_size, eval_rows=eval_rows)
    sharding = batch_sharding(make_mesh(MeshConfig(*mesh)), AxisRules.from_config(tiny.EXEC.rules))
    return types.SimpleNamespace(config=config, rows_sharding=sharding)


def objective(params, frozen, batch, key) -> Loss:
    assert key is None
    total, weight = weighted(batch['value_BT'][:, 0], batch['mask_B'])
    return Loss({'mean': Term(params * total, weight)}, {'rows': (jnp.sum(batch['mask_B'] > 0), jnp.float32(1))})


def expected(rows) -> float:
    return sum((row + 1) * (2 * row + 1) for row in rows) / sum(2 * row + 1 for row in rows)


# Which rows are read of more than there is time for: evenly spread ones.
SPREAD = {(19, 5): [0, 3, 7, 11, 15], (19, 17): [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17]}


@pytest.mark.parametrize('count, most, expected', [(3, 5, [0, 1, 2]), (6, 3, [0, 2, 4]), (0, 3, [])])
def test_spread(count, most, expected):
    assert spread(range(count), most) == expected


@pytest.mark.parametrize('mesh', [(1, 1, 1), (8, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize('count, eval_rows', [(5, 100), (8, 100), (19, 100), (19, 5), (19, 17)])
def test_rows_that_fill_up_a_batch_count_nowhere(count, eval_rows, mesh):
    values = make_evaluator(run(8, eval_rows, mesh), objective, {'mine': Rows(count)})(2.0)
    np.testing.assert_allclose(values['mean'], 2 * expected([*SPREAD.get((count, eval_rows), range(count))]), rtol=1e-6)
    assert list(values) == ['mean', 'rows']


def test_batches_have_one_shape_and_each_row_once():
    batches = list(held_out_batches(run(8), Rows(19), 8))
    assert [batch['value_BT'].shape for batch in batches] == [(8, 2)] * 3
    values = np.concatenate([batch['value_BT'][:, 0] for batch in batches])
    assert values.tolist() == [*range(1, 20), 0, 0, 0, 0, 0]
    assert np.concatenate([batch['index_B'] for batch in batches]).tolist() == list(range(24))


def test_sources_are_told_apart_and_totalled():
    values = make_evaluator(run(), objective, {'a': Rows(3), 'b': Rows(11)})(1.0)
    np.testing.assert_allclose([values['mean/a'], values['mean/b']], [expected(range(3)), expected(range(11))], 1e-6)
    weights = 3**2, 11**2  # the sum of 2 i + 1
    np.testing.assert_allclose(values['mean'], np.average([values['mean/a'], values['mean/b']], weights=weights), 1e-6)


def test_mean_over_nothing_is_not_a_number():
    assert math.isnan(means([Loss({}, {'accuracy': (jnp.float32(0), jnp.float32(0))})])['accuracy'])


@pytest.mark.parametrize('name, step', [('pretrain', 4), ('sft', 2), ('reward', 4), ('ppo', 4)])
def test_any_step_gives_the_numbers_of_its_row_again(finished_pipeline, name, step):
    folder, = finished_pipeline.glob(f'{name}-*')
    opened, found, params = open_step(f'{folder}@{step}', say=lambda line: None, progress=lambda *work: None)
    with jax.set_mesh(opened.mesh):
        values = STAGES[name].evaluator(opened)(params)
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    row, = (row for row in rows if (row['step'], row['kind']) == (step, 'evaluate'))
    assert found == step and row.items() >= values.items()

"""One update: the same numbers for any accumulation and mesh, one compilation, no harm from a bad batch."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm import train_state
from llm.objectives.loss import Loss, Term, total, weighted
from llm.sharding import AxisRules, batch_sharding, global_batch, make_mesh
from llm.train_step import make_eval_step, make_train_step
from tests import tiny

RULES = AxisRules.from_config({'batch': ('data', 'fsdp'), 'embed': ('fsdp',), 'mlp': ('tensor',)})
ROWS, WIDTH = 32, 4
RANDOM = np.random.default_rng(0)
BATCH = {'x_BD': RANDOM.normal(size=(ROWS, WIDTH)).astype(np.float32),
         'y_BF': RANDOM.normal(size=(ROWS, WIDTH)).astype(np.float32),
         # Very uneven over micro-batches: a mean of means would be far off.
         'mask_B': (np.arange(ROWS) % 4 == 1).astype(np.float32) + (np.arange(ROWS) > 29)}


def init(key):
    return {'w': nn.LogicallyPartitioned(jax.random.normal(key, (WIDTH, WIDTH)), ('embed', 'mlp'))}


def objective(params, frozen, batch, key):
    """Two terms of different weight and a metric: squares over the mask, absolute errors over all rows."""
    del key
    error_BF = batch['x_BD'] @ params['w'] - batch['y_BF'] * frozen
    square_B, absolute_B = jnp.sum(jnp.square(error_BF), axis=1), jnp.sum(jnp.abs(error_BF), axis=1)
    everything_B = jnp.ones_like(absolute_B)
    return Loss({'square': Term(*weighted(square_B, batch['mask_B'])),
                 'absolute': Term(*weighted(absolute_B, everything_B), coef=0.3)},
                {'large': weighted((square_B > 4).astype(jnp.float32), batch['mask_B'])})


def noisy(params, frozen, batch, key):
    """A loss that is nothing but what is drawn for it."""
    del frozen
    draw_B = jax.random.normal(key, batch['mask_B'].shape) + 0 * jnp.sum(params['w'])
    return Loss({'noise': Term(jnp.sum(draw_B), jnp.float32(draw_B.size))}, {})


class Setup:
    """A mesh with a state, its batch, and a way to make steps."""

    def __init__(self, mesh=(1, 1, 1), tx=None, ema=False):
        self.mesh = make_mesh(tiny.execution(mesh).mesh)
        self.tx = tx or optax.adamw(0.1)
        self.state = train_state.create(init, self.tx, 0, self.mesh, RULES, ema=ema)

    def batch(self, **changes):
        fields = BATCH | changes

        def rows(indices):
            return {name: field[indices] for name, field in fields.items()}
        return global_batch(rows, np.arange(ROWS), batch_sharding(self.mesh, RULES))

    def step(self, objective=objective, **how):
        return make_train_step(objective, self.tx, shardings=train_state.shardings(self.state), **how)

    def run(self, steps, **how):
        """(metrics of each step, final parameters)"""
        step, rows = self.step(**how), []
        for _ in range(steps):
            self.state, metrics = step(self.state, jnp.float32(2), self.batch())
            rows.append({name: float(value) for name, value in metrics.items()})
        return rows, np.asarray(self.state.params['w'])


@pytest.fixture(scope='module')
def expected():
    return Setup().run(3)


@pytest.mark.parametrize('mesh, micro_batches', (
    ((1, 1, 1), 4), ((8, 1, 1), 1), ((8, 1, 1), 4), ((2, 2, 2), 1), ((2, 2, 2), 2)))
def test_accumulation_and_mesh_do_not_change_losses_and_parameters(expected, mesh, micro_batches):
    rows, params = Setup(mesh).run(3, micro_batches=micro_batches)
    for row, expected_row in zip(rows, expected[0], strict=True):
        assert row == pytest.approx(expected_row, rel=1e-5)
    np.testing.assert_allclose(params, expected[1], rtol=1e-5, atol=1e-6)


def test_metrics_are_those_of_the_whole_batch_before_the_update():
    setup = Setup()
    loss, grads = jax.jit(jax.value_and_grad(lambda params: total(objective(params, 2.0, BATCH, None))))(
        setup.state.params)
    error = BATCH['x_BD'] @ np.asarray(setup.state.params['w']) - 2 * BATCH['y_BF']
    square, absolute = np.sum(error**2, axis=1), np.sum(np.abs(error), axis=1)
    (row,), _ = setup.run(1, schedule=lambda step: 0.5 + step)
    assert row == pytest.approx({
        'loss': float(loss), 'grad_norm': float(jnp.linalg.norm(grads['w'])), 'finite': 1.0,
        'learning_rate': 0.5, 'weight': ROWS, 'absolute': np.mean(absolute),
        'square': np.average(square, weights=BATCH['mask_B']),
        'large': np.average(square > 4, weights=BATCH['mask_B'])}, rel=1e-5)


def test_the_update_is_the_optimizers():
    setup = Setup(tx=optax.sgd(0.1))
    before = np.asarray(setup.state.params['w'])
    grads = jax.grad(lambda params: total(objective(params, 2.0, BATCH, None)))({'w': before})
    _, after = setup.run(1)
    np.testing.assert_allclose(after, before - 0.1 * grads['w'], rtol=1e-5)
    assert int(setup.state.step) == 1


def test_it_compiles_once_and_donates_the_state_it_was_given():
    setup, compiled = Setup((2, 2, 2)), []

    def listen(event, seconds, **of):
        if event.endswith('backend_compile_duration') and of.get('fun_name') == 'jit(step)':
            compiled.append(seconds)
    jax.monitoring.register_event_duration_secs_listener(listen)
    step, first = setup.step(micro_batches=2), setup.state
    state, _ = step(first, jnp.float32(2), setup.batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((first.params, first.opt_state)))
    for _ in range(3):
        shardings = train_state.shardings(state)
        state, _ = step(state, jnp.float32(2), setup.batch())
        assert train_state.shardings(state) == shardings
    assert len(compiled) == 1


def test_totalling_the_weights_does_not_run_the_model_twice():
    setup = Setup()

    def matmuls(micro_batches):
        step = setup.step(micro_batches=micro_batches)
        return step.lower(setup.state, jnp.float32(2), setup.batch()).compile().as_text().count(' dot(')
    assert matmuls(2) == matmuls(1) > 0


@pytest.mark.parametrize('micro_batches', (1, 4))
@pytest.mark.parametrize('bad', (np.nan, np.inf))
def test_a_batch_that_is_not_finite_changes_nothing_but_the_step(micro_batches, bad):
    setup = Setup(ema=True)
    before = jax.tree.map(np.asarray, (setup.state.params, setup.state.opt_state, setup.state.ema))
    x_BD = BATCH['x_BD'].copy()
    x_BD[3, 2] = bad
    step = setup.step(micro_batches=micro_batches, ema_decay=0.9)
    state, metrics = step(setup.state, jnp.float32(2), setup.batch(x_BD=x_BD))
    assert metrics['finite'] == 0 and not np.isfinite(metrics['grad_norm'])
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state, state.ema), before)
    assert int(state.step) == 1
    state, metrics = step(state, jnp.float32(2), setup.batch())
    assert metrics['finite'] == 1 and np.all(np.isfinite(state.params['w']))


def test_the_average_follows_the_parameters_and_is_left_alone_without_decay():
    setup = Setup(ema=True)
    before = np.asarray(setup.state.params['w'])
    _, after = setup.run(1, ema_decay=0.9)
    np.testing.assert_allclose(setup.state.ema['w'], 0.9 * before + 0.1 * after, rtol=1e-5)


def test_every_step_and_micro_batch_draws_anew_and_the_same_again():
    draws = [[row['loss'] for row in Setup().run(2, objective=noisy, micro_batches=4)[0]] for _ in range(2)]
    assert draws[0] == draws[1] and draws[0][0] != draws[0][1]
    # Four equal parts would have the spread of 8 draws, not of 32: the parts must differ.
    key = jax.random.fold_in(Setup().state.key, 0)
    parts = [jnp.mean(jax.random.normal(jax.random.fold_in(key, part), (ROWS // 4,))) for part in range(4)]
    np.testing.assert_allclose(draws[0][0], np.mean(parts), rtol=1e-4)


def test_evaluation_gives_sums_without_a_key():
    def keyless(params, frozen, batch, key):
        assert key is None
        return objective(params, frozen, batch, key)
    setup = Setup()
    evaluate = make_eval_step(keyless)
    whole = evaluate(setup.state.params, jnp.float32(2), BATCH)
    halves = [evaluate(setup.state.params, jnp.float32(2), jax.tree.map(lambda field: field[rows], BATCH))
              for rows in (slice(0, 16), slice(16, 32))]
    for name, term in whole.terms.items():
        np.testing.assert_allclose(sum(half.terms[name].sum for half in halves), term.sum, rtol=1e-5)
        np.testing.assert_allclose(sum(half.terms[name].weight for half in halves), term.weight, rtol=1e-6)

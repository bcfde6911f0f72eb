"""One update of the parameters, and one evaluation, as compiled functions.

In: an objective (parameters, frozen, batch, key) -> Loss, and an optimizer.
Out: step(state, frozen, batch) -> (state, metrics), and evaluate(params, frozen, batch) -> Loss.
Left out: the loop (`llm/loop.py`); what the numbers mean (`llm/objectives/`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm.objectives.loss import Loss, Term, ratio, total
from llm.train_state import TrainState

Objective = Callable[[Any, Any, dict[str, jax.Array], jax.Array | None], Loss]


def make_train_step(objective: Objective, tx: optax.GradientTransformation, *, shardings: TrainState,
                    micro_batches: int = 1, schedule: optax.Schedule | None = None, ema_decay: float = 0.0):
    """Compiles step(state, frozen, batch) -> (state, metrics). It donates its state: use the returned one.

    The loss is that of the whole global batch for any number of micro-batches: the weight of every term is
    totalled first, then each part's terms are scaled by it before they are differentiated.
    A step whose loss or gradient is not finite changes nothing but `state.step`, and says so.

    Args:
      objective: its key is fold_in(fold_in(state.key, state.step), micro-batch).
      shardings: `train_state.shardings(state)`; the new state is laid out the same way.
      micro_batches: parts that the batch is computed in, one after another; divides the number of rows.
      schedule: for reporting; its count is the step's, which runs ahead of the optimizer's by skipped steps.
      ema_decay: of `state.ema`, per step; 0 leaves it alone.
    Returns: the step. Of its batch every leaf has the row axis first. Its metrics are float32 scalars on the
      device: `loss`; every term and metric by name, as a mean; `weight`, the largest weight of a term;
      `grad_norm` before clipping; `finite` 1 or 0; `learning_rate` where a schedule is given.
    """
    def step(state: TrainState, frozen: Any, batch: dict[str, jax.Array]):
        key = jax.random.fold_in(state.key, state.step)
        if micro_batches == 1:
            grads, loss = _gradient(objective, state.params, frozen, batch, jax.random.fold_in(key, 0))
        else:
            parts = _split(batch, micro_batches)
            grads, loss = _accumulate(objective, state.params, frozen, parts, key, shardings.params)
        metrics = _report(loss) | {'grad_norm': optax.tree.norm(grads)}
        finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['grad_norm'])
        metrics['finite'] = finite.astype(jnp.float32)
        if schedule is not None:
            metrics['learning_rate'] = jnp.asarray(schedule(state.step), jnp.float32)
        updated = _update(tx, state, grads, ema_decay)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        return kept._replace(step=state.step + 1, key=state.key), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def make_eval_step(objective: Objective):
    """Compiles evaluate(params, frozen, batch) -> Loss: sums and weights. Its objective gets None as key."""
    return jax.jit(lambda params, frozen, batch: objective(params, frozen, batch, None))


def _update(tx, state, grads, ema_decay) -> TrainState:
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = optax.incremental_update(params, state.ema, 1 - ema_decay) if ema_decay else state.ema
    return state._replace(params=params, opt_state=opt_state, ema=ema)


def _gradient(objective, params, frozen, batch, key, weights=None):
    def scaled(params):
        loss = objective(params, frozen, batch, key)
        return total(loss, weights), loss
    grads, loss = jax.grad(scaled, has_aux=True)(params)
    return grads, loss


def _accumulate(objective, params, frozen, parts, key, param_shardings):
    """Gradient and Loss of the whole batch, from parts with a leading axis of micro-batches."""
    micro_batches = jax.tree.leaves(parts)[0].shape[0]
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(micro_batches))

    def weights_of(part):
        # Weights depend on masks alone: the compiler drops the model from this pass.
        return {name: term.weight for name, term in objective(params, frozen, *part).terms.items()}
    weights = jax.tree.map(jnp.sum, jax.lax.map(weights_of, (parts, keys)))

    def add(grads, part):
        more, loss = _gradient(objective, params, frozen, *part, weights)
        return jax.tree.map(jnp.add, grads, more), loss
    zeros = jax.lax.with_sharding_constraint(jax.tree.map(jnp.zeros_like, params), param_shardings)
    grads, losses = jax.lax.scan(add, zeros, (parts, keys))
    terms = {name: Term(jnp.sum(term.sum), jnp.sum(term.weight), term.coef[0])
             for name, term in losses.terms.items()}
    return grads, Loss(terms, jax.tree.map(jnp.sum, losses.metrics))


def _split(batch, micro_batches):
    """[B, ...] -> [micro_batches, B / micro_batches, ...], by stride, so that rows stay on their devices."""
    def one(x):
        assert x.shape[0] % micro_batches == 0, f'{x.shape[0]} rows do not split into {micro_batches} parts'
        return x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1)
    return jax.tree.map(one, batch)


def _report(loss: Loss) -> dict[str, jax.Array]:
    means = {name: ratio(term.sum, term.weight) for name, term in loss.terms.items()}
    means |= {name: ratio(*pair) for name, pair in loss.metrics.items()}
    weight = jnp.max(jnp.stack([term.weight for term in loss.terms.values()]))
    return {'loss': total(loss), 'weight': weight, **means}

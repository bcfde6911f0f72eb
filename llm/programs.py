"""What a stage compiles, known from its config alone: jitted functions, and the shapes of what they are given.

In: a `Run`, which may be one on paper: its mesh need not be there, its folder and its data are not touched.
Out: `Programs` of a stage, made of the very functions that it runs.
Left out: compiling and judging them (`llm.plan`); held-out numbers, samples and figures, which need less.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from llm.run import Run
from llm.train_state import abstract_state, shardings, TrainState
from llm.train_step import make_train_step, Objective


class Program(NamedTuple):
    """A jitted function with the arguments of one call, as shapes with shardings."""

    jitted: Any
    args: tuple
    holds: tuple[str, ...]  # those of `Programs.resident` that are among the arguments
    tokens: int  # that go through it in a call, padding included
    model_flops: float  # of the arithmetic that the models need for them, in PaLM's convention: all scores
    causal_flops: float  # the same without the masked half of attention's scores
    calls: int = 1  # in a step of the stage
    most_trips: int = 0  # of loops that data ends


class Programs(NamedTuple):
    """All of a stage's step."""

    resident: dict[str, Any]  # name -> shapes of what stays in memory from one program to the next
    programs: dict[str, Program]
    tokens: int  # of a step, padding included


def make_step(run: Run, objective: Objective, tx: optax.GradientTransformation, state: TrainState,
              schedule: optax.Schedule | None = None) -> Callable:
    """The stage's compiled update; of the state only the layout is looked at."""
    return make_train_step(objective, tx, shardings=shardings(state), schedule=schedule,
                           micro_batches=run.config.exec.micro_batches, ema_decay=run.config.optim.ema_decay)


def state_of(run: Run, init: Callable[[jax.Array], Any], tx: optax.GradientTransformation) -> TrainState:
    """The shapes of `run.train_state`."""
    return abstract_state(init, tx, run.mesh, run.rules, ema=run.config.optim.ema_decay > 0)


def shape_rows(run: Run, count: int, **fields: tuple[tuple[int, ...], Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch's shapes from those of one row."""
    return {name: jax.ShapeDtypeStruct((count, *shape), dtype, sharding=run.rows_sharding)
            for name, (shape, dtype) in fields.items()}


def text_rows(run: Run, count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Batches of packed rows, as `data.rows.PackedRows` gives them."""
    length = (run.config.seq_len,)
    whole = dict.fromkeys(('tokens_BT', 'targets_BT', 'positions_BT', 'segments_BT'), (length, jnp.int32))
    return shape_rows(run, count, **whole, mask_BT=(length, jnp.float32))


def one_update(state: TrainState, step: Callable, batch: Any, *, tokens: int,
               flops_per_token: Callable[..., float]) -> Programs:
    """A stage whose step is one program; its arithmetic is `train_flops_per_token`'s, given but for `scores_share`."""
    resident = {'parameters': state.params, 'optimizer': state.opt_state}
    if state.ema is not None:
        resident['average'] = state.ema
    return Programs(resident, {'step': Program(
        step, (state, None, batch), tuple(resident), tokens, flops_per_token() * tokens,
        flops_per_token(scores_share=0.5) * tokens)}, tokens)

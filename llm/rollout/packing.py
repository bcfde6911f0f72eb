"""Trajectories side by side in rows, so that models read little padding: where each token goes, and how it comes back.

In: lengths of trajectories, or of ranked answers, on the host.
Out: a `Packing`, which lays arrays out and puts results back.
Left out: texts and chats, which are packed once, when they are prepared (`llm.data.prepare`).

All rows have equally many trajectories, long ones beside short ones, and are as wide as the fullest needs it, in
eighths of the widest, with logits for a number of places in quarters: every shape is compiled, so there are few.
"""

from collections.abc import Callable
import functools
import heapq

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from llm.architecture import ModelConfig
from llm.execution import ExecConfig, SPLASH_BLOCK
from llm.model.transformer import train_flops_per_token
from llm.sharding import AxisRules

_TOGETHER = 4  # trajectories in a row, at most: more balance better, and attention passes over more that it masks
_WIDTHS, _PLACES = 8, 4


@struct.dataclass
class Packing:
    """R rows of W tokens, from trajectories [B, T].

    source_RW: int32; the place of each token among all B * T; from B * T on padding, no two alike.
    """

    source_RW: jax.Array
    length: int = struct.field(pytree_node=False)  # T
    most_chosen: int = struct.field(pytree_node=False)  # in a row

    @property
    def positions_RW(self) -> jax.Array:
        """From 0 in every trajectory."""
        return self.source_RW % self.length

    @property
    def segments_RW(self) -> jax.Array:
        """Whose a token is."""
        return self.source_RW // self.length

    def lay(self, x_BT: jax.Array) -> jax.Array:
        """x_RW, 0 on padding."""
        return jnp.ravel(x_BT).at[self.source_RW].get(mode='fill', fill_value=0)

    def batch(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Fields [B, T], mask_BT among them, laid out; and positions_BT, segments_BT, place_BS: S columns of each row,
        those of chosen tokens first."""
        laid = jax.tree.map(self.lay, fields)
        place_BS = jnp.argsort(laid['mask_BT'] == 0, axis=1, stable=True)[:, :self.most_chosen]
        return laid | {'positions_BT': self.positions_RW, 'segments_BT': self.segments_RW, 'place_BS': place_BS}

    def back(self, x_RW: jax.Array, trajectories: int) -> jax.Array:
        """x_BT of all B trajectories, 0 where nothing was laid out."""
        flat = jnp.zeros(trajectories * self.length, x_RW.dtype)
        return flat.at[self.source_RW].set(x_RW, mode='drop', unique_indices=True).reshape(trajectories, self.length)


def make_pack(config: ModelConfig, exec_config: ExecConfig) -> Callable[..., Packing]:
    """`pack` for a model without logits, run like that."""
    rules = AxisRules.from_config(exec_config.rules)
    return functools.partial(
        pack, price=functools.partial(train_flops_per_token, config, logits_share=0.0), ways=rules.ways('batch'),
        unit=rules.ways('length') * (SPLASH_BLOCK if exec_config.attention == 'splash' else 1))


def pack(which_PM: np.ndarray, length_B: np.ndarray, chosen_B: np.ndarray, *, length: int, most_chosen: int,
         price: Callable[[int], float], ways: int = 1, unit: int = 1) -> Packing:
    """Some of B trajectories, as cheaply as may be: one in each row, or some.

    Args:
      which_PM: their numbers, by the micro-batch that reads them; rows of P micro-batches take turns, as
        `train_step.make_train_step` cuts them.
      length_B, chosen_B: tokens of each, and of these the chosen ones, up to `length` and `most_chosen`.
      price: of reading a token in rows of that width: attention meets all of a row, and masks the others' part.
      ways: what divides a micro-batch's rows.
      unit: what divides their width and their places; divides `length`.
    """
    together = next(count for count in (_TOGETHER, 2, 1) if which_PM.shape[1] % (count * ways) == 0 or count == 1)
    found = (_packed(which_PM, length_B, chosen_B, count, length, most_chosen, unit) for count in {1, together})
    return min(found, key=lambda packing: packing.source_RW.size * price(packing.source_RW.shape[1]))


def _packed(which_PM: np.ndarray, length_B: np.ndarray, chosen_B: np.ndarray, together: int, length: int,
            most_chosen: int, unit: int) -> Packing:
    parts = [_balanced(which_M, length_B, len(which_M) // together) for which_M in which_PM]
    members = [row for rows in zip(*parts) for row in rows]
    width, most = (_steps(max(int(size_B[row].sum()) for row in members), together * size, steps, unit)
                   for size_B, size, steps in ((length_B, length, _WIDTHS), (chosen_B, most_chosen, _PLACES)))
    source_RW = length_B.size * length + np.arange(len(members) * width, dtype=np.int32).reshape(-1, width)
    for row, numbers in enumerate(members):
        filled = np.concatenate([number * length + np.arange(length_B[number]) for number in numbers])
        source_RW[row, :len(filled)] = filled
    return Packing(source_RW, length, min(most, width))


def _steps(needed: int, whole: int, steps: int, unit: int) -> int:
    """The smallest of so many equal steps up to the whole that is enough, in whole units."""
    enough = -(-whole * -(-needed * steps // whole) // steps)
    return -(-enough // unit) * unit


def _balanced(which_M: np.ndarray, length_B: np.ndarray, rows: int) -> list[list[int]]:
    """Who is in which row: the longest first, each into the emptiest of those that have a place left."""
    together = len(which_M) // rows
    members: list[list[int]] = [[] for _ in range(rows)]
    open_rows = [(0, row) for row in range(rows)]
    for number in which_M[np.argsort(-length_B[which_M], kind='stable')]:
        filled, row = heapq.heappop(open_rows)
        members[row].append(number)
        if len(members[row]) < together:
            heapq.heappush(open_rows, (filled + int(length_B[number]), row))
    return members

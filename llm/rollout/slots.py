"""Rows of a cache that samples take in turns: how the first get theirs, and how the next in the queue get a free one.

In: keys and values of prompts, samples that wait. Out: `Slots`, filled. Left out: what a step does with them
(`generate.py`), how prompts are read (`prefill.py`).

C slots are rows of the cache. Every shard of the rows has its own slots, queue and prompts: no keys and values cross
between devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm.sharding import AxisRules


class Samples(NamedTuple):
    """What each is at; of those that wait, after the first token."""

    token_C: jax.Array  # int32; the last that was drawn
    position_C: jax.Array  # int32; of that one in its row
    drawn_C: jax.Array  # int32; tokens so far
    left_C: jax.Array  # int32; tokens that may follow; 0: it is done, and its slot is free
    index_C: jax.Array  # int32; the caller's name of it


class Queue(NamedTuple):
    """B samples in the order of their turns, those of a shard together, and what they begin from."""

    waiting_B: Samples
    row_B: jax.Array  # int32; of a sample's prompt in kv, within the shard
    kv: Any  # arrays [..., P, K, W, H]; the last of W columns is that of the prompt's last token


class Slots(NamedTuple):
    """C of them, with a cache's arrays, and what is known of the queue's turns."""

    at_C: Samples
    kv: Any  # [..., C, K, S, H]
    next_W: jax.Array  # int32; of each shard, how many samples have had their turn
    slot_B: jax.Array  # int32; the slot that a sample got, within the shard
    start_B: jax.Array  # int32; the step in which it got it


def begin(queue: Queue, *, ways: int, slots: int, columns: int, rules: AxisRules) -> Slots:
    """The first samples of each shard's queue, one in each of its `slots`; the cache's next column is 0."""
    def local(queue: Queue) -> Slots:
        def taken(x: jax.Array) -> jax.Array:
            x = x.take(queue.row_B[:slots], axis=x.ndim - 4)
            return jnp.pad(x, (*((0, 0),) * (x.ndim - 2), (columns - x.shape[-2], 0), (0, 0)))
        turns_B = jnp.arange(len(queue.row_B))
        return Slots(jax.tree.map(lambda x: x[:slots], queue.waiting_B), jax.tree.map(taken, queue.kv),
                     jnp.full(1, slots), turns_B, jnp.zeros_like(turns_B))
    return _by_shard(local, ways, rules)(queue)


def refill(slots: Slots, queue: Queue, step: jax.Array, column: jax.Array, *, ways: int, rules: AxisRules) -> Slots:
    """Gives free slots to those who wait; `column` is the cache's next."""
    def local(slots: Slots, queue: Queue, step: jax.Array, column: jax.Array) -> Slots:
        waiting = jnp.sum(queue.waiting_B.left_C > 0)  # who is done after one token stands behind those

        def more(slots: Slots) -> jax.Array:
            return (slots.next_W[0] < waiting) & (slots.at_C.left_C == 0).any()

        def one(slots: Slots) -> Slots:
            turn, slot = slots.next_W[0], slots.at_C.left_C.argmin()

            def put(held: jax.Array, prompts: jax.Array) -> jax.Array:
                axis = held.ndim - 4
                row = jax.lax.dynamic_index_in_dim(prompts, queue.row_B[turn], axis)
                row = jnp.pad(row, (*((0, 0),) * (row.ndim - 2), (held.shape[-2] - row.shape[-2], 0), (0, 0)))
                return jax.lax.dynamic_update_slice_in_dim(held, jnp.roll(row, column, -2), slot, axis)
            return Slots(jax.tree.map(lambda x, new: x.at[slot].set(new[turn]), slots.at_C, queue.waiting_B),
                         jax.tree.map(put, slots.kv, queue.kv), slots.next_W + 1,
                         slots.slot_B.at[turn].set(slot), slots.start_B.at[turn].set(step))
        return jax.lax.while_loop(more, one, slots)
    return _by_shard(local, ways, rules)(slots, queue, step, column)


def _by_shard(function: Callable[..., Slots], ways: int, rules: AxisRules) -> Callable[..., Slots]:
    """The function of each shard's part alone."""
    if ways == 1:
        return function
    mesh, axes = jax.sharding.get_abstract_mesh(), dict(rules.rules)['batch']
    manual = tuple(axis for axis in axes if mesh.shape[axis] > 1)

    def spec(x: jax.Array) -> PartitionSpec:
        return PartitionSpec(*(None,) * max(x.ndim - 4, 0), manual) if x.ndim else PartitionSpec()

    def call(*args: Any) -> Slots:
        out = jax.eval_shape(function, *args)  # of all shards, not of one; what counts is the rank
        return jax.shard_map(function, in_specs=jax.tree.map(spec, args), out_specs=jax.tree.map(spec, out),
                             axis_names=set(manual))(*args)
    return call

"""The training loop as a generator, and the stream of batches that feeds it.

In: a state, a compiled step, rows by position.
Out: (step, state, metrics) after each step; what to log, evaluate and save is the stage's business.
Left out: anything that touches disk, clock or screen.
"""

from collections.abc import Callable, Collection, Iterator
import itertools
import queue
import threading
from typing import Any, TypeVar

import jax
from jax.sharding import NamedSharding
import numpy as np

from llm.sharding import global_batch
from llm.train_state import TrainState

Item = TypeVar('Item')
Scalars = dict[str, jax.Array]


def fit(state: TrainState, step_fn: Callable[[TrainState, Any], tuple[TrainState, Scalars]],
        batches: Iterator[Any], *, start: int, stop: int) -> Iterator[tuple[int, TrainState, Scalars]]:
    """Yields (step, state, metrics) for step = start + 1 ... stop, the number of steps done.

    The state is lent until the next step, which donates its buffers: what outlives that must be copied.
    Metrics stay on the device, so that nothing waits for them until they are looked at.
    """
    for step in range(start + 1, stop + 1):
        state, metrics = step_fn(state, next(batches))
        yield step, state, metrics


def every(n: int, step: int) -> bool:
    """Whether something that happens every n steps happens after this one."""
    return step % n == 0


def batches(rows: Callable[[np.ndarray], dict[str, np.ndarray]], *, start: int, batch_size: int,
            sharding: NamedSharding, skipped: Collection[int] = ()) -> Iterator[dict[str, jax.Array]]:
    """Global batches for ever, of the stream cut into batches: that of step `start` + 1, then the next ones.

    Args:
      rows: dense rows of given positions in the stream.
      start: steps done.
      batch_size: global, in rows.
      sharding: of the row axis.
      skipped: batches, numbered from 0, that no step takes.
    """
    for step in itertools.count(start + 1):
        first = batch_of(step, skipped) * batch_size
        yield global_batch(rows, np.arange(first, first + batch_size), sharding)


def batch_of(step: int, skipped: Collection[int]) -> int:
    """Which batch a step takes: the first one takes batch 0, each the next one that is not skipped."""
    batch = step - 1
    for one in sorted(skipped):
        batch += one <= batch
    return batch


def prefetch(iterator: Iterator[Item], depth: int) -> Iterator[Item]:
    """The same items, up to `depth` of them made ahead by a thread.

    An exception of the iterator is raised here, after the items before it. The thread ends with it.
    """
    ready: queue.Queue = queue.Queue(depth)
    closed = threading.Event()

    def put(*message) -> bool:
        # The main thread counts as dead once the interpreter ends, which then waits for this thread: a daemon
        # would be torn down in the middle of JAX instead.
        while not closed.is_set() and threading.main_thread().is_alive():
            try:
                ready.put(message, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def produce():
        try:
            for item in iterator:
                if not put(item, None):
                    return
            put(None, StopIteration())
        except BaseException as error:  # whatever it is, it belongs to the consumer's thread
            put(None, error)

    threading.Thread(target=produce, name='prefetch').start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()

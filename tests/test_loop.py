"""The loop counts steps, batches follow positions, prefetching neither hides errors nor outlives its use."""

import itertools
import subprocess
import sys
import threading
import time
import types

from hypothesis import given, strategies as st
import jax
import numpy as np
import pytest

from llm.execution import MeshConfig
from llm.loop import batch_of, batches, every, fit, prefetch
from llm.phases import Phases
from llm.run import Run
from llm.sharding import AxisRules, batch_sharding, make_mesh
from tests import tiny


def test_fit_counts_steps_done_and_passes_the_state_on():
    def add(state, batch):
        return state + batch, {'seen': state}
    found = list(fit(10, add, iter([1, 2, 3, 4]), start=5, stop=8))
    assert found == [(6, 11, {'seen': 10}), (7, 13, {'seen': 11}), (8, 16, {'seen': 13})]


def test_fit_does_nothing_when_it_is_already_there():
    assert list(fit(None, None, iter([]), start=8, stop=8)) == []


def test_every():
    assert [step for step in range(1, 10) if every(3, step)] == [3, 6, 9]


@pytest.mark.parametrize('mesh', tiny.MESHES)
def test_batches_follow_positions_and_go_on_where_they_stopped(mesh):
    execution = tiny.execution(mesh)
    sharding = batch_sharding(make_mesh(execution.mesh), AxisRules.from_config(execution.rules))

    def rows(positions):
        return {'position_B': positions, 'double_BT': np.stack([positions, 2 * positions], axis=1)}
    taken = list(itertools.islice(batches(rows, start=0, batch_size=8, sharding=sharding), 3))
    again = next(batches(rows, start=2, batch_size=8, sharding=sharding))
    np.testing.assert_array_equal(np.concatenate([batch['position_B'] for batch in taken]), np.arange(24))
    np.testing.assert_array_equal(taken[2]['double_BT'], again['double_BT'])
    assert isinstance(again['double_BT'], jax.Array) and again['double_BT'].sharding == sharding
    without = itertools.islice(batches(rows, start=1, batch_size=8, sharding=sharding, skipped=(1, 3)), 2)
    assert [int(batch['position_B'][0]) for batch in without] == [2 * 8, 4 * 8]


@given(st.sets(st.integers(0, 12)), st.integers(0, 12))
def test_steps_take_every_batch_that_is_not_skipped_once_and_in_order(skipped, more):
    left = [batch for batch in range(40) if batch not in skipped][:20]
    assert [batch_of(step, skipped) for step in range(1, 21)] == left
    # What a step took before the one that went wrong, it takes still.
    wrong = 1 + more
    wider = skipped | {batch_of(wrong, skipped)}
    assert [batch_of(step, wider) for step in range(1, wrong)] == [batch_of(step, skipped) for step in range(1, wrong)]
    assert batch_of(wrong, wider) == batch_of(wrong + 1, skipped)


def prefetching():
    return sum(thread.name == 'prefetch' for thread in threading.enumerate())


def wait_until(condition):
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_prefetch_gives_the_same_items_and_ends():
    assert list(prefetch(iter(range(20)), 3)) == list(range(20))
    assert wait_until(lambda: not prefetching())


def test_prefetch_runs_ahead_by_its_depth_and_no_further():
    made = []
    items = prefetch((made.append(i) or i for i in itertools.count()), 3)
    assert next(items) == 0
    # One handed over, three ready, one made and waiting for room.
    assert wait_until(lambda: len(made) == 5)
    time.sleep(0.3)
    assert len(made) == 5
    items.close()
    assert wait_until(lambda: not prefetching())


def test_prefetch_raises_the_error_after_the_items_before_it():
    def broken():
        yield from (1, 2)
        raise OSError('the disk is gone')
    items = prefetch(broken(), 8)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match='the disk is gone'):
        next(items)
    assert wait_until(lambda: not prefetching())


def test_a_program_that_ends_in_the_middle_ends_quietly():
    program = ('import itertools\nfrom llm.loop import prefetch\n'
               'items = prefetch(itertools.count(), 2)\nprint(next(items))')
    ended = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, '0\n', '')


def test_waiting_for_a_batch_is_a_phase_and_a_batch_that_is_there_costs_none():
    mesh, rules = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), AxisRules.from_config(tiny.EXEC.rules)
    run = types.SimpleNamespace(phases=Phases(), mesh=mesh, rules=rules, rows_sharding=batch_sharding(mesh, rules),
                                skipped=[])

    def rows(indices):
        time.sleep(0.3)
        return {'x_B': indices}
    made = Run.batches(run, rows, 0, 4)
    next(made)
    first = run.phases.seconds()['wait']
    time.sleep(1.5)  # longer than two batches take
    next(made)
    made.close()
    assert first >= 0.3 and run.phases.seconds()['wait'] - first < 0.2

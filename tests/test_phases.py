"""Seconds by phase: each counts once, and together they are the time that went by."""

import time

import jax
import jax.numpy as jnp
import pytest

from llm import phases as phases_lib
from llm.phases import goodput, Phases
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(phases_lib, 'time', clock)
    return clock


def test_a_second_counts_for_the_innermost_phase(clock):
    phases = Phases()
    clock.now += 1
    with phases.during('train'):
        clock.now += 2
        with phases.during('evaluate'):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    assert phases.seconds() == {'setup': 17.0, 'train': 10.0, 'evaluate': 4.0}


def test_a_phase_ends_with_an_error(clock):
    phases = Phases()
    with pytest.raises(KeyError), phases.during('train'):
        clock.now += 1
        raise KeyError
    clock.now += 2
    assert phases.seconds() == {'train': 1.0, 'setup': 2.0}


def test_compiling_is_taken_from_the_phase_that_it_happened_in_once(clock):
    phases = Phases()
    with phases.during('evaluate'):
        clock.now += 3
        phases.compiled(2.0)  # a trace within the next one
        clock.now += 1
        phases.compiled(3.5)
        clock.now += 4
        phases.compiled(1.0)
    assert phases.seconds() == {'evaluate': 3.5, 'compile': 4.5}


def test_what_was_lost_and_getting_back_there_count_as_restart(clock):
    phases = Phases()
    clock.now += 3  # setup
    phases.compiled(1.0)
    phases.resume({'setup': 2.0, 'train': 10.0}, {'setup': 2.0, 'train': 14.0, 'save': 1.0})
    with phases.during('train'):
        clock.now += 8
        phases.compiled(2.0)
    assert phases.seconds() == {'setup': 2.0, 'train': 16.0, 'restart': 5.0 + 3.0 + 2.0}
    assert phases.timing() == {'goodput': 16 / 28, 'phases': phases.seconds()}


def test_no_second_is_lost_over_many_restarts(clock):
    began, kept, spent = clock.now, {}, {}
    for times in range(4):
        phases = Phases()
        clock.now += 2
        phases.resume(kept, spent)
        with phases.during('rollout'):
            clock.now += 3
        kept = phases.seconds()
        with phases.during('save'):
            clock.now += 5
        spent = phases.seconds()
    assert sum(spent.values()) == clock.now - began
    assert spent == {'setup': 2.0, 'rollout': 4 * 3.0, 'restart': 3 * (2.0 + 5.0), 'save': 5.0}


def test_a_run_that_was_killed_before_its_first_save_starts_anew(clock):
    phases = Phases()
    clock.now += 2
    phases.resume({}, {'setup': 3.0, 'compile': 4.0})
    assert phases.seconds() == {'setup': 2.0, 'restart': 7.0}


@pytest.mark.parametrize('seconds, share', [
    ({}, 0.0), ({'setup': 1.0, 'train': 3.0}, 0.75),
    ({'rollout': 1.0, 'score': 2.0, 'update': 3.0, 'train': 1.0, 'save': 1.0, 'restart': 2.0}, 0.7)])
def test_goodput_is_the_share_of_what_taught(seconds, share):
    assert goodput(seconds) == pytest.approx(share)


def test_jax_says_what_it_compiles_while_somebody_listens():
    began = time.monotonic()
    with Phases('train') as phases:
        jax.jit(lambda x: x + 41.5)(jnp.ones(3)).block_until_ready()
    heard = phases.seconds()
    assert heard['compile'] > 0
    assert sum(heard.values()) <= time.monotonic() - began
    jax.jit(lambda x: x + 43.5)(jnp.ones(3)).block_until_ready()
    assert phases.seconds()['compile'] == heard['compile']

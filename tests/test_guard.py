"""Which steps are held for gone wrong, and that a restarted run holds the same ones."""

import json
import math

from hypothesis import given, strategies as st
import jax.numpy as jnp
import pytest

from llm import guard
from llm.config import GuardConfig
from llm.errors import Diverged, UserError
from llm.guard import Guard, Rewind

SPIKES = GuardConfig(spike=10.0, window=8)


def fed(losses, config=SPIKES, host=None, **others):
    """A guard that has seen these, and its host state."""
    host = {} if host is None else host
    one = Guard(config, host)
    for step, loss in enumerate(losses, 1):
        one.saw(step, {'loss': jnp.float32(loss), **others})
    return one, host


@pytest.mark.parametrize('name', ['loss', 'grad_norm', 'kl', 'reward', 'entropy'])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('spikes', [0.0, 10.0])
def test_what_is_not_finite_is_wrong_from_the_first_step_on(name, value, spikes):
    one = Guard(GuardConfig(spike=spikes), {})
    one.saw(1, {'loss': jnp.float32(1.0)})
    one.saw(2, {'loss': jnp.float32(1.0), name: jnp.float32(value)})
    one.saw(3, {'loss': jnp.float32(math.nan)})
    with pytest.raises(Rewind) as caught:
        one.look()
    assert (caught.value.step, caught.value.metric) == (2, name)
    assert caught.value.value == value or math.isnan(value)


def test_a_loss_that_is_not_finite_is_named_before_what_follows_from_it():
    one = Guard(GuardConfig(), {})
    one.saw(5, {'accuracy': math.nan, 'loss': math.inf})
    with pytest.raises(Rewind, match='^step 5: loss is inf$'):
        one.look()


def test_nothing_is_looked_at_before_it_is_asked_for_and_nothing_twice():
    one, host = fed([1.0] * 5)
    assert host == {}
    one.look()
    assert host['guard'] == {'loss': [1.0] * 5}
    one.look()
    assert host['guard'] == {'loss': [1.0] * 5}


@pytest.mark.parametrize('losses, wrong', [
    ([3.0, 2.9, 2.8, 2.7, 2.6, 9.0], 6),
    ([3.0, 2.9, 2.8, 9.0], None),  # half a window is not full yet
    ([5.0, 4.0, 3.0, 2.0, 1.0, 0.1], None),  # a loss may fall as fast as it likes
    ([0.5, 0.5, 0.5, 0.5, 0.6], None),  # below ten times a fiftieth of 1
    ([0.5, 0.5, 0.5, 0.5, 0.8], 5),
    ([100.0, 100.0, 100.0, 100.0, 119.0], None),  # below ten times a fiftieth of the median
    ([100.0, 100.0, 100.0, 100.0, 121.0], 5),
    ([1.0, 3.0, 1.0, 3.0, 15.0], None),  # deviations of 1.48
    ([1.0, 3.0, 1.0, 3.0, 18.0], 5),
])
def test_spikes_are_told_by_median_and_deviations(losses, wrong):
    one, host = fed(losses)
    if wrong is None:
        one.look()
        assert host['guard']['loss'] == pytest.approx(losses)
    else:
        with pytest.raises(Rewind, match=f'^step {wrong}: loss is {losses[-1]:g}, .* deviations beyond'):
            one.look()
        assert host['guard']['loss'] == pytest.approx(losses[:wrong - 1])  # what went wrong is no measure


@pytest.mark.parametrize('name, value, wrong', [
    ('reward', 50.0, True), ('reward', -50.0, True), ('kl', 50.0, True), ('kl', -50.0, False),
    ('grad_norm', 50.0, True), ('grad_norm', -50.0, False), ('entropy', 50.0, False)])
def test_a_reward_may_leap_neither_way_others_not_up_and_the_rest_as_they_like(name, value, wrong):
    assert bool(name in guard._SIGNS and guard.spike(name, value, [0.5] * 8, SPIKES)) == wrong
    one = Guard(SPIKES, {})
    for step in range(9):
        one.saw(step, {name: value if step == 8 else 0.5})
    if wrong:
        with pytest.raises(Rewind):
            one.look()
    else:
        one.look()


def test_without_spikes_nothing_is_kept():
    one, host = fed([1.0, 1.0, 1.0, 1e9], GuardConfig())
    one.look()
    assert host == {}


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30), st.integers(0, 30))
def test_a_run_that_was_killed_and_restarted_sees_the_same(losses, killed):
    def looked_at(one, host):
        try:
            one.look()
        except Rewind as rewind:
            return str(rewind).split(':')[1], host
        return None, host
    whole = looked_at(*fed(losses))
    before, host = looked_at(*fed(losses[:killed]))
    after, host = (before, host) if before else looked_at(*fed(losses[killed:], host=json.loads(json.dumps(host))))
    assert (after, host) == whole


def test_records_are_json_and_come_back(tmp_path):
    assert guard.rewinds(tmp_path) == ()
    made = [guard.entry(Rewind(7, 'loss', value, ''), batch=6, sealed=4) for value in (math.nan, -math.inf, 0.1)]
    (tmp_path / 'rewinds.json').write_text(json.dumps([one._asdict() for one in made], allow_nan=False))
    assert list(guard.rewinds(tmp_path)) == made
    assert [one.value for one in made] == ['nan', '-inf', 0.1]


def test_after_so_many_rewinds_the_next_one_ends_the_run():
    rewind = Rewind(9, 'grad_norm', math.inf, '')
    before = (guard.entry(rewind, batch=8, sealed=4),) * 2
    guard.check_rewinds('sft', GuardConfig(rewinds=3), before, rewind)
    with pytest.raises(Diverged, match='^sft diverged: step 9: grad_norm is inf, after guard.rewinds=2 ') as caught:
        guard.check_rewinds('sft', GuardConfig(rewinds=2), before, rewind)
    assert caught.value.exit_code == 43 and '\n' not in str(caught.value)


@pytest.mark.parametrize('keys', [{'spike': -1.0}, {'window': 3}, {'rewinds': -1}])
def test_values_out_of_range_cost_one_line(keys):
    with pytest.raises(UserError, match=f'guard.{next(iter(keys))}='):
        GuardConfig(**keys)

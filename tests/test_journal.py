"""The journal of a run: which step is the best, when the run has ended, what a restart finds of all that."""

import json
import math
import time
import types

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from configs import base
from llm.config import GuardConfig
from llm.errors import UserError
from llm.execution import MeshConfig
from llm.guard import Rewind
from llm.journal import agreed, averaged, Journal
from llm.loop import fit
from llm.manifest import read, sealed_steps
from llm.phases import Phases
from llm.sharding import make_mesh
from llm.train_state import TrainState
from tests import tiny

MESH = make_mesh(MeshConfig(1, 1, 1))
NAN = math.nan


def state(value: float, *, ema: bool = False) -> TrainState:
    """A state whose parameters have that value, and whose average has it plus 10."""
    made = TrainState(params={'w': jnp.full(3, value)}, opt_state={'m': jnp.full(3, -value)}, step=jnp.int32(value),
                      key=jax.random.key(7), ema={'w': jnp.full(3, value + 10)} if ema else None)
    return jax.device_put(made, NamedSharding(MESH, PartitionSpec()))


def open_journal(folder, *, stop_step: int = 4, ema: bool = False, higher_is_better: bool = False, taken: bool = False,
                 rows: int = 0, guard: GuardConfig = GuardConfig(), **keywords) -> Journal:
    """A journal of as much of a run as it reads; the state that it is given is none of those that are saved."""
    def check():
        if taken:
            raise UserError('taken over')
    config = types.SimpleNamespace(stage='sft', seed=0, stop_step=stop_step, keep_checkpoints=2, guard=guard,
                                   data=types.SimpleNamespace(sources={}), figures=types.SimpleNamespace(rows=rows))
    run = types.SimpleNamespace(
        name='mine', config=config, folder=folder, identity={'data': {}}, parents={}, mesh=MESH,
        model_config=tiny.MODEL, tokenizer=types.SimpleNamespace(describe=lambda: {}),
        owner=types.SimpleNamespace(check=check), phases=Phases(), say=lambda line: None,
        notice=types.SimpleNamespace(now=lambda: False))
    return Journal(run, state(100.0, ema=ema), head='token', objective='mine', metric='loss',
                   higher_is_better=higher_is_better, **keywords)


def evaluate(journal: Journal, step: int, loss: float, **keywords) -> None:
    journal.evaluate(step, lambda params: {'loss': loss}, None, **keywords)


def go_through(journal: Journal, losses: list[float], *, ema: bool = False) -> TrainState:
    """Evaluates and saves a step for each of these held-out numbers; returns the last state."""
    for step, loss in enumerate(losses):
        evaluate(journal, step, loss)
        last = state(float(step), ema=ema)
        journal.save(step, last)
    return last


# The best step.

@pytest.mark.parametrize('sign', [1, -1])
def test_best_is_kept_and_those_after_it_are_counted(tmp_path, sign):
    with open_journal(tmp_path, higher_is_better=sign < 0) as journal:
        go_through(journal, [sign * loss for loss in (3.0, 2.0, 2.0, 4.0)])  # an equal one is no better
        assert (journal.best_step, journal.stale) == (1, 2)
        result = journal.result()
    assert (result.before, result.after, result.step, result.last_step) == (3.0 * sign, 2.0 * sign, 1, 3)
    assert (result.metric, result.why) == ('loss', 'stop_step')


def test_a_better_one_starts_the_count_again(tmp_path):
    with open_journal(tmp_path) as journal:
        for step, (loss, best, stale) in enumerate([(3.0, 0, 0), (4.0, 0, 1), (5.0, 0, 2), (1.0, 3, 0), (2.0, 3, 1)]):
            evaluate(journal, step, loss)
            assert (journal.best_step, journal.stale) == (best, stale)


@pytest.mark.parametrize('sign', [1, -1])
def test_nan_is_never_the_best(tmp_path, sign):
    with open_journal(tmp_path, higher_is_better=sign < 0) as journal:
        for step, loss in enumerate([NAN, 3.0 * sign, NAN, 4.0 * sign]):
            evaluate(journal, step, loss)
        assert (journal.best_step, journal.stale, journal.result().after) == (1, 2, 3.0 * sign)
        assert math.isnan(journal.result().before)


def test_nothing_but_nan_costs_one_line(tmp_path):
    with open_journal(tmp_path) as journal:
        go_through(journal, [NAN, NAN])
        with pytest.raises(UserError, match='^mine: no held-out loss was a number; look at its validation data$'):
            journal.result()


def test_only_an_eligible_step_is_the_best(tmp_path):
    with open_journal(tmp_path) as journal:
        for step, loss in enumerate([3.0, 1.0, 2.0, 0.0]):
            evaluate(journal, step, loss, eligible=lambda values: values['loss'] >= 2)
        assert (journal.best_step, journal.stale) == (2, 1)


@pytest.mark.parametrize('ema', [False, True])
def test_the_best_steps_parameters_are_chosen_when_it_is_not_the_last(tmp_path, ema):
    with open_journal(tmp_path, ema=ema) as journal:
        last = go_through(journal, [3.0, 1.0, 2.0, 5.0, 5.0, 5.0], ema=ema)  # longer ago than checkpoints are kept
        assert journal.chosen(last)['w'].tolist() == [11.0 if ema else 1.0] * 3
        assert sealed_steps(tmp_path / 'checkpoints') == [1, 4, 5]
        assert [read(tmp_path / 'checkpoints', step).best for step in (1, 4, 5)] == [True, False, False]


@pytest.mark.parametrize('ema', [False, True])
def test_the_last_steps_own_parameters_are_chosen_when_it_is_the_best(tmp_path, ema):
    with open_journal(tmp_path, ema=ema) as journal:
        last = go_through(journal, [3.0, 1.0], ema=ema)
        assert journal.chosen(last) is averaged(last) is (last.ema if ema else last.params)


# The end.

def test_a_run_that_ended_by_itself_stops_there_when_opened_again(tmp_path):
    with open_journal(tmp_path) as journal:
        go_through(journal, [3.0, 4.0])
        assert (journal.stop, journal.ended) == (4, False)
        journal.end('no better')
        journal.save(2, state(2.0))
    with open_journal(tmp_path, stop_step=9) as journal:  # as a longer run, too
        assert (journal.step, journal.stop, journal.ended) == (2, 2, True)
        assert list(fit(journal.state, None, iter([]), start=journal.step, stop=journal.stop)) == []
        result = journal.result()
    assert (result.why, result.step, result.last_step) == ('no better', 0, 2)


def test_an_end_that_was_not_saved_is_none(tmp_path):
    with open_journal(tmp_path) as journal:
        go_through(journal, [3.0, 4.0])
        journal.end('no better')
    with open_journal(tmp_path) as journal:
        assert (journal.step, journal.stop, journal.ended) == (1, 4, False)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    with open_journal(tmp_path) as journal:
        go_through(journal, [3.0])
        broken = state(1.0)._replace(opt_state={'m': jnp.full(3, math.inf)})
        with pytest.raises(Rewind, match='^step 1: state is nan$'):
            journal.save(1, broken)
    assert sealed_steps(tmp_path / 'checkpoints') == [0]


def test_a_first_state_that_is_not_finite_is_its_parents_fault(tmp_path):
    with open_journal(tmp_path) as journal:
        with pytest.raises(UserError, match='^mine begins with a number that is not finite; give it another init_from'):
            journal.save(0, state(1.0)._replace(params={'w': state(1.0).params['w'] * NAN}))


@pytest.mark.parametrize('then', ['train', 'evaluate', 'save'])
def test_nothing_is_said_or_saved_of_a_step_that_went_wrong(tmp_path, then):
    with open_journal(tmp_path) as journal:
        go_through(journal, [3.0])
        journal.saw(1, {'loss': jnp.float32(2.0)})
        journal.saw(2, {'loss': jnp.float32(NAN)})
        with pytest.raises(Rewind, match='^step 2: loss is nan$'):
            if then == 'train':
                journal.train(2, {'loss': 1.0}, tokens=8)
            elif then == 'evaluate':
                evaluate(journal, 2, 1.0)
            else:
                journal.save(2, state(2.0))
        assert journal.best_step == 0
    assert sealed_steps(tmp_path / 'checkpoints') == [0]
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [(row['step'], row['kind'], row['loss']) for row in rows] == [(0, 'evaluate', 3.0), (2, 'anomaly', 'nan')]


def test_a_restarted_run_knows_what_losses_were_before(tmp_path):
    spikes = GuardConfig(spike=10.0, window=4)
    with open_journal(tmp_path, guard=spikes) as journal:
        go_through(journal, [3.0])
        journal.saw(1, {'loss': jnp.float32(0.7)})
        journal.saw(2, {'loss': jnp.float32(0.8)})
        journal.save(2, state(2.0))
    with open_journal(tmp_path, guard=spikes) as journal:
        journal.saw(3, {'loss': jnp.float32(9.0)})
        with pytest.raises(Rewind, match='^step 3: loss is 9, '):
            journal.train(3, {'loss': 9.0}, tokens=8)


def test_what_a_restart_cost_is_counted_on(tmp_path):
    with open_journal(tmp_path) as journal:
        go_through(journal, [3.0])
        journal.train(1, {'loss': 2.0}, tokens=8)
        time.sleep(0.2)
        journal.train(2, {'loss': 2.0}, tokens=16)
        spent = journal.result().seconds
    with open_journal(tmp_path) as journal:
        time.sleep(0.02)
        evaluate(journal, 1, 2.0)
        result = journal.result()
        assert result.phases['restart'] >= 0.2 and result.seconds >= spent
    row = json.loads((tmp_path / 'metrics.jsonl').read_text().splitlines()[-1])
    assert 0 < row['time']['goodput'] < 1 and row['time']['phases']['restart'] >= 0.2


def test_a_run_that_was_taken_over_saves_no_more(tmp_path):
    with open_journal(tmp_path, taken=True) as journal, pytest.raises(UserError, match='taken over'):
        go_through(journal, [3.0])
    assert sealed_steps(tmp_path / 'checkpoints') == []


# What a restart finds.

def test_host_state_and_rows_of_step_0_survive(tmp_path):
    with open_journal(tmp_path, host={'kl_coef': 0.5}) as journal:
        assert journal.fresh
        evaluate(journal, 0, 3.0)
        journal.host['kl_coef'] = 1 / 3
        journal.save(0, state(6.0))
        journal.train(1, {'loss': 2.0}, tokens=8)  # after the last save: done again
        evaluate(journal, 1, 1.0)
    with open_journal(tmp_path, host={'kl_coef': 0.5}) as journal:
        assert (journal.fresh, journal.step) == (False, 0)
        assert journal.host == {'best_step': 0, 'best': 3.0, 'before': 3.0, 'stale': 0, 'why': None, 'kl_coef': 1 / 3}
        assert journal.state.params['w'].tolist() == [6.0] * 3 and int(journal.state.step) == 6
        assert journal.state.opt_state['m'].tolist() == [-6.0] * 3
        assert jax.random.key_data(journal.state.key).tolist() == jax.random.key_data(jax.random.key(7)).tolist()
        rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [(row['step'], row['kind'], row['loss']) for row in rows] == [(0, 'evaluate', 3.0)]


@pytest.mark.parametrize('ema', [False, True])
def test_the_normalizer_is_of_the_parameters_that_are_handed_on(tmp_path, ema):
    with open_journal(tmp_path, ema=ema, normalizer=lambda params: {'mean': float(params['w'][0])}) as journal:
        go_through(journal, [3.0, 2.0], ema=ema)
    rewards = [read(tmp_path / 'checkpoints', step).reward for step in (0, 1)]
    assert rewards == [{'mean': value + (10.0 if ema else 0.0)} for value in (0.0, 1.0)]


def test_figures_are_of_the_chosen_step_and_plain_json(tmp_path):
    with open_journal(tmp_path, rows=5) as journal:
        go_through(journal, [3.0, 2.0, 4.0])
        journal.figures(lambda: {'split': 'test', 'of': {'a': [0.5, NAN, math.inf], 'b': (1, None)}})
        assert journal.result().phases['figures'] >= 0
    assert json.loads((tmp_path / 'figures.json').read_text(), parse_constant=pytest.fail) == {
        'step': 1, 'split': 'test', 'of': {'a': [0.5, None, None], 'b': [1, None]}}
    assert not list(tmp_path.glob('*.partial'))


def test_no_figures_are_made_where_none_are_asked_for(tmp_path):
    with open_journal(tmp_path, rows=0) as journal:
        journal.figures(pytest.fail)
    assert not (tmp_path / 'figures.json').exists()


def test_samples_are_kept_and_the_first_ones_shown(tmp_path, capsys):
    rows = [{'prompt': 'a', 'answer': letter} for letter in 'bcdé']
    with open_journal(tmp_path) as journal:
        journal.samples(lambda: rows)
    assert [json.loads(line) for line in (tmp_path / 'samples.jsonl').read_text().splitlines()] == rows
    assert [line for line in capsys.readouterr().out.splitlines() if 'answer' in line] == [
        f'mine  prompt: a  answer: {letter}' for letter in 'bcd']


def test_samples_are_written_by_one_process(tmp_path, monkeypatch):
    with open_journal(tmp_path) as journal:
        monkeypatch.setattr(jax, 'process_index', lambda: 1)
        journal.samples(lambda: [{'answer': 'x'}])
        monkeypatch.undo()
    assert not (tmp_path / 'samples.jsonl').exists()


def test_processes_decide_by_the_numbers_of_the_first_to_the_last_bit(monkeypatch):
    theirs = np.array([0.1 + 3e-16, NAN])

    def told(mine):
        assert mine.dtype == np.uint8  # JAX would round float64
        return theirs.view(np.uint8)
    monkeypatch.setattr(multihost_utils, 'broadcast_one_to_all', told)
    assert agreed({'loss': 0.1, 'other': 2.0}) == {'loss': 0.1, 'other': 2.0}  # alone
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    found = agreed({'loss': 0.1, 'other': 2.0})
    assert found['loss'] == theirs[0] != 0.1 and math.isnan(found['other'])


@pytest.mark.parametrize('late_from_step, expected', [
    (0, {'weight': 2.0}), (50, {'weight': 2.0, 'late_weight': 0.5, 'late_from_step': 50})])
def test_manifest_tells_the_mixtures_schedule(tmp_path, late_from_step, expected):
    with open_journal(tmp_path) as journal:
        config = journal._run.config
        config.data = base.data(one=base.source(jsonl='a', weight=2.0, late_weight=0.5), two=base.source(jsonl='b'))
        config.data.late_from_step = late_from_step
        journal._run.identity['data'] = {'data.one': {'train': 'x'}, 'data.two': {'train': 'y'}}
        go_through(journal, [1.0])
    found = read(tmp_path / 'checkpoints', 0).data
    assert found == {'data.one': {'from': 'a', **expected, 'train': 'x'},
                     'data.two': {'from': 'b', 'weight': 1.0, 'train': 'y'}}

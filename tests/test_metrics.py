"""Rows that outlive a kill, clocks that are kept apart from numbers, screens that show what they are told."""

import json
import math
import os
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llm import metrics
from llm.metrics import Metrics
from tests.clock import Clock

TERMINAL = {'TTY_COMPATIBLE': '1', 'TERM': 'xterm'}  # makes rich take any stream for a terminal
HIDDEN, VISIBLE = '\x1b[?25l', '\x1b[?25h'  # what a terminal is told about its cursor


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(metrics, 'time', clock)
    return clock


def opened(folder, **keywords):
    return Metrics(folder, **({'total_steps': 10, 'name': 'sft', 'resume_step': None} | keywords))


def run(folder, first, last, **keywords):
    with opened(folder, **keywords) as log:
        for step in range(first, last + 1):
            log.train(step, {'loss': 1 / step, 'kl': jnp.float32(step) / 3}, step * 64)
            if step % 3 == 0:
                log.evaluate(step, {'validation/loss': np.float64(2 / step)})


def rows(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def timeless(folder):
    return [json.dumps({key: value for key, value in row.items() if key != 'time'}) for row in rows(folder)]


def test_resumed_rows_equal_uninterrupted_ones_without_time(tmp_path):
    run(tmp_path / 'whole', 1, 10)
    run(tmp_path / 'killed', 1, 7)
    with (tmp_path / 'killed' / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 8, "kind": "tra')
    run(tmp_path / 'killed', 4, 10, resume_step=3)
    assert timeless(tmp_path / 'killed') == timeless(tmp_path / 'whole')
    assert len(rows(tmp_path / 'whole')) == 13


def test_resumed_tensorboard_has_each_step_once(tmp_path):
    run(tmp_path, 1, 7)
    run(tmp_path, 4, 10, resume_step=3)
    events = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    scalars = events.Scalars('train/loss')
    assert [scalar.step for scalar in scalars] == list(range(1, 11))
    np.testing.assert_allclose([scalar.value for scalar in scalars], 1 / np.arange(1, 11), rtol=1e-6)
    assert [scalar.step for scalar in events.Scalars('evaluate/validation/loss')] == [3, 6, 9]


def test_rows_of_step_0_outlive_a_restart_at_0_but_not_one_from_nothing(tmp_path):
    with opened(tmp_path) as log:
        log.evaluate(0, {'loss': 5.0})
    run(tmp_path, 1, 2, resume_step=0)
    assert [row['step'] for row in rows(tmp_path)] == [0, 1, 2]
    run(tmp_path, 1, 1)
    assert [row['step'] for row in rows(tmp_path)] == [1]


def test_row_is_on_disk_before_the_next_one(tmp_path):
    with opened(tmp_path) as log:
        log.train(1, {'loss': 1.0}, 64)
        assert rows(tmp_path)[0]['loss'] == 1.0


def test_device_scalars_keep_their_bits_and_non_finite_ones_stay_json(tmp_path):
    third = jnp.float32(1) / 3
    with opened(tmp_path) as log:
        log.train(1, {'loss': third, 'nan': jnp.nan, 'inf': -jnp.inf}, 64)
    row = json.loads((tmp_path / 'metrics.jsonl').read_text(), parse_constant=pytest.fail)
    assert np.float32(row['loss']) == np.asarray(third)
    assert math.isnan(float(row['nan'])) and float(row['inf']) == -math.inf


def test_speed_is_of_training_alone(tmp_path, clock):
    with opened(tmp_path, flops_per_token=6e3, peak_flops=1e6) as log:
        clock.now += 30  # compiling
        log.train(1, {}, 64)
        with log.aside():
            clock.now += 8
        clock.now += 2
        log.train(2, {}, 192)
    first, second = (row['time'] for row in rows(tmp_path))
    assert 'tokens_per_second' not in first
    assert second['tokens_per_second'] == pytest.approx(64)
    assert second['mfu'] == pytest.approx(64 * 6e3 / 1e6)


def test_rows_tell_a_later_process_what_was_spent(tmp_path):
    seconds = {}
    with opened(tmp_path, timing=lambda: {'goodput': 0.5, 'phases': dict(seconds)}) as log:
        for step in (1, 2, 3):
            seconds |= {'train': 10.0 * step}
            log.train(step, {'loss': 1.0}, step)
        seconds |= {'save': 4.0}
        log.anomaly(4, {'loss': jnp.nan})
    assert rows(tmp_path)[0]['time']['goodput'] == 0.5
    assert metrics.spent(tmp_path, 2) == ({'train': 20.0}, {'train': 30.0, 'save': 4.0})
    assert metrics.spent(tmp_path, -1) == ({}, {'train': 30.0, 'save': 4.0})
    assert metrics.spent(tmp_path / 'nowhere', 2) == ({}, {})
    tags = EventAccumulator(str(tmp_path / 'tensorboard')).Reload().Tags()['scalars']
    assert {'train/time/goodput', 'train/time/train', 'anomaly/time/save'} <= set(tags)


def test_rows_from_before_there_were_phases_tell_nothing(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "kind": "train", "time": {"goodput": 0.9}}\n{"step": 2, "ki')
    assert metrics.spent(tmp_path, 1) == ({}, {})


def test_unknown_peak_gives_no_mfu(tmp_path, clock):
    with opened(tmp_path, flops_per_token=6e3) as log:
        for step in (1, 2):
            clock.now += 1
            log.train(step, {}, step * 64)
    assert rows(tmp_path)[1]['time']['flops_per_second'] == pytest.approx(64 * 6e3)
    assert 'mfu' not in rows(tmp_path)[1]['time']


def test_plain_output_has_a_line_now_one_in_ten_seconds_and_one_at_the_end(clock, capsys):
    for done in range(1001):
        metrics.progress('pack', done, 1000)
        clock.now += 0.1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == pytest.approx(11, abs=1)
    assert re.fullmatch(r'pack  [45]\d\d/1,000  0:00:5\d left', lines[5])
    assert lines[-1] == 'pack  1,000/1,000  in 0:01:40'


def on_terminal(code: str) -> str:
    """What a process that runs this code shows on a terminal."""
    return subprocess.run([sys.executable, '-c', code], env=os.environ | TERMINAL, stdout=subprocess.PIPE,
                          text=True, check=True).stdout


def test_bar_shows_loss_and_goes_with_its_run(tmp_path):
    shown = on_terminal(f"""
import time
from llm.metrics import Metrics
with Metrics({str(tmp_path)!r}, total_steps=10, name='sft', resume_step=None) as log:
    time.sleep(0.2)
    log.train(2, {{'loss': 2.5}}, 64)
print('after')
""")
    assert re.search(r'sft.*2/10  loss 2\.5000  0:00:.. left', shown)
    assert shown.rindex(HIDDEN) < shown.rindex(VISIBLE) < shown.rindex('after')


def test_cursor_comes_back_when_the_process_leaves_its_work():
    shown = on_terminal('from llm.metrics import progress; progress("pack", 1, 3)')
    assert 'pack' in shown
    assert shown.rindex(HIDDEN) < shown.rindex(VISIBLE)


def test_lines_of_others_are_printed_as_they_are(capsys):
    line = '[bold]x[/bold] :smile: [/] ' + 'long ' * 50
    metrics.say(line)
    assert capsys.readouterr().out == line + '\n'


def test_table_has_every_value_in_full(capsys):
    metrics.table('Results', [{'stage': 'pretrain', 'bits per byte': 1.98765, 'step': 1600},
                              {'stage': 'reward', 'accuracy': 0.8125, 'why': 'stop_step ' + 'x' * 40}])
    shown = capsys.readouterr().out
    for value in ('Results', 'pretrain', 'bits per byte', '1.988', '1600', 'accuracy', '0.8125', 'x' * 40):
        assert value in shown
    assert '…' not in shown


def test_import_needs_neither_tensorflow_nor_jax():
    code = 'import sys, llm.metrics; sys.exit(bool({"tensorflow", "jax", "torch"} & set(sys.modules)))'
    subprocess.run([sys.executable, '-W', 'error', '-c', code], check=True)

"""The bench in its smallest form: every workload of ours runs; refusals, ratios and rows say what they should."""

import json
import statistics
import subprocess
import sys

import pytest

from llm.errors import UserError
from tools.bench import __main__ as bench
from tools.bench import draws, machine, table
from tools.bench.compare import Comparison
from tools.bench.workloads import job, WORKLOADS


@pytest.mark.slow
@pytest.mark.parametrize('name', WORKLOADS)
def test_our_side_of_a_workload_runs(name, tmp_path, capfd):
    rows = tmp_path / 'rows.jsonl'
    assert bench.main(['--smoke', '--busy', '--rounds=1', f'--only={name}', f'--json={rows}']) == 0, capfd.readouterr()
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert found and all(row['workload'] == name and row['ours'][0] > 0 for row in found)
    assert {'commit', 'machine', 'load', 'peak_flops', 'packages', 'job'} <= found[0].keys()
    assert name in capfd.readouterr().out


def test_a_busy_machine_is_refused_in_one_line(monkeypatch, capfd):
    seen = {'busy': 0.5, 'by': ['other [7] 100%'], 'averages': [1.0, 1.0, 1.0], 'unix_seconds': 0.0}
    monkeypatch.setattr(machine, 'load', lambda: seen)
    assert bench.main(['--only=nanogpt']) == 2
    out, err = capfd.readouterr()
    assert out == '' and err.count('\n') == 1 and 'other [7] 100%' in err and '--busy' in err


def test_a_core_that_others_take_is_seen():
    with subprocess.Popen([sys.executable, '-c', 'while True: pass']) as other:
        try:
            seen = machine.load()
        finally:
            other.kill()
    assert seen['busy'] > machine.BUSY_SHARE and any(f'[{other.pid}]' in who for who in seen['by'])
    with pytest.raises(UserError, match='--busy'):
        machine.refuse_if_busy(seen)


@pytest.mark.parametrize('words, said', [(['--only=nanogtp'], 'did you mean nanogpt'), (['--rounds=0'], 'use 1 or more'),
                                         (['--json=nowhere/rows.jsonl'], 'make it first')])
def test_a_mistake_in_a_flag_is_one_line(words, said, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert bench.main(words) == 2
    err = capfd.readouterr().err
    assert said in err and err.count('\n') == 1


@pytest.mark.parametrize('measure, ours, theirs, faster', [('tokens/s', [10.0, 9.0], [5.0, 3.0], [2.0, 3.0]),
                                                          ('s', [10.0, 9.0], [5.0, 3.0], [0.5, 1 / 3])])
def test_a_ratio_is_how_many_times_faster_ours_is_round_by_round(measure, ours, theirs, faster):
    each = Comparison('w', 'about', measure, ours, None, {}, 'peer', theirs)
    assert each.ratios == pytest.approx(faster)
    assert table.ratio(each) == f'{statistics.median(faster):.2f} ({min(faster):.2f} to {max(faster):.2f})'


@pytest.mark.parametrize('name', WORKLOADS)
@pytest.mark.parametrize('smoke', [False, True])
def test_a_job_is_plain_values(name, smoke):
    made = job(WORKLOADS[name], smoke)
    assert json.loads(json.dumps(made)) == made


def test_lengths_keep_their_bounds_and_their_mean():
    found = draws.lengths(4000, 16, 256, 100, seed=0)
    assert 16 <= min(found) < 30 and 220 < max(found) <= 256
    assert statistics.mean(found) == pytest.approx(100, abs=3)
    assert found == draws.lengths(4000, 16, 256, 100, seed=0) != draws.lengths(4000, 16, 256, 100, seed=1)

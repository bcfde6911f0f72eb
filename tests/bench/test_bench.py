"""The bench in its smallest form: every workload of ours runs; refusals, ratios and rows say what they should."""

import json
import statistics
import subprocess
import sys

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from configs import base
from llm.config import ModelConfig
from llm.door import from_dict
from llm.errors import UserError
from llm.execution import ExecConfig
from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from llm.run import initializer
from tools.bench import __main__ as bench
from tools.bench import cold, draws, machine, profile, table, venvs
from tools.bench.compare import Comparison
from tools.bench.ours import packed
from tools.bench.ours.ppo import inclined_to_end
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


@pytest.mark.parametrize('words, said', [
    (['--only=nanogtp'], 'did you mean nanogpt'), (['--rounds=0'], 'use 1 or more'),
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


@pytest.mark.parametrize('name', WORKLOADS)
def test_a_peer_is_a_program_and_has_an_environment(name):
    found = WORKLOADS[name].peers
    assert len({peer.name for peer in found}) == len(found)  # turns are kept by name
    for peer in found:
        assert (venvs.REQUIREMENTS.parent / f'{peer.module}.py').is_file()
        assert not peer.environment or (venvs.REQUIREMENTS / f'{peer.environment}.txt').is_file()


def test_lengths_keep_their_bounds_and_their_mean():
    found = draws.lengths(4000, 16, 256, 100, seed=0)
    assert 16 <= min(found) < 30 and 220 < max(found) <= 256
    assert statistics.mean(found) == pytest.approx(100, abs=3)
    assert found == draws.lengths(4000, 16, 256, 100, seed=0) != draws.lengths(4000, 16, 256, 100, seed=1)


def test_a_profile_names_the_longest_operations(tmp_path, capfd):
    assert bench.main(['--smoke', '--busy', '--only=nanogpt', f'--profile={tmp_path}']) == 0
    found = profile.longest(profile.read(tmp_path / 'nanogpt'))
    assert found == sorted(found, key=lambda pair: -pair[1].microseconds)
    assert any('dot' in name for name, _ in found) and found[0][0] in capfd.readouterr().out


def test_what_is_within_an_operation_does_not_count_twice():
    events = [{'name': 'outer', 'ts': 0.0, 'dur': 10.0}, {'name': 'inner', 'ts': 2.0, 'dur': 3.0},
              {'name': 'innermost', 'ts': 2.0, 'dur': 1.0}, {'name': 'next', 'ts': 10.0, 'dur': 4.0}]
    assert dict(profile.own_times(events)) == {'outer': 7.0, 'inner': 2.0, 'innermost': 1.0, 'next': 4.0}


def test_packed_texts_are_the_drawn_ones(tmp_path):
    """Every text of the draw is whole in one segment of one row."""
    made = job(WORKLOADS['sft'], smoke=True)
    rows = packed.prepared(tmp_path, 32, 384, made).rows(np.arange(600))
    found = {tuple(tokens[segments == number].tolist())
             for tokens, segments in zip(rows['tokens_BT'], rows['segments_BT'])
             for number in range(1, segments.max() + 1)}
    drawn = {tuple(text) for text in draws.tokens(draws.lengths(packed.TEXTS, *made['lengths'], 0), 384, 0)}
    assert len(found) > 1000 and found <= drawn


def test_answers_end_as_often_as_the_job_says():
    """The policy of `ppo-mixed` gives its end token about that chance, whatever it reads."""
    made = job(WORKLOADS['ppo-mixed'], smoke=True)
    config = from_dict(ModelConfig, made['model'])
    model = Transformer(config, from_dict(ExecConfig, base.execution().to_dict()))
    params = nn.meta.unbox(initializer(model)(jax.random.key(0)))
    tokens_BT = jax.random.randint(jax.random.key(1), (4, 16), 3, config.vocab_size)
    positions_BT = jnp.broadcast_to(jnp.arange(16), (4, 16))
    logits_BTV = model.apply({'params': inclined_to_end(model, params, 2, 1 / 16)}, tokens_BT, positions_BT, MaskSpec())
    chance_BT = jax.nn.softmax(logits_BTV)[..., 2]
    assert 1 / 32 < float(chance_BT.min()) and float(chance_BT.max()) < 1 / 8


def test_files_are_gone_from_the_cache(tmp_path):
    """Read again, they come from the disk: the kernel counts what this process had to wait for."""
    mounts = [disk for disk in psutil.disk_partitions(all=True) if tmp_path.is_relative_to(disk.mountpoint)]
    if max(mounts, key=lambda disk: len(disk.mountpoint)).fstype == 'tmpfs':
        pytest.skip('temporary files are in memory here')
    (tmp_path / 'file').write_bytes(bytes(2**24))
    cold.forget(tmp_path)
    before = psutil.Process().io_counters().read_bytes
    assert len((tmp_path / 'file').read_bytes()) == 2**24
    assert psutil.Process().io_counters().read_bytes - before >= 2**24

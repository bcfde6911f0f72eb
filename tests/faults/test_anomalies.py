"""The short form of tools/faults/anomalies.py: of each way in which a number goes wrong, one."""

import sys
from unittest import mock

import pytest

from llm.errors import UserError
from llm.guard import Guard
from tools.faults import anomalies
from tools.faults.anomalies import Fault, REWINDS


@pytest.fixture
def tried(finished_pipeline, tmp_path):
    """The row of a fault, put into a stage whose parents are finished."""
    return lambda fault, kill=None: anomalies.try_out(fault, finished_pipeline, tmp_path, kill)


@pytest.mark.parametrize('fault, seen', [
    (Fault('pretrain', 'batch', 'nan', 9, 9), 'grad_norm'), (Fault('reward', 'gradient', 'spike', 9, 9), 'grad_norm'),
    (Fault('ppo', 'reward', 'spike', 9, 9), 'reward')])
def test_a_run_that_goes_back_is_the_one_that_never_met_the_batch(tried, fault, seen):
    row = tried(fault)
    assert (row['seen in'], row['back to'], row['left out'], row['as without']) == (seen, '8', '9', 'yes'), row
    assert row['good']


@pytest.mark.slow
def test_so_is_one_that_was_killed_on_the_way_back(tried):
    row = tried(Fault('pretrain', 'gradient', 'spike', 9, 9), anomalies.KILLS[2])
    assert row['killed'].endswith('yes') and row['good'], row


def test_a_fault_that_stays_ends_the_run_with_its_own_code(tried):
    row = tried(Fault('pretrain', 'gradient', 'inf', 5, 10 ** 6))
    assert row['ended'] == '43' and row['good'], row
    assert row['left out'] == '5, 6, 7' and len(row['back to'].split(', ')) == REWINDS


def test_a_stage_that_is_none_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(anomalies, 'prepare', lambda base: pytest.fail('ran'))
    monkeypatch.setattr(sys, 'argv', ['anomalies', f'--workdir={tmp_path}', '--only=ppo,stf'])
    with pytest.raises(UserError, match='^--only=ppo,stf: no stage is called stf; use some of pretrain,sft'):
        anomalies.main()


def test_a_fault_that_nobody_looks_for_is_told(tried):
    with mock.patch.object(Guard, 'look', lambda guard: None):
        row = tried(Fault('pretrain', 'loss', 'nan', 9, 9))
    assert not row['good'] and row['seen in'] == 'nothing'

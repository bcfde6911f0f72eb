"""SIGKILL at random instants, short: pretraining alone. The long form runs all four stages."""

import pytest

from tests.stages import exactness
from tools.faults import job, kill


@pytest.mark.slow
def test_killed_runs_end_as_the_one_that_was_not(tmp_path):
    kills = kill.trials(2, 0, tmp_path, stages=1, steps=6)
    assert len(kills) >= 2 and all(each.survived for each in kills)
    line, reached, _ = kill.figure(kills)
    assert reached and f'{len(kills)} of {len(kills)} kills' in line
    assert not kill.figure([kills[0]._replace(survived=False)])[1] and not kill.figure([])[1]


def test_a_run_that_differs_is_told(finished_pipeline):
    one, other = job.outcome(finished_pipeline), job.outcome(finished_pipeline)
    assert job.differences(one, other) == []
    other['sft']['rows'][1]['loss'] = 0.0
    del other['ppo']['steps'][max(other['ppo']['steps'])]
    assert job.differences(one, other) == ['sft: rows', f'ppo: step {max(one["ppo"]["steps"])}']
    assert {name for name in one} == set(exactness.NAMES)

"""The scripts that record plans and faults: no row is lost, and a stage's numbers stand once."""

import json
import os
import pathlib
import subprocess

import pytest

from experiments.plan_pods import table

ROOT = pathlib.Path(__file__).parents[2]
# In the place of Python: writes what --json names if the file `answers` is there, and ends with 1.
STAND_IN = '''#!/usr/bin/env bash
for word in "$@"; do
  if [[ "$word" == --json=* && -e "$(dirname "$0")/answers" ]]; then echo '{"stages": {}}' > "${word#--json=}"; fi
done
[[ "$2" == *.table ]]
'''


@pytest.mark.parametrize('experiment, name', [('plan_pods', 'weak_8b_64'), ('pod_faults', 'flips')])
@pytest.mark.parametrize('answers', [False, True])
def test_a_relative_folder_is_where_one_stands_and_an_error_is_not_silent(tmp_path, experiment, name, answers):
    python = tmp_path / 'python'
    python.write_text(STAND_IN)
    python.chmod(0o755)
    if answers:
        (tmp_path / 'answers').touch()
    done = subprocess.run(['bash', str(ROOT / 'experiments' / experiment / 'run.sh'), 'found', name], cwd=tmp_path,
                          env={**os.environ, 'PYTHON': str(python)}, capture_output=True, text=True)
    assert (tmp_path / 'found' / f'{name}.txt').exists(), done.stderr
    assert (tmp_path / 'found' / f'{name}.json').exists() == answers
    # A plan that does not fit is an answer; a fault whose figure is missed is not.
    assert (done.returncode == 0) == (answers and experiment == 'plan_pods')


def test_numbers_of_a_stage_stand_on_its_last_line(tmp_path, capsys):
    program = {'fits': True, 'need_gib': 1, 'beside_gib': 0, 'limit_gib': 2, 'work': None, 'compile_seconds': 3}
    stage = {'programs': {'rollout': program, 'score': program, 'update': program}, 'seconds': 5, 'mfu_bound': 0.25,
             'tokens_per_second': 1234, 'hours': 6}
    (tmp_path / 'row.json').write_text(json.dumps({'stages': {'ppo': stage, 'ppo2': {**stage, 'seconds': None}}}))
    table.main(tmp_path)
    lines = [[cell.strip() for cell in line.split('|')[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert {len(line) for line in lines} == {len(table.COLUMNS)}
    assert [line[-4:-1] for line in lines[2:]] == [[''] * 3, [''] * 3, ['25.0%', '1,234', '6.0'], *[[''] * 3] * 3]

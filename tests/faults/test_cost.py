"""The short form of tools/faults/cost.py: what is counted, and that its parts agree; no speed."""

import json
import os
import subprocess
import sys

import pytest

from llm.manifest import sealed_steps
from tools.faults import cost, job

SMALL = """
import sys
from tools.faults import cost
cost.DEFAULTS.update(batch_size=2, seq_len=16)
sys.exit(cost.main())
"""


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    """Exit code, numbers and folder of a run with three saves that count."""
    folder = tmp_path_factory.mktemp('cost')
    done = subprocess.run([sys.executable, '-c', SMALL, f'--workdir={folder}', '--steps=7', '--cadence=2',
                           f'--json={folder / "cost.json"}'], cwd=job.ROOT, env=os.environ | {'JAX_PLATFORMS': 'cpu'})
    return done.returncode, json.loads((folder / 'cost.json').read_text()), folder


@pytest.mark.slow
def test_all_saves_but_those_that_compile_are_counted(measured):
    _, found, folder = measured
    assert (found['steps'], found['saves']) == (6, 3)
    assert sealed_steps(folder / 'checkpoints') == [6, 8]  # really saved, and two kept


@pytest.mark.slow
def test_the_ratio_is_of_saves_to_steps_and_decides(measured):
    code, found, _ = measured
    steps_seconds = found['saves'] * found['save blocks seconds'] / found['ratio']
    # A median cannot be beyond the sum, of which it stands for one step at least.
    assert max(found['step seconds'], found['their seconds']) <= steps_seconds
    assert 0 < found['fingerprint ratio'] < found['ratio']
    assert 0 < found['of it fingerprint seconds'] < found['save blocks seconds']
    assert found['fingerprint ratio'] / found['ratio'] == pytest.approx(
        found['of it fingerprint seconds'] / found['save blocks seconds'])
    assert code == (found['ratio'] > cost.BOUND)


def test_too_few_steps_for_a_save_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['cost', f'--workdir={tmp_path}', '--steps=5', '--cadence=6'])
    with pytest.raises(SystemExit) as end:
        cost.main()
    assert end.value.code == 2 and '--steps=5 holds no save; use --cadence=6 or more' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

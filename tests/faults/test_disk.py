"""One disk that is taken away under a run; the long form also fills it and turns it read-only."""

import json
import os
import subprocess
import sys

import pytest

from tools.faults import disk, job

NAMESPACES = subprocess.run(['unshare', '--user', '--map-root-user', '--mount', 'true'], check=False,
                            stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not NAMESPACES, reason='this machine lets nobody mount in a namespace')
def test_a_disk_that_is_taken_away_ends_the_run_with_44(tmp_path):
    subprocess.run([sys.executable, '-m', 'tools.faults.disk', '--trials=1', f'--workdir={tmp_path / "runs"}',
                    f'--json={tmp_path / "figure.json"}'], cwd=job.ROOT, check=True, env=os.environ)
    trial, = json.loads((tmp_path / 'figure.json').read_text())['trials_done']
    assert disk.Trial(**trial).right and trial['fault'] == 'vanished'

"""What the scripts of faults share: one that is told to stop ends what it has started, and leaves nothing behind."""

import signal
import subprocess
import sys
import time

import pytest

from tools.faults import job

MEASURE = '''
import contextlib, pathlib, subprocess, sys, time
from tools.faults import script

@contextlib.contextmanager
def started(folder):
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
    try:
        yield (folder / 'child').write_text('started')
    finally:
        time.sleep(.5)
        child.kill()
        child.wait()
        (folder.parent / 'ended').write_text('all')

def measure(trials, seed, folder):
    with started(folder):
        time.sleep(600)

sys.argv[0] = 'trial.py'
sys.exit(script.run('A script.', 1, measure))
'''


@pytest.mark.parametrize('times', [1, 2])
def test_told_to_stop_it_ends_what_it_started(tmp_path, times):
    process = subprocess.Popen([sys.executable, '-c', MEASURE, f'--workdir={tmp_path}'], cwd=job.ROOT)
    try:
        until = time.monotonic() + 60
        while not (tmp_path / 'trial/child').exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        for _ in range(times):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        assert process.wait(60) == 143
    finally:
        process.kill()
    assert [path.name for path in tmp_path.iterdir()] == ['ended']

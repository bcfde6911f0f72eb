"""The supervisor, on small commands: which ends it passes on, which it tries again and how often, what it kills."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import psutil
import pytest

from llm import processes
from tools import supervise
from tools.supervise import Progress

ROOT = pathlib.Path(__file__).parents[1]

# Each start adds a line to the file `starts`; the program is then run with how many there were before it.
COUNTS = """
import os, signal, sys, time
with open('starts', 'a+') as file:
    file.write('start\\n')
    file.flush()
    file.seek(0)
    before = len(file.readlines()) - 1
def progress(text):
    with open(os.environ['QUARTET_PROGRESS_FILE'], 'w') as file:
        file.write(text)
"""


@pytest.fixture
def start(tmp_path):
    """start(program, *flags): a supervisor of that Python program, as a process; it and its child end with the test."""
    begun = []

    def call(program: str, *flags: str, pause: float = 0.05) -> subprocess.Popen:
        script = ('import sys\nfrom tools import supervise\n'
                  f'supervise.PAUSE_SECONDS = {pause}\nsys.exit(supervise.main())')
        begun.append(psutil.Popen(
            [sys.executable, '-c', script, *flags, '--', sys.executable, '-c', COUNTS + program], cwd=tmp_path,
            env=os.environ | {'PYTHONPATH': str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return begun[-1]
    yield call
    for process in begun:
        if process.is_running():
            for each in [process, *process.children(recursive=True)]:
                each.kill()
        process.wait()


def ended(process) -> tuple[int, str]:
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


def starts(folder) -> int:
    path = folder / 'starts'
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_names_the_progress_file_as_the_job_does():
    assert (supervise.PROGRESS_FILE, supervise.GOES_ON) == (processes.PROGRESS_FILE, processes.GOES_ON)


@pytest.mark.parametrize('code', [0, 2, 43])
def test_an_end_that_would_come_again_is_passed_on(start, tmp_path, code):
    assert ended(start(f'sys.exit({code})'))[0] == code and starts(tmp_path) == 1


@pytest.mark.parametrize('end', ['sys.exit(42)', 'sys.exit(44)', 'sys.exit(1)', 'os.abort()',
                                 'os.kill(os.getpid(), 9)'])
def test_any_other_end_is_tried_again(start, tmp_path, end):
    assert ended(start(f'if not before: {end}'))[0] == 0 and starts(tmp_path) == 2


@pytest.mark.parametrize('end, code', [('sys.exit(44)', 44), ('os.kill(os.getpid(), 9)', 128 + 9)])
def test_it_gives_up_after_restarts_without_progress(start, tmp_path, end, code):
    found, said = ended(start(f'progress("train 7")\n{end}', '--restarts=2'))
    # The first start is the one that got to step 7; two restarts get no further.
    assert found == code and starts(tmp_path) == 3 and 'given up after 2 restarts' in said


def test_progress_is_a_step_beyond_all_before(start, tmp_path):
    steps = '[1, 2, 3, 3, 2, 4, 4, 4, 9, 9]'  # twice in vain, then once, then twice: never three times in a row
    code, _ = ended(start(f'progress(f"train {{{steps}[before]}}")\nsys.exit(before != 9)', '--restarts=3'))
    assert code == 0 and starts(tmp_path) == 10


@pytest.mark.parametrize('words, line', [
    (['--', 'nosuchcommand'], 'COMMAND=nosuchcommand cannot be started (No such file or directory); give a program'),
    (['--', '{folder}'], 'cannot be started (Permission denied)'),
    ([], 'the following arguments are required: COMMAND'),
    (['--restarts=many', '--', 'true'], "argument --restarts: invalid int value: 'many'")])
def test_a_mistake_costs_one_line(tmp_path, words, line):
    done = subprocess.run([sys.executable, '-m', 'tools.supervise', *(word.format(folder=tmp_path) for word in words)],
                          cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('error: ') and line in done.stderr and done.stderr.count('\n') == 1


def test_another_stage_counts_anew(tmp_path):
    progress = Progress(tmp_path / 'progress')
    beyond = []
    for text in ('pretrain 90', 'pretrain 40', 'sft 1', 'sft 1', 'pretrain 91', 'sft 2'):
        progress.restart()
        progress.path.write_text(text)
        os.utime(progress.path, ns=(0, len(beyond) + 1))  # whatever the clock's steps are
        progress.look(1.0)
        beyond.append(progress.beyond)
    assert beyond == [True, False, True, False, True, True]


def test_a_hang_is_killed_with_all_it_started_and_tried_again(start, tmp_path):
    hang = ('if not before:\n import subprocess\n'
            ' open("grandchild", "w").write(str(subprocess.Popen(["sleep", "1000"]).pid))\n time.sleep(1000)')
    code, said = ended(start(hang, '--hang_seconds=1.5'))
    assert code == 0 and starts(tmp_path) == 2 and 'no sign of life' in said
    grandchild = int((tmp_path / 'grandchild').read_text())
    wait_for(lambda: not psutil.pid_exists(grandchild) or
             psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE)


def test_a_slow_step_is_no_hang_while_the_file_changes(start, tmp_path):
    slow = 'for step in range(12):\n progress(f"train {step}")\n time.sleep(0.25)'
    assert ended(start(slow, '--hang_seconds=1.5'))[0] == 0 and starts(tmp_path) == 1


def test_what_took_long_before_may_take_long_again(tmp_path):
    progress = Progress(tmp_path / 'progress')
    progress.look(50.0)
    progress.path.write_text('compiled')
    progress.look(50.0)
    progress.look(70.0)
    assert (progress.longest_seconds, progress.idle_seconds) == (100.0, 70.0)
    progress.restart()  # the wait that a kill ended says nothing of how long a step takes
    assert (progress.longest_seconds, progress.idle_seconds) == (100.0, 0.0)


def test_a_stopped_command_is_killed_and_started_again(start, tmp_path):
    process = start('if not before: os.kill(os.getpid(), signal.SIGSTOP)')
    code, said = ended(process)
    assert code == 0 and starts(tmp_path) == 2 and 'it was stopped' in said


def test_one_that_is_stopped_for_a_moment_goes_on(start, tmp_path):
    process = start('open("ready", "w").close()\ntime.sleep(2)')
    wait_for((tmp_path / 'ready').exists)
    child, = process.children()
    child.suspend()
    time.sleep(0.5)
    child.resume()
    assert ended(process)[0] == 0 and starts(tmp_path) == 1


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('answer, code', [
    ('lambda *_: sys.exit(42)', 42), ('lambda *_: sys.exit(44)', 44), ('signal.SIG_DFL', 42)])
def test_asked_to_stop_it_passes_that_on_and_ends(start, tmp_path, number, answer, code):
    process = start(f'signal.signal({number:d}, {answer})\nopen("ready", "w").close()\ntime.sleep(1000)')
    wait_for((tmp_path / 'ready').exists)
    process.send_signal(number)
    assert ended(process)[0] == code and starts(tmp_path) == 1


def test_asked_to_stop_between_two_starts_it_starts_nothing(start, tmp_path):
    process = start('sys.exit(1)', pause=1000)
    wait_for(lambda: starts(tmp_path) == 2)
    time.sleep(0.5)
    process.terminate()
    assert ended(process)[0] == 42 and starts(tmp_path) == 2

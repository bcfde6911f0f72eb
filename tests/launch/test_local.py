"""Processes on this machine, really run: a stand-in for llm.main in a folder of its own."""

import pathlib
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.launch.jobs import job
from tools.targets import local


@pytest.fixture
def stand_in(tmp_path, monkeypatch, capfd):
    """stand_in(source, processes) -> exit code, standard output, standard error of that many processes of it."""
    (tmp_path / 'llm').mkdir()

    def run(source: str, processes: int = 2, devices: str = '8') -> tuple[int, str, str]:
        (tmp_path / 'llm/main.py').write_text('import os, signal, sys, time, pathlib, subprocess\n'
                                              'me = int(sys.argv[-1].removeprefix("--process="))\n' + source)
        variables, commands = local.commands(job(), processes, supervise=False,
                                             environment={'JAX_NUM_CPU_DEVICES': devices})
        with monkeypatch.context() as context:
            context.setattr(sys, 'stdout', sys.__stdout__)
            context.setattr(sys, 'stderr', sys.__stderr__)
            code = local.run(variables, commands, folder=str(tmp_path))
        return code, *capfd.readouterr()
    return run


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_local_processes_share_devices_and_coordinator(stand_in, processes):
    code, out, _ = stand_in('print(os.environ["JAX_NUM_CPU_DEVICES"], *sys.argv[1:]); print("end", flush=True)',
                            processes)
    lines = out.splitlines()
    coordinator, = {word for line in lines for word in line.split() if word.startswith('--coordinator=127.0.0.1:')}
    assert code == 0 and sorted(lines) == sorted(
        line for number in range(processes) for line in (
            f'[{number}] {8 // processes} --config=c.py --workdir=/w {coordinator} --processes={processes} '
            f'--process={number}', f'[{number}] end'))


def test_lines_of_processes_do_not_mix(stand_in):
    _, out, err = stand_in('for n in range(300): print(str(me) * 500); print(str(me) * 50, file=sys.stderr)', 4)
    for text, width in ((out, 500), (err, 50)):
        assert sorted(text.splitlines()) == sorted(f'[{n}] {str(n) * width}' for n in range(4) for _ in range(300))


@pytest.mark.parametrize('end, code', [('sys.exit(43)', 43), ('sys.exit(2)', 2), ('os.kill(os.getpid(), 9)', 137),
                                       ('os.abort()', 134)])
def test_when_one_fails_the_others_are_ended(stand_in, tmp_path, end, code):
    found, *_ = stand_in(f'pathlib.Path(f"{{me}}.pid").write_text(str(os.getpid()))\n'
                         f'while not pathlib.Path("0.pid").exists(): time.sleep(.01)\n'
                         f'if me == 1: {end}\n'
                         f'time.sleep(600)')
    assert found == code
    assert not psutil.pid_exists(int((tmp_path / '0.pid').read_text()))


def test_what_ignores_sigterm_is_killed_with_its_children(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(local, '_END_SECONDS', .5)
    code, *_ = stand_in('if me == 1:\n'
                        '    while not pathlib.Path("child").exists(): time.sleep(.01)\n'
                        '    sys.exit(5)\n'
                        'signal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
                        'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])\n'
                        'pathlib.Path("child.partial").write_text(str(child.pid))\n'
                        'os.rename("child.partial", "child")\n'
                        'time.sleep(600)')
    assert code == 5
    child = int((tmp_path / 'child').read_text())
    until = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(.05)


def test_a_preempted_process_leaves_its_peers_time_to_save(stand_in, tmp_path):
    code, *_ = stand_in('if me == 0:\n'
                        '    time.sleep(1.5)\n'
                        '    pathlib.Path("saved").touch()\n'
                        'sys.exit(42)')
    assert code == 42 and (tmp_path / 'saved').exists()


def test_sigterm_reaches_every_process(tmp_path):
    source = ('import pathlib, signal, sys, time\n'
              'signal.signal(signal.SIGTERM, lambda *rest: sys.exit(42))\n'
              'pathlib.Path(sys.argv[1]).touch()\n'
              'time.sleep(600)')
    commands = [[sys.executable, '-c', source, str(tmp_path / str(number))] for number in range(2)]
    program = f'import sys\nfrom tools.targets import local\nsys.exit(local.run({{}}, {commands!r}, folder="."))'
    launcher = subprocess.Popen([sys.executable, '-c', program], cwd=pathlib.Path(__file__).parents[2])
    until = time.monotonic() + 60
    while not all((tmp_path / str(number)).exists() for number in range(2)):
        assert time.monotonic() < until and launcher.poll() is None
        time.sleep(.05)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 42

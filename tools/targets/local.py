"""Processes of one job on this machine, on the CPU, over the loopback device.

In: a job, how many processes. Out: their output, each line behind the process's number; the exit code of the first
that failed, after which the others are ended.
Left out: several machines.
"""

from collections.abc import Mapping
import contextlib
import os
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO

from llm.errors import Preempted, UserError
from tools.targets.job import Job

_DEVICES = 8  # in all, where JAX_NUM_CPU_DEVICES does not say
_SAVE_SECONDS = 60  # for those whose peer was told to stop: they are saving the same step
_END_SECONDS = 10  # from SIGTERM to SIGKILL


def commands(job: Job, processes: int, *, supervise: bool,
             environment: Mapping[str, str]) -> tuple[dict[str, str], list[list[str]]]:
    """Variables that all processes get, and each one's command."""
    devices = environment.get('JAX_NUM_CPU_DEVICES', str(_DEVICES))
    if not devices.isdigit() or processes < 1 or int(devices) < processes or int(devices) % processes:
        raise UserError(f'--local={processes} does not divide JAX_NUM_CPU_DEVICES={devices}; change one of them')
    variables = {'JAX_NUM_CPU_DEVICES': str(int(devices) // processes), 'JAX_PLATFORMS': 'cpu'}
    coordinator = f'127.0.0.1:{free_port()}'

    def command(process: int) -> list[str]:
        flags = [f'--coordinator={coordinator}', f'--processes={processes}', f'--process={process}']
        if supervise:
            return job.supervised(sys.executable, *flags)
        return [sys.executable, *job.main, *flags]
    return variables, [command(process) for process in range(processes)]


def shown(variables: Mapping[str, str], command: list[str]) -> str:
    """One process as a line of a shell."""
    return ' '.join([*(f'{key}={shlex.quote(value)}' for key, value in variables.items()), shlex.join(command)])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def run(variables: Mapping[str, str], argvs: list[list[str]], *, folder: str) -> int:
    """Runs all at once, in that folder; SIGTERM and SIGINT are handed on."""
    running = [subprocess.Popen(argv, env={**os.environ, **variables}, stdin=subprocess.DEVNULL, cwd=folder,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
               for argv in argvs]
    lock = threading.Lock()
    readers = [threading.Thread(target=_copy, args=(f'[{number}] '.encode(), source, target, lock), daemon=True)
               for number, process in enumerate(running)
               for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))]
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    waiters = [threading.Thread(target=lambda process: ended.put(process.wait()), args=(process,), daemon=True)
               for process in running]
    for thread in (*readers, *waiters):
        thread.start()

    def hand_on(number: int, frame) -> None:
        for process in running:
            process.send_signal(signal.SIGTERM)
    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = next((code for code in (exit_code(ended.get()) for _ in running) if code), 0)
        if code:
            _end(running, patient=code == Preempted.exit_code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for reader in readers:
        reader.join(_END_SECONDS)  # longer only where something that got away still holds the pipe
    return code


def exit_code(returned: int) -> int:
    """As a shell has it: 128 and the signal's number."""
    return returned if returned >= 0 else 128 - returned


def _end(running: list[subprocess.Popen], *, patient: bool) -> None:
    """Ends what still runs: patiently, then by SIGTERM, then with all that it started."""
    if patient:
        _wait(running, _SAVE_SECONDS)
    for process in running:
        process.send_signal(signal.SIGTERM)  # does nothing to one that has ended
    _wait(running, _END_SECONDS)
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _wait(running: list[subprocess.Popen], seconds: float) -> None:
    until = time.monotonic() + seconds
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, until - time.monotonic()))


def _copy(prefix: bytes, source: IO[bytes], target: IO[str], lock: threading.Lock) -> None:
    """Whole lines, so that those of two processes do not mix."""
    with source:
        for line in source:
            with lock:
                target.write((prefix + line.rstrip(b'\r\n')).decode(errors='replace') + '\n')
                target.flush()

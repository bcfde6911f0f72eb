"""The machine that is measured on: what it is, how busy it is, how fast it multiplies.

In: nothing. Out: plain values for the results; a refusal where others compute.
Left out: what is run on it.
"""

import os
import pathlib
import platform
import time
from typing import Any

import psutil

from llm.errors import UserError

BUSY_SHARE = 0.1  # of all cores; an idle machine shows about a hundredth
_WATCHED_SECONDS = 2.0


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def describe() -> dict[str, Any]:
    """CPU, cores, memory, system."""
    found = pathlib.Path('/proc/cpuinfo')
    lines = found.read_text().splitlines() if found.exists() else []
    cpu = next((line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')), platform.machine())
    return {'cpu': cpu, 'cores': cores(), 'memory_gib': round(psutil.virtual_memory().total / 2**30, 1),
            'system': f'{platform.system()} {platform.release()}', 'python': platform.python_version()}


def load() -> dict[str, Any]:
    """What others do: the share of all cores that is taken, by whom, and the load averages."""
    before = {process: _cpu_seconds(process) for process in psutil.process_iter()}
    share = psutil.cpu_percent(interval=_WATCHED_SECONDS) / 100
    spent = {process: (_cpu_seconds(process) - seconds) / _WATCHED_SECONDS for process, seconds in before.items()}
    others = [(spent[process], process) for process in spent if process.pid != os.getpid()]
    most = sorted(others, key=lambda pair: -pair[0])
    taken = [f'{_name(process)} {cpu:.0%}' for cpu, process in most[:8] if cpu > 0.02]
    return {'busy': share, 'by': taken, 'averages': list(psutil.getloadavg()), 'unix_seconds': time.time()}


def refuse_if_busy(seen: dict[str, Any]) -> None:
    """Raises UserError where others compute: what is measured beside them is not what the machine can do."""
    if seen['busy'] > BUSY_SHARE:
        raise UserError(f'{seen["busy"]:.0%} of {cores()} cores are taken ({", ".join(seen["by"]) or "by many"}); '
                        f'wait until at most {BUSY_SHARE:.0%} are, or measure with --busy, and the results will say so')


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def _name(process: psutil.Process) -> str:
    try:
        return f'{process.name()} [{process.pid}]'
    except psutil.Error:
        return f'[{process.pid}]'

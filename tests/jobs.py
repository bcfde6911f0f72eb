"""Real jobs of several processes on this machine: `llm.main`, each with its share of eight CPU devices."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = '''
import pathlib
from tests import tiny

def get_config(variant=''):
    config = tiny.pipeline_config(pathlib.Path(__file__).parent, **{overrides!r})
    return config.stages[{only!r}] if {only!r} else config
'''


def write_config(folder: pathlib.Path, *, only: str = '', **overrides) -> pathlib.Path:
    """A config file: `tiny.pipeline_config` with these overrides, or one stage of it, on the data in its own folder."""
    path = folder / 'config.py'
    path.write_text(CONFIG.format(overrides=overrides, only=only))
    return path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def start(config: pathlib.Path, workdir: pathlib.Path, count: int, *words: str, module: str = 'llm.main',
          environment: dict[str, str] | None = None) -> list[subprocess.Popen]:
    """The processes of one job, in order; their output goes to `<workdir>.<process>.log`."""
    address = f'127.0.0.1:{free_port()}'
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(8 // count), **(environment or {})}
    job = []
    for index in range(count):
        said = [f'--coordinator={address}', f'--processes={count}', f'--process={index}'] if count > 1 else []
        with pathlib.Path(f'{workdir}.{index}.log').open('ab') as log:
            job.append(subprocess.Popen([sys.executable, '-m', module, f'--config={config}', f'--workdir={workdir}',
                                         *said, *words], cwd=ROOT, env=environment, stdout=log, stderr=log))
    return job


def launch(config: pathlib.Path, workdir: pathlib.Path, count: int) -> list[subprocess.Popen]:
    """The same by `tools.launch`, one process here; what the job's processes say goes to `<workdir>.0.log`."""
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '8'}
    with pathlib.Path(f'{workdir}.0.log').open('ab') as log:
        return [subprocess.Popen([sys.executable, '-m', 'tools.launch', f'--local={count}', f'--config={config}',
                                  f'--workdir={workdir}'], cwd=ROOT, env=environment, stdout=log, stderr=log)]


def finish(job: list[subprocess.Popen], seconds: float = 900) -> list[int]:
    """Exit codes of a job's processes; a job that does not end is killed, and fails the test."""
    try:
        return [process.wait(seconds) for process in job]
    finally:
        for process in job:
            process.kill()
            process.wait()

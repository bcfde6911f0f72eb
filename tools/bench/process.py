"""Workers as the runner sees them: started alike, told when to compute, ended.

In: a Python, a module, a job. Out: what `serve.py` answers; a worker that dies says why in one line.
Left out: in which order workers take turns (`compare.py`).

Both sides get the same threads and the same allocator. Left to itself glibc gives every large buffer back to the
system at once, and asking for it anew costs page faults: more to one side than to the other.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import tempfile
from typing import Any

from llm.host_memory import ALLOCATOR
from tools.bench import machine

ROOT = pathlib.Path(__file__).parents[2]


class Died(Exception):
    """A worker ended before it answered; the message is its last line."""


def environment() -> dict[str, str]:
    """Of both sides' workers; all get memory as `llm.main` does for ours: one heap that stays, in huge pages."""
    threads = str(machine.cores())
    allocator = {name: value % 2**64 for name, (_, value) in ALLOCATOR.items()} | {'hugetlb': 1}
    tunables = ':'.join(f'glibc.malloc.{name}={value}' for name, value in allocator.items())
    offline = {'HF_HUB_OFFLINE': '1', 'HF_DATASETS_OFFLINE': '1', 'WANDB_DISABLED': 'true'}
    return os.environ | offline | {'JAX_PLATFORMS': 'cpu', 'OMP_NUM_THREADS': threads, 'MKL_NUM_THREADS': threads,
                                   'GLIBC_TUNABLES': tunables, 'TOKENIZERS_PARALLELISM': 'false'}


class Worker(contextlib.AbstractContextManager):
    """A process that does a workload; entering waits until it is warm.

    Attributes: packages, their versions by name; flops, as `serve.Work` has it.
    """

    def __init__(self, python: str, module: str, job: dict[str, Any]):
        self._command, self._job = [python, '-m', f'tools.bench.{module}'], job

    def __enter__(self) -> 'Worker':
        self._errors = tempfile.TemporaryFile('w+')
        self._process = subprocess.Popen(self._command, cwd=ROOT, env=environment(), text=True, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=self._errors)
        try:
            about = self._ask(json.dumps(self._job))
        except BaseException:
            self.__exit__()
            raise
        self.packages, self.flops = about['packages'], about['flops']
        return self

    def __exit__(self, *error) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def turn(self) -> dict[str, float]:
        """Measures by name, of one turn."""
        return self._ask('')

    def _ask(self, line: str) -> dict[str, Any]:
        try:
            print(line, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # it has died, and below it says of what
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            said = [said.strip() for said in self._errors if said.strip()] or [f'exit code {self._process.returncode}']
            raise Died(said[-1])
        return json.loads(answer)

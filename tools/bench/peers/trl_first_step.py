"""The first SFT step with TRL, from the start of a process: imports, a model drawn at random, texts, one step.

In: a job of stage sft; with the word `child`, in a process of its own, the same. Out: seconds.
"""

import json
import os
import subprocess
import sys
import time
from typing import Any

from tools.bench.serve import serve, Work


def make(job: dict[str, Any]) -> Work:
    def turn() -> dict[str, float]:
        began = time.time()
        child = subprocess.run([sys.executable, '-m', 'tools.bench.peers.trl_first_step', 'child'], text=True,
                               input=json.dumps(job), stdout=subprocess.PIPE, check=True)
        return {'s': float(child.stdout.splitlines()[-1]) - began}
    return Work(turn)


def child() -> None:
    """Prints the time at which the first step was done."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    from tools.bench.peers import trl_sft
    trl_sft.make(json.loads(sys.stdin.read()) | {'lengths': [16, 64, 40], 'updates': 1}).turn()
    print(time.time(), file=answers, flush=True)
    os._exit(0)  # its training waits for the next step


if __name__ == '__main__':
    child() if sys.argv[1:] == ['child'] else serve(make, ('torch', 'transformers', 'trl'))

"""A Slurm job: one task a node, told in time before its limit, and queued again where it saved itself.

In: a job, how many nodes, where the sources are on the file system that the nodes share. Out: a script for sbatch.
Left out: accounts and whatever else a site wants, which sbatch reads from SBATCH_ variables.
"""

import re
import shlex

from llm.errors import Preempted, UserError
from tools.targets.job import Job, Step, word

_WARNING_SECONDS = 120  # from SIGTERM to the limit: time to save


def steps(job: Job, *, nodes: int, time_limit: str | None, partition: str | None, folder: str, python: str,
          wait: bool) -> list[Step]:
    """Without `wait`, sbatch ends when the job is queued; with it, when the job has ended, with its exit code."""
    if nodes < 1:
        raise UserError(f'--nodes={nodes} is less than 1; use 1 or more')
    if time_limit is not None and not re.fullmatch(r'(\d+-)?\d+(:\d+){0,2}', time_limit, re.ASCII):
        raise UserError(f'--time_limit={time_limit!r} is no time of Slurm; write e.g. 90, 12:00:00 or 2-00:00:00')
    directives = {
        'job-name': job.name, 'nodes': nodes, 'ntasks-per-node': 1, 'output': f'{job.name}-%j.log',
        'open-mode': 'append', 'requeue': None, 'signal': f'TERM@{_WARNING_SECONDS}',
        'dependency': 'singleton',  # a second job of this name waits for the first: a run has one owner
        **({'time': time_limit} if time_limit else {}),
        **({'partition': word('--partition', partition)} if partition else {})}
    script = '\n'.join([
        '#!/bin/bash',
        *(f'#SBATCH --{key}' + ('' if value is None else f'={value}') for key, value in directives.items()),
        f'cd {shlex.quote(folder)} || exit',
        f'srun --kill-on-bad-exit=0 {shlex.join(job.supervised(python))}',
        'code=$?',
        f'if [ "$code" = {Preempted.exit_code} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$code"']) + '\n'
    return [Step(['sbatch', *(['--wait'] if wait else [])], stdin=script)]

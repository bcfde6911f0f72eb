"""A TPU queued resource: asked for, waited for, given the committed source, and started on every host.

In: a job, a pod, where. Out: one script of bash. Left out: deleting the TPU (`gcloud compute tpus queued-resources
delete NAME --force`); a file system that all hosts share, on which the workdir has to be where there are several.
"""

import shlex

from llm.errors import UserError
from tools.targets.job import Job, shell, Step
from tools.targets.pods import Pod

_FOLDER = 'quartet'  # in the home of each host
_POLL_SECONDS = 30


def steps(job: Job, pod: Pod, *, zone: str, project: str | None, spot: bool, wait: bool) -> list[Step]:
    """Without `wait`, training goes on when this command has ended."""
    if pod.runtime is None:
        raise UserError(f'--pod={pod.name} has no TPU VMs; use the target gke or xpk')
    where = [f'--zone={zone}'] + ([f'--project={project}'] if project else [])
    tpus = ['gcloud', 'compute', 'tpus']
    nodes = [f'{job.name}-{number}' for number in range(pod.slices)] if pod.slices > 1 else [job.name]
    named = [f'--node-count={pod.slices}', f'--node-prefix={job.name}'] if pod.slices > 1 else [f'--node-id={job.name}']
    create = [*tpus, 'queued-resources', 'create', job.name, *where, *named,
              f'--accelerator-type={pod.accelerator_type}', f'--runtime-version={pod.runtime}',
              *(['--spot'] if spot else [])]
    state = [*tpus, 'queued-resources', 'describe', job.name, *where, '--format=value(state.state)']
    archive = f'{job.name}.tar.gz'
    unpack = f'mkdir -p {_FOLDER} && tar -xzf {archive} -C {_FOLDER} && cd {_FOLDER} && bash tools/venv.sh'
    install = f"{unpack} && .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[tpu]'"
    start = shlex.join(job.supervised('.venv/bin/python'))
    if not wait:
        start = f'{{ nohup setsid {start} >> {job.name}.log 2>&1 < /dev/null & }}'

    def ssh(node: str, command: str) -> str:
        return shlex.join([*tpus, 'tpu-vm', 'ssh', node, *where, '--worker=all', f'--command={command}'])

    def copy(node: str) -> str:
        return f'{shlex.join([*tpus, "tpu-vm", "scp", *where, "--worker=all"])} "$folder/{archive}" {node}:'
    return [shell('\n'.join([
        'set -euo pipefail',
        shlex.join(create),
        'while true; do',
        f'    state=$({shlex.join(state)})',
        '    case "$state" in',
        '        ACTIVE) break;;',
        f'        FAILED|SUSPENDING|SUSPENDED) echo "{job.name} is $state" >&2; exit 1;;',
        '    esac',
        f'    sleep {_POLL_SECONDS}',
        'done',
        'folder=$(mktemp -d)',
        'trap \'rm -rf "$folder"\' EXIT',
        f'git archive --format=tar.gz --output="$folder/{archive}" HEAD',
        *(line for node in nodes for line in (copy(node), ssh(node, install))),
        *_at_once([ssh(node, f'cd {_FOLDER} && {start}') for node in nodes]),
        '']))]


def _at_once(commands: list[str]) -> list[str]:
    """Slices wait for each other."""
    if len(commands) == 1:
        return commands
    return ['pids=()', *(line for command in commands for line in (f'{command} &', 'pids+=($!)')),
            'for pid in "${pids[@]}"; do wait "$pid"; done']

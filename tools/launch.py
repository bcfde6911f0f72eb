"""Starts a config somewhere: python -m tools.launch TARGET --config=FILE[:VARIANT] --workdir=DIR [--config.KEY=VALUE]

TARGET is tpu (a queued resource), gke (a JobSet), xpk, slurm, or --local=N processes here. `--dry_run` prints what
would be run or submitted, and nothing else:

    python -m tools.launch tpu --pod=v5p-128 --zone=us-east5-a --config=configs/ppo.py --workdir=DIR --dry_run
    python -m tools.launch gke --pod='2x v5e-256' --image=IMAGE --claim=VOLUME --config=... --workdir=DIR
    python -m tools.launch xpk --pod=v6e-256 --cluster=NAME --zone=ZONE --image=IMAGE --config=... --workdir=DIR
    python -m tools.launch slurm --nodes=4 --time_limit=12:00:00 --config=... --workdir=DIR
    python -m tools.launch --local=4 --config=configs/quickstart.py:tiny --workdir=runs/tiny

In: flags. Out: started processes, each under `tools.supervise` (local ones with `--supervise`); the exit code of what
was run. The workdir has to be on a file system that all hosts share.
Left out: whether the config fits the pod (`tools.plan`).
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys

from llm.errors import UserError
from tools.flags import ended, Parser
from tools.targets import gke, local, slurm, tpu
from tools.targets.job import Job, Step
from tools.targets.pods import pod

_ROOT = str(pathlib.Path(__file__).resolve().parents[1])
# Target -> flags that it needs, flags that it may have.
_FLAGS = {
    'tpu': ({'pod', 'zone'}, {'project', 'spot', 'wait'}),
    'gke': ({'pod', 'image', 'claim'}, {'spot', 'wait'}),
    'xpk': ({'pod', 'cluster', 'zone', 'image'}, {'project', 'wait'}),
    'slurm': ({'nodes'}, {'time_limit', 'partition', 'wait'}),
    'local': ({'local'}, {'supervise', 'wait'}),  # which always waits
}


def main(words: list[str]) -> int:
    arguments, job = parse(words)
    if arguments.local is not None:
        variables, commands = local.commands(job, arguments.local, supervise=arguments.supervise,
                                             environment=os.environ)
        if arguments.dry_run:
            print('\n'.join(local.shown(variables, command) for command in commands))
            return 0
        return local.run(variables, commands, folder=_ROOT)
    steps = submission(arguments, job)
    if arguments.dry_run:
        print(''.join(map(str, steps)), end='')
        return 0
    return next((code for code in map(_run, steps) if code), 0)


def parse(words: list[str]) -> tuple[argparse.Namespace, Job]:
    """The flags of this tool, and what is left of them: a job. Raises UserError."""
    parser = Parser(prog='tools.launch', description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('target', nargs='?', choices=[name for name in _FLAGS if name != 'local'])
    parser.add_argument('--local', type=int, metavar='N', help='so many processes on the CPU of this machine')
    parser.add_argument('--config', required=True, help='FILE[:VARIANT]; --config.KEY=VALUE overrides a key')
    parser.add_argument('--workdir', required=True, help='folder of the runs, as the started processes see it')
    parser.add_argument('--name', help="of the job; the config's, without one")
    parser.add_argument('--pod', help="e.g. v5p-128, or '2x v5e-256' for two slices")
    parser.add_argument('--zone')
    parser.add_argument('--project')
    parser.add_argument('--spot', action='store_true', help='cheaper, and taken away at any time')
    parser.add_argument('--cluster', help='of xpk')
    parser.add_argument('--image', help='container with the source in its working directory, and its packages')
    parser.add_argument('--claim', help='PersistentVolumeClaim that is mounted at the workdir')
    parser.add_argument('--nodes', type=int, help='of Slurm, one process on each')
    parser.add_argument('--time_limit', help='of Slurm, e.g. 12:00:00')
    parser.add_argument('--partition', help='of Slurm')
    parser.add_argument('--supervise', action='store_true', help='local processes that end are started again')
    parser.add_argument('--wait', action='store_true', help='stay until the job has ended, and end as it did')
    parser.add_argument('--dry_run', action='store_true', help='print what would be run or submitted')
    arguments, rest = parser.parse_known_args(words)
    for text in rest:
        if not re.match(r'--config\.[^=]+=', text):
            raise UserError(f'argument {text!r} is not known; flags are --name=value, keys --config.KEY=VALUE')
    target = _target(arguments)
    needed, allowed = _FLAGS[target]
    for flag in sorted(needed | set().union(*(other for pair in _FLAGS.values() for other in pair))):
        given = getattr(arguments, flag) is not None and getattr(arguments, flag) is not False
        if flag in needed and not given:
            raise UserError(f'--{flag} is missing, which {target} needs')
        if given and flag not in needed | allowed:
            raise UserError(f'--{flag} means nothing to {target}; leave it out')
    return arguments, Job(name=arguments.name or job_name(arguments.config), config=arguments.config,
                          workdir=arguments.workdir, overrides=tuple(rest))


def submission(arguments: argparse.Namespace, job: Job) -> list[Step]:
    """What a target takes, in order."""
    given = {flag: getattr(arguments, flag) for flag in set().union(*_FLAGS[arguments.target])}
    if 'pod' in given:
        given['pod'] = pod(given['pod'])
    if arguments.target == 'slurm':
        return slurm.steps(job, folder=_ROOT, python=sys.executable, **given)
    return {'tpu': tpu.steps, 'gke': gke.steps, 'xpk': gke.xpk_steps}[arguments.target](job, **given)


def _target(arguments: argparse.Namespace) -> str:
    if (arguments.target is None) == (arguments.local is None):
        raise UserError(f'give one target: {", ".join(name for name in _FLAGS if name != "local")} or --local=N')
    return arguments.target or 'local'


def job_name(config: str) -> str:
    """quartet- and the config's file and variant, as far as they can be in a name."""
    file, _, variant = config.partition(':')
    return re.sub(r'[^a-z0-9]+', '-', f'quartet-{pathlib.Path(file).stem}-{variant}'.lower())[:40].strip('-')


def _run(step: Step) -> int:
    try:
        done = subprocess.run(step.argv, cwd=_ROOT, input=step.stdin, text=True)
    except FileNotFoundError:
        raise UserError(f'{step.argv[0]} is not installed here; install it, or see --dry_run') from None
    return local.exit_code(done.returncode)


if __name__ == '__main__':
    sys.exit(ended(lambda: main(sys.argv[1:])))

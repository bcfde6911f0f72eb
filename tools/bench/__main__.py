"""Measured speed: python -m tools.bench [--peers] [--only=NAME,...] [--rounds=N] [--json=FILE] [--smoke] [--busy]
       python -m tools.bench --profile=DIR [--only=NAME,...]

In: this machine, which should be idle. Out: a table (ours, the peer's, their ratio round by round, our share of the
measured matmul peak) and JSON lines. Exit code 2 where others compute, unless --busy is given.
Left out: whether anything was learned.

Each workload runs in a process of its own, through the very code that the stages run; with --peers, beside programs
that people would pick instead, taking turns, on the same shapes, with as many threads and the same allocator. Peers
have environments of their own, with pinned packages, made when they are first asked for.
"""

import argparse
import pathlib
import sys
from typing import Any

from llm.door import nearest
from llm.errors import UserError
from tools.bench import machine
from tools.bench import profile
from tools.bench import table
from tools.bench.compare import compare
from tools.bench.process import Died, Worker
from tools.bench.workloads import job, NOT_COMPILED, WORKLOADS


def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    try:
        run(arguments)
    except (UserError, Died) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


def parse(words: list[str] | None) -> argparse.Namespace:
    names = '\n'.join(f'  {name:18} {workload.about}' for name, workload in WORKLOADS.items())
    parser = argparse.ArgumentParser(prog='python -m tools.bench', description=__doc__.split('\n', 1)[1],
                                     epilog=f'workloads:\n{names}',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', metavar='NAME,...', help='these workloads; without it, all')
    parser.add_argument('--peers', action='store_true', help='others beside us, in turns')
    parser.add_argument('--rounds', type=int, default=7, help='turns that each side takes (default: 7)')
    parser.add_argument('--json', type=pathlib.Path, metavar='FILE', help='results are appended to it')
    parser.add_argument('--busy', action='store_true', help='measure although others compute; the results say so')
    parser.add_argument('--profile', type=pathlib.Path, metavar='DIR',
                        help='instead of speeds: a trace of one turn of each workload, and its longest operations')
    parser.add_argument('--smoke', action='store_true', help='the smallest shapes: whether all of it runs, no speeds')
    return parser.parse_args(words)


def run(arguments: argparse.Namespace) -> None:
    chosen = choose(arguments.only)
    if arguments.rounds < 1:
        raise UserError(f'--rounds={arguments.rounds} measures nothing; use 1 or more')
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        raise UserError(f'--json={arguments.json} is in no folder that is there; make it first')
    about, load = machine.describe(), machine.load()
    if not arguments.busy:
        machine.refuse_if_busy(load)
    if arguments.profile:
        profiled(chosen, arguments.profile, arguments.smoke)
        return
    with Worker(sys.executable, 'ours.peak', {}) as worker:
        peak = worker.turn()['flops/s']
    found: list[Any] = []
    for name in chosen:
        rows = compare(name, WORKLOADS[name], rounds=arguments.rounds, peers=arguments.peers, smoke=arguments.smoke,
                       peak=peak, say=say)
        if arguments.json:  # now: what comes later may fail
            table.append(arguments.json, rows, about, load, peak)
        found += rows
    table.show(found, about, load, peak)


def profiled(names: list[str], folder: pathlib.Path, smoke: bool) -> None:
    """One workload after the other; those that compile nothing in their own process are left out."""
    for name in names:
        if WORKLOADS[name].module in NOT_COMPILED:
            say(f'{name}  has nothing to profile')
            continue
        where = (folder / name).absolute()
        with Worker(sys.executable, f'ours.{WORKLOADS[name].module}',
                    job(WORKLOADS[name], smoke) | {'profile': str(where)}):
            profile.show(name, where)


def choose(only: str | None) -> list[str]:
    names = only.split(',') if only else list(WORKLOADS)
    for name in names:
        if name not in WORKLOADS:
            raise UserError(f'--only={name} is no workload{nearest(name, WORKLOADS)}')
    return names


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == '__main__':
    sys.exit(main())

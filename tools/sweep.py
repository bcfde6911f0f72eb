"""Runs the rows of a sweep: python -m tools.sweep experiments/NAME/sweep.py --workdir=DIR [--jobs=N] [--launch=FLAGS]

The file is Python and names CONFIG, the config of all rows, and SWEEP, a list of override dicts:

    from tools.sweeps.grid import chain, product, zip_
    CONFIG = 'configs/quickstart.py:tiny'
    SWEEP = product({'stages.sft.optim.learning_rate': [1e-3, 3e-3]}, {'stages.ppo.kl_target': [2.0, 4.0]})

In: that file; a workdir, which all rows share, and so finished stages. Out: sweep.json, sweep.csv and sweep.svg in the
workdir, a table on the screen; exit code 0, or 1 where rows failed. Called again, it runs what is not finished.
Left out: editing configs. `--launch` hands each row to `tools.launch`, e.g. --launch='slurm --nodes=2'.
"""

import contextlib
import importlib.util
import pathlib
import shlex
import signal
import subprocess
import sys
import time

from llm import metrics
from llm.errors import Preempted, UserError
from llm.main import guarded
from tools import launch
from tools.flags import Parser
from tools.sweeps import outcome, schedule
from tools.sweeps.rows import Finished, read_rows, Row

_LOOK_SECONDS = 1.0  # between two looks at what runs
_SAVE_SECONDS = 60.0  # for rows that were told to stop


def main() -> int:
    parser = Parser(prog='tools.sweep', description=__doc__.splitlines()[0])
    parser.add_argument('sweep', help='e.g. experiments/NAME/sweep.py')
    parser.add_argument('--workdir', required=True, help='folder of all runs')
    parser.add_argument('--jobs', type=int, default=1, help='rows at a time')
    parser.add_argument('--launch', default='', metavar='FLAGS', help='flags of tools.launch, by which each row is run')
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        raise UserError(f'--jobs={arguments.jobs} is less than 1; use 1 or more')
    flags = split(arguments.launch)
    config, overrides = read(arguments.sweep)
    rows = read_rows(config, overrides, metrics.progress)
    stages = {name: len({row.keys[name] for row in rows}) for name in rows[0].stages}
    metrics.say(f'{len(rows)} rows, of ' + ', '.join(f'{count} {name}' for name, count in stages.items()))
    finished = Finished(arguments.workdir)
    logs = pathlib.Path(arguments.workdir) / 'sweep'
    logs.mkdir(parents=True, exist_ok=True)

    def start(row: Row) -> subprocess.Popen:
        with (logs / f'row{row.number}.log').open('a') as log:
            return subprocess.Popen(command(row, config, arguments.workdir, flags), stdout=log,
                                    stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True)
    with _ended_with_us(start) as started:
        ended = schedule.run(rows, jobs=arguments.jobs, unfinished=finished.unfinished, start=started,
                             pause=lambda: time.sleep(_LOOK_SECONDS), say=metrics.say)
    swept = outcome.all_keys(rows)
    table = [outcome.record(row, swept, ended[row], finished.of(row)) for row in rows]
    metrics.table('rows of the sweep, each stage by its own held-out number', [outcome.cells(row) for row in table])
    for path in outcome.write(arguments.workdir, config, rows, table):
        metrics.say(str(path))
    failed = [row for row in rows if ended[row]]
    if failed:
        metrics.say(f'{len(failed)} of {len(rows)} rows are not done, see {logs}; the same command tries them again')
    return 1 if failed else 0


def command(row: Row, config: str, workdir: str, flags: list[str]) -> list[str]:
    """What runs a row, here or by `tools.launch` with those flags, and ends when the row has."""
    words = [f'--config={config}', f'--workdir={workdir}', *row.flags]
    if not flags:
        return [sys.executable, '-m', 'llm.main', *words]
    name = f'{launch.job_name(config)[:34].rstrip("-")}-r{row.number}'
    return [sys.executable, '-m', 'tools.launch', *flags, '--wait', f'--name={name}', *words]


def split(flags: str) -> list[str]:
    """The words of `--launch`; raises UserError."""
    try:
        return shlex.split(flags)
    except ValueError as error:  # a quote that is not closed
        raise UserError(f'--launch={flags}: {error}; write it as for a shell') from None


def read(path: str) -> tuple[str, list[dict]]:
    """CONFIG and SWEEP of a sweep's file; raises UserError."""
    try:
        spec = importlib.util.spec_from_file_location('sweep', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config, rows = module.CONFIG, module.SWEEP
    except UserError:
        raise
    except Exception as error:  # the file is a program: it may raise anything
        raise UserError(f'{path}: {type(error).__name__}: {error}') from error
    if not isinstance(config, str) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f'{path}: CONFIG is a string, SWEEP a list of dicts with at least one; see tools/sweep.py')
    return config, list(rows)


@contextlib.contextmanager
def _ended_with_us(start):
    """`start`, whose processes are told to stop and waited for where this one is."""
    running: list[subprocess.Popen] = []

    def started(row: Row) -> subprocess.Popen:
        running.append(start(row))
        return running[-1]

    def stop(number: int, frame) -> None:
        raise SystemExit(Preempted.exit_code)
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in running:
            process.terminate()
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_SAVE_SECONDS)


if __name__ == '__main__':
    codes: list[int] = []
    sys.exit(guarded(lambda: codes.append(main())) or codes[0])

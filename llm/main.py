"""The one driver: python -m llm.main --config=FILE[:VARIANT] --workdir=DIR [--config.KEY=VALUE ...]

In: a config of one stage, or of a pipeline of stages; a folder, which may hold earlier runs.
Out: finished stages in the folder and a page about them, one table on the screen. Exit code 0; 2 with one line for a
user's mistake; 42, 43 and 44 as `llm/errors.py` says.
Left out: everything else; the pipeline decides what runs.
"""

from collections.abc import Callable
import contextlib
import os
import sys
import threading
import time
import traceback

from absl import app
from absl import flags
import jax
from ml_collections import config_flags, ConfigDict

from configs import base
from llm import metrics
from llm import processes
from llm.errors import exit_code, Preempted, StorageError, UserError
from llm.host_memory import keep_memory
from llm.phases import goodput
from llm.pipeline import run_pipeline

CONFIG = config_flags.DEFINE_config_file('config', None, 'config file, and its variant after a colon')
WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the runs, local')
COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT on which process 0 of several listens')
PROCESSES = flags.DEFINE_integer('processes', None, 'how many there are')
PROCESS = flags.DEFINE_integer('process', None, 'which of them this one is, from 0')
RERUN = flags.DEFINE_string('rerun', None, 'name of a finished stage to run again; the old run is set aside')


_MOMENT_SECONDS = 2.0
_EXAMPLES = {'config': 'configs/quickstart.py', 'workdir': 'runs/quickstart', 'pod': 'v5e-256'}


def guarded(work: Callable[[], None]) -> int:
    """The exit code of a command: 0, or that of `llm/errors.py` and one line."""
    threading.excepthook = _thread_failed
    try:
        processes.choose_platform()
        if jax.config.jax_platforms == 'cpu':
            keep_memory()
        enable_compilation_cache()
        work()
    except (UserError, Preempted) as error:
        _tell(f'{"stopped" if isinstance(error, Preempted) else "error"}: {error}')
        return exit_code(error)
    except OSError as error:  # a file that cannot be read, a full disk
        _tell(f'error: {_one_line(Exception(str(error)))}; check that path and the room on its disk')
        return exit_code(error)
    return 0


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # where the log is on the disk that is full, the exit code has to do
        print(line, file=sys.stderr, flush=True)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """A disk that fails a thread, TensorBoard's say, fails the next row or save, too, which says so in one line."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def main(argv: list[str]) -> None:
    config = parse(argv)
    processes.join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    metrics.console.quiet = not processes.is_first()
    done = run_pipeline(config, WORKDIR.value, rerun=RERUN.value, say=metrics.say, progress=progress)
    if processes.is_first():
        from llm import report  # with matplotlib, a third of a second that the first step does not wait for
        metrics.table('every stage beside its parent, on its own held-out number', [
            {'stage': name, 'held-out number': result.metric, 'parent': result.before, 'now': result.after,
             'step': result.step, 'ended by': result.why, 'seconds': round(result.seconds),
             'goodput': round(goodput(result.phases), 3)}
            for name, (_, result) in done.items()])
        folders = {name: folder for name, (folder, _) in done.items()}
        metrics.say(f'report  {report.write(WORKDIR.value, folders, base.defaults())}')


def progress(what: str, done: int, total: int) -> None:
    """Shown to people, and to whoever supervises this process."""
    processes.progress(f'{what} {done}')
    metrics.progress(what, done, total)


def parse(argv: list[str], needed: tuple[str, ...] = ('config', 'workdir')) -> ConfigDict:
    """The config with its overrides; whatever absl or ml_collections make of a mistake becomes one UserError."""
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise UserError(f'argument {rest[1]!r} is not a flag; write --name=value')
        example = ' '.join(f'--{name}={_EXAMPLES[name]}' for name in needed)
        for name in needed:
            if flags.FLAGS[name].value is None:
                raise UserError(f'--{name} is missing; e.g. {example}')
        CONFIG.value.keys()  # a config that could not be loaded complains when it is first used
        return CONFIG.value
    except flags.Error as error:
        raise UserError(f'flags: {_one_line(error)}') from error
    except UserError:
        raise
    except Exception as error:  # a config file is a program: it may raise anything
        raise UserError(f'--config: {type(error).__name__}: {_one_line(error)}; mend that file, or the --config.KEY '
                        f'that names it (configs/base.py lists all keys)') from error


def _one_line(error: Exception) -> str:
    """The last line of a message: absl and ml_collections put tracebacks and search paths before it."""
    text = str(error.args[0]) if error.args else str(error)
    line = text.replace('\\n', '\n').strip().splitlines()[-1].strip()
    return line.removesuffix("'") if line.count("'") % 2 else line  # what is left of quotes around the whole


def enable_compilation_cache() -> None:
    """Compiled programs outlive the process; JAX_COMPILATION_CACHE_DIR names another place.

    JAX keeps those that took a second; a stage begins with a dozen smaller ones.
    """
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.05)
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser('~/.cache/quartet/xla'))


def leave(work: Callable[[], None]) -> None:
    """Ends this process with the exit code of its work.

    One of several that failed does not wait for the others, who hear of it by its silence; process 0, by whom they
    hear, gives them a moment to say the same. Nor does one whose disk failed wait for threads of its own: Orbax's stay
    for ten minutes where a folder that they write to could not be made.
    """
    try:
        code = guarded(work)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        code = 1
    several = jax.distributed.is_initialized()
    if code == StorageError.exit_code or code and code != Preempted.exit_code and several:
        for tell in (metrics.progress.stop, sys.stdout.flush, sys.stderr.flush):
            with contextlib.suppress(OSError):
                tell()
        time.sleep(_MOMENT_SECONDS if several and processes.is_first() else 0)
        os._exit(code)
    sys.exit(code)


if __name__ == '__main__':
    app.define_help_flags()
    leave(lambda: main(sys.argv))

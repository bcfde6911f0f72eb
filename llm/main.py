"""The one driver: python -m llm.main --config=FILE[:VARIANT] --workdir=DIR [--config.KEY=VALUE ...]

In: a config of one stage, or of a pipeline of stages; a folder, which may hold earlier runs.
Out: finished stages in the folder and a page about them, one table on the screen. Exit code 0, or 2 with one line for
a user's mistake.
Left out: everything else; the pipeline decides what runs.
"""

from collections.abc import Callable
import os
import sys

from absl import app
from absl import flags
import jax
from ml_collections import config_flags, ConfigDict

from configs import base
from llm import metrics
from llm import report
from llm.errors import UserError
from llm.pipeline import run_pipeline

CONFIG = config_flags.DEFINE_config_file('config', None, 'config file, and its variant after a colon')
WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the runs, local')
RERUN = flags.DEFINE_string('rerun', None, 'name of a finished stage to run again; the old run is set aside')


_EXAMPLES = {'config': 'configs/quickstart.py', 'workdir': 'runs/quickstart', 'pod': 'v5e-256'}


def guarded(work: Callable[[], None]) -> int:
    """The exit code of a command: 0, or 2 and one line where the user made a mistake."""
    try:
        enable_compilation_cache()
        work()
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:  # a file that cannot be read, a full disk
        print(f'error: {_one_line(Exception(str(error)))}; check that path and the room on its disk', file=sys.stderr)
        return 2
    return 0


def main(argv: list[str]) -> None:
    done = run_pipeline(parse(argv), WORKDIR.value, rerun=RERUN.value, say=metrics.say, progress=metrics.progress)
    metrics.table('every stage beside its parent, on its own held-out number', [
        {'stage': name, 'held-out number': result.metric, 'parent': result.before, 'now': result.after,
         'step': result.step, 'ended by': result.why, 'seconds': round(result.seconds)}
        for name, (_, result) in done.items()])
    if jax.process_index() == 0:
        folders = {name: folder for name, (folder, _) in done.items()}
        metrics.say(f'report  {report.write(WORKDIR.value, folders, base.defaults())}')


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
        raise UserError(f'--config: {type(error).__name__}: {_one_line(error)}') from error


def _one_line(error: Exception) -> str:
    """The last line of a message: absl and ml_collections put tracebacks and search paths before it."""
    text = str(error.args[0]) if error.args else str(error)
    line = text.replace('\\n', '\n').strip().splitlines()[-1].strip()
    return line.removesuffix("'") if line.count("'") % 2 else line  # what is left of quotes around the whole


def enable_compilation_cache() -> None:
    """Compiled programs outlive the process; JAX_COMPILATION_CACHE_DIR names another place."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser('~/.cache/quartet/xla'))


if __name__ == '__main__':
    app.define_help_flags()
    sys.exit(guarded(lambda: main(sys.argv)))

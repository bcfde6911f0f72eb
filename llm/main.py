"""The one driver: python -m llm.main --config=FILE[:VARIANT] --workdir=DIR [--config.KEY=VALUE ...]

In: a config of one stage, or of a pipeline of stages; a folder, which may hold earlier runs.
Out: finished stages in the folder, one table on the screen. Exit code 0, or 2 with one line for a user's mistake.
Left out: everything else; the pipeline decides what runs.
"""

import os
import pathlib
import sys

from absl import flags
import jax
from ml_collections import config_flags

from llm import metrics
from llm.config import UserError, nearest
from llm.pipeline import run_pipeline

CONFIG = config_flags.DEFINE_config_file('config', None, 'config file, and its variant after a colon')
WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the runs; may be a bucket')
RERUN = flags.DEFINE_string('rerun', None, 'name of a finished stage to run again; the old run is set aside')


def main(argv: list[str]) -> int:
    try:
        parse(argv)
        enable_compilation_cache()
        results = run_pipeline(CONFIG.value, WORKDIR.value, rerun=RERUN.value, say=metrics.say,
                               progress=metrics.progress)
    except UserError as error:
        metrics.say(f'error: {error}')
        return 2
    metrics.table([
        {'stage': name, 'held-out number': result.metric, 'parent': result.before, 'now': result.after,
         'step': result.step, 'ended by': result.why, 'seconds': round(result.seconds)}
        for name, result in results.items()])
    return 0


def parse(argv: list[str]) -> None:
    """Parses flags; whatever absl or ml_collections make of a mistake becomes one UserError."""
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(str(error).replace('\n', ' ')) from error
    except (AttributeError, KeyError, TypeError, ValueError, ImportError, OSError) as error:
        raise UserError(f'--config: {" ".join(str(error).split())}') from error
    if len(rest) > 1:
        raise UserError(f'argument {rest[1]!r} is not a flag; write --name=value')
    for name in ('config', 'workdir'):
        if flags.FLAGS[name].value is None:
            raise UserError(f'--{name} is missing; e.g. --config=configs/quickstart.py --workdir=runs/quickstart')


def enable_compilation_cache() -> None:
    """Compiled programs outlive the process; JAX_COMPILATION_CACHE_DIR names another place."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser('~/.cache/quartet/xla'))


if __name__ == '__main__':
    sys.exit(main(sys.argv))

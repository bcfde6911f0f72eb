"""Eight CPU devices, strict rank promotion, warnings as errors: set before the back end starts."""

import fcntl
import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')

import jax  # noqa: E402  (the platform must be chosen first)
import pytest  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Compilation is most of the suite's time: workers and later runs share what is compiled, as `llm.main` does.
if jax.config.jax_compilation_cache_dir is None:
    jax.config.update('jax_compilation_cache_dir', os.path.expanduser('~/.cache/quartet/xla'))


@pytest.fixture(scope='session')
def finished_pipeline(tmp_path_factory) -> pathlib.Path:
    """A workdir in which all four stages of `tiny.pipeline_config(workdir)` are finished; copy it to change it."""
    from tests import tiny  # not before the lines above
    parallel = 'PYTEST_XDIST_WORKER' in os.environ
    shared = tmp_path_factory.getbasetemp().parent if parallel else tmp_path_factory.getbasetemp()
    workdir = shared / 'finished'
    workdir.mkdir(exist_ok=True)
    with (shared / 'finished.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second worker finds every stage finished
        tiny.write_data(workdir)
        tiny.run(tiny.pipeline_config(workdir), workdir)
    return workdir

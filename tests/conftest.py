"""Eight CPU devices, strict rank promotion, warnings as errors: set before the back end starts."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax  # noqa: E402  (the platform must be chosen first)
import pytest  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='session')
def finished_pipeline(tmp_path_factory) -> pathlib.Path:
    """A workdir in which all four stages of `tiny.pipeline_config(workdir)` are finished; copy it to change it."""
    from tests import tiny  # not before the lines above
    workdir = tmp_path_factory.mktemp('pipeline')
    tiny.write_data(workdir)
    tiny.run(tiny.pipeline_config(workdir), workdir)
    return workdir

"""The TPU compiler beside the CPU back end, in this process; what it compiles is not kept on disk."""

import os

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

os.environ.update(TPU_SKIP_MDS_QUERY='1', ALLOW_MULTIPLE_LIBTPU_LOAD='1', TPU_ACCELERATOR_TYPE='v5litepod-4',
                  TPU_WORKER_HOSTNAMES='localhost')


@pytest.fixture(autouse=True)
def no_compilation_cache():
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()  # it remembers whether it was on
    yield
    jax.config.update('jax_enable_compilation_cache', True)
    compilation_cache.reset_cache()

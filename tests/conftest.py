"""Eight CPU devices, strict rank promotion, warnings as errors: set before the back end starts."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax  # noqa: E402  (the platform must be chosen first)

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

"""Layers against jax.numpy and Flax's own."""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.model.layers import Einsum, FeedForward, Norm, activate, dropout, residual_stddev, softcap
from llm.sharding import AxisRules
from tests import tiny
from tests.model import models


@pytest.mark.parametrize('equation, shape', [('BTD,DNH->BTNH', (6, 4, 2)), ('BTNH,NHD->BTD', (3, 2, 6)),
                                             ('BTD,DF->BTF', (6, 5))])
def test_einsum_is_the_equation_it_names(equation, shape):
    contracted = len(equation.split(',')[0]) - 2
    x = jax.random.normal(jax.random.key(0), (2, 5, *shape[:contracted]))
    rules = AxisRules.from_config(tiny.EXEC.rules)
    layer = Einsum(equation, shape, ('embed',) * len(shape), 'float32', rules, use_bias=True)
    params = nn.meta.unbox(layer.init(jax.random.key(1), x)['params'])
    params['bias'] = jax.random.normal(jax.random.key(2), params['bias'].shape)

    def plain(params, x):
        bias = params['bias'].reshape(1, 1, *params['bias'].shape)
        return jnp.einsum(equation, x, params['w'], precision='highest') + bias
    y, gradient = jax.vjp(lambda params, x: layer.apply({'params': params}, x), params, x)
    y_plain, gradient_plain = jax.vjp(plain, params, x)
    np.testing.assert_allclose(y, y_plain, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient(y), gradient_plain(y))


@pytest.mark.parametrize('kind, flax_norm', [('gpt2', nn.LayerNorm), ('llama', nn.RMSNorm)])
def test_norms_are_those_of_flax(kind, flax_norm):
    config = models.KINDS[kind]
    x_BTD = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 3, config.model_dim))
    norm = Norm(config)
    params = jax.tree.map(lambda x: x + jnp.arange(x.size) / x.size,
                          nn.meta.unbox(norm.init(jax.random.key(1), x_BTD)['params']))
    expected = flax_norm(epsilon=config.norm_eps, use_fast_variance=False).apply({'params': params}, x_BTD)
    np.testing.assert_allclose(norm.apply({'params': params}, x_BTD), expected, rtol=1e-5, atol=1e-5)


def test_norm_keeps_the_dtype_and_computes_in_float32():
    norm = Norm(tiny.model())
    x_BTD = (1000 + jax.random.normal(jax.random.key(0), (1, 2, 64))).astype(jnp.bfloat16)
    params = nn.meta.unbox(norm.init(jax.random.key(1), x_BTD)['params'])
    y_BTD = norm.apply({'params': params}, x_BTD)
    exact = norm.apply({'params': params}, x_BTD.astype(jnp.float32)).astype(jnp.bfloat16)
    assert y_BTD.dtype == jnp.bfloat16 and (y_BTD == exact).all()


def test_residual_outputs_start_smaller_by_the_root_of_twice_the_depth():
    assert residual_stddev(tiny.model(num_layers=8)) == pytest.approx(0.02 / 4)


def test_dropout_at_rate_zero_needs_no_key():
    class Dropped(nn.Module):
        rate: float

        @nn.compact
        def __call__(self, x):
            return dropout(x, self.rate, 'd')
    x = jnp.ones((64, 64))
    assert (Dropped(0.0).apply({}, x) == x).all()
    kept = Dropped(0.25).apply({}, x, rngs={'dropout': jax.random.key(0)})
    assert set(np.unique(kept)) == {np.float32(0), np.float32(1 / 0.75)}
    assert 0.2 < float((kept == 0).mean()) < 0.3


def test_norm_with_an_offset_starts_as_one_without():
    plain, shifted = tiny.model(), tiny.model(norm_offset=1.0)
    x_BTD = jax.random.normal(jax.random.key(0), (1, 2, 64))
    assert (Norm(shifted).init(jax.random.key(1), x_BTD)['params']['scale'].value == 0).all()
    scale_D = jnp.linspace(-1, 1, 64)
    np.testing.assert_allclose(Norm(shifted).apply({'params': {'scale': scale_D}}, x_BTD),
                               Norm(plain).apply({'params': {'scale': 1 + scale_D}}, x_BTD), rtol=1e-6)


def test_norm_of_heads_is_of_each_head_alone():
    x_BTNH = jax.random.normal(jax.random.key(0), (1, 2, 4, 16)) * jnp.array([1.0, 10, 100, 1000]).reshape(1, 1, 4, 1)
    y_BTNH = Norm(tiny.model(), 16).apply({'params': {'scale': jnp.ones(16)}}, x_BTNH)
    np.testing.assert_allclose(jnp.square(y_BTNH).mean(-1), 1, rtol=1e-3)


@pytest.mark.parametrize('mlp, expected', [
    ('gelu_exact', lambda x: x * (1 + math.erf(x / 2 ** 0.5)) / 2),
    ('gelu', lambda x: x * (1 + math.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x ** 3))) / 2),
    ('geglu', lambda x: x * (1 + math.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x ** 3))) / 2),
    ('swiglu', lambda x: x / (1 + math.exp(-x)))])
def test_activations_are_those_stated(mlp, expected):
    x = jnp.linspace(-4, 4, 33)
    np.testing.assert_allclose(activate(x, mlp), [expected(float(value)) for value in x], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('mlp', ['swiglu', 'geglu'])
def test_the_gate_goes_through_the_activation(mlp):
    config, x_BTD = tiny.model(mlp=mlp), jax.random.normal(jax.random.key(0), (1, 2, 64))
    layer = FeedForward(config, tiny.execution())
    params = nn.meta.unbox(layer.init(jax.random.key(1), x_BTD)['params'])
    gate, up, down = (params[name]['w'] for name in ('gate', 'up', 'down'))
    expected = (activate(x_BTD @ gate, mlp) * (x_BTD @ up)) @ down
    np.testing.assert_allclose(layer.apply({'params': params}, x_BTD), expected, rtol=1e-4, atol=1e-6)


def test_softcap_bounds_and_hardly_touches_what_is_small():
    x = jnp.array([-1e4, -0.01, 0.0, 0.01, 3.0, 1e4])
    np.testing.assert_allclose(softcap(x, 30.0), [-30, -0.01, 0, 0.01, 30 * math.tanh(0.1), 30], rtol=1e-5)
    assert softcap(x, 0.0) is x

"""Chunked log-probabilities against `jax.nn.log_softmax` of all logits at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.objectives.log_probs import token_log_probs

BATCH, LENGTH, WIDTH, VOCAB = 3, 7, 5, 11


@pytest.fixture(scope='module')
def arrays():
    keys = jax.random.split(jax.random.key(0), 3)
    return (jax.random.normal(keys[0], (BATCH, LENGTH, WIDTH)), jax.random.normal(keys[1], (VOCAB, WIDTH)),
            jax.random.randint(keys[2], (BATCH, LENGTH), 0, VOCAB))


def oracle(x_BTD, w_VD, targets_BT, temperature):
    logits_BTV = jnp.einsum('BTD,VD->BTV', x_BTD, w_VD) / temperature
    logp_BTV = jax.nn.log_softmax(logits_BTV)
    return (jnp.take_along_axis(logp_BTV, targets_BT[:, :, None], axis=2)[:, :, 0],
            jax.nn.logsumexp(logits_BTV, axis=2), -jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=2))


def values_and_gradient(function, x_BTD, w_VD, targets_BT):
    """The three values, and the gradient of an uneven sum of the two that have one."""
    def scalar(x_BTD, w_VD):
        values = function(x_BTD, w_VD, targets_BT)
        logp_BT, logsumexp_BT, _ = values
        weight_BT = jnp.arange(1.0, 1 + BATCH * LENGTH).reshape(BATCH, LENGTH)
        return jnp.sum(weight_BT * logp_BT + jnp.square(logsumexp_BT)), values
    gradient, values = jax.jit(jax.grad(scalar, argnums=(0, 1), has_aux=True))(x_BTD, w_VD)
    return (*values, *gradient)


@pytest.fixture(scope='module')
def expected(arrays):
    return values_and_gradient(lambda *arrays: oracle(*arrays, 0.7), *arrays)


@pytest.mark.parametrize('chunk_vocab', (1, 3, 4, 11, 100))  # 3 and 4 do not divide 11
def test_any_chunk_gives_log_softmax_and_its_gradient(arrays, expected, chunk_vocab):
    def chunked(*arrays):
        return token_log_probs(*arrays, chunk_vocab=chunk_vocab, temperature=0.7)
    for found, value in zip(values_and_gradient(chunked, *arrays), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-4)


def test_no_gradient_flows_through_the_reported_entropy(arrays):
    x_BTD, w_VD, targets_BT = arrays

    def entropy(x_BTD):
        return jnp.sum(token_log_probs(x_BTD, w_VD, targets_BT, chunk_vocab=3).entropy_BT)
    assert not np.any(jax.jit(jax.grad(entropy))(x_BTD))


@pytest.mark.parametrize('chunk_vocab, largest', ((4, BATCH * LENGTH * 4), (VOCAB, BATCH * LENGTH * VOCAB)))
def test_logits_of_more_than_one_chunk_never_live(arrays, chunk_vocab, largest):
    x_BTD, w_VD, targets_BT = arrays

    def loss(x_BTD, w_VD):
        return jnp.sum(token_log_probs(x_BTD, w_VD, targets_BT, chunk_vocab=chunk_vocab).logp_BT)
    shapes = list(shapes_in(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x_BTD, w_VD).jaxpr))
    assert max(np.prod(shape) for shape in shapes if BATCH * LENGTH in shape and WIDTH not in shape) == largest


def shapes_in(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, 'eqns')):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from shapes_in(inner)


def test_logits_are_float32_and_weight_gradients_are_summed_in_the_weights_dtype(arrays):
    x_BTD, w_VD, targets_BT = arrays
    found = token_log_probs(x_BTD.astype(jnp.bfloat16), w_VD, targets_BT, chunk_vocab=3)
    assert {value.dtype for value in found} == {jnp.dtype('float32')}
    rounded = x_BTD.astype(jnp.bfloat16).astype(jnp.float32), w_VD.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(found.logp_BT, oracle(*rounded, targets_BT, 1.0)[0], rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda w: jnp.sum(token_log_probs(x_BTD.astype(jnp.bfloat16), w, targets_BT,
                                                          chunk_vocab=3).logp_BT))(w_VD)
    assert gradient.dtype == jnp.float32


@pytest.mark.parametrize('chunk_vocab', (3, VOCAB))
def test_softcap_comes_before_the_temperature(arrays, chunk_vocab):
    x_BTD, w_VD, targets_BT = arrays
    found = token_log_probs(*arrays, chunk_vocab=chunk_vocab, temperature=0.7, softcap=2.0)
    capped_BTV = 2.0 * jnp.tanh(jnp.einsum('BTD,VD->BTV', x_BTD, w_VD) / 2.0)
    logp_BTV = jax.nn.log_softmax(capped_BTV / 0.7)
    np.testing.assert_allclose(found.logp_BT, jnp.take_along_axis(logp_BTV, targets_BT[:, :, None], 2)[..., 0],
                               rtol=1e-5, atol=1e-5)

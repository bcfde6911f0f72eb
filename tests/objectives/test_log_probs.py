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


@pytest.mark.parametrize('chunk_tokens', (1, 3, 4, 7, 100))
def test_any_chunk_gives_log_softmax_and_its_gradient(arrays, chunk_tokens):
    x_BTD, w_VD, targets_BT = arrays
    found = token_log_probs(*arrays, chunk_tokens=chunk_tokens, temperature=0.7)
    for value, expected in zip(found, oracle(*arrays, 0.7)):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)

    def scalar(function):  # log-probability and log-sum-exp, weighted unevenly; the entropy gives no gradient
        def of(x_BTD, w_VD):
            logp_BT, logsumexp_BT, entropy_BT = function(x_BTD, w_VD)
            weight_BT = jnp.arange(1.0, 1 + BATCH * LENGTH).reshape(BATCH, LENGTH)
            entropy_BT = jax.lax.stop_gradient(entropy_BT)
            return jnp.sum(weight_BT * logp_BT + jnp.square(logsumexp_BT) + entropy_BT)
        return jax.grad(of, argnums=(0, 1))(x_BTD, w_VD)
    found = scalar(lambda x, w: token_log_probs(x, w, targets_BT, chunk_tokens=chunk_tokens, temperature=0.7))
    expected = scalar(lambda x, w: oracle(x, w, targets_BT, 0.7))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize('chunk_tokens, largest', ((2, BATCH * 2 * VOCAB), (LENGTH, BATCH * LENGTH * VOCAB)))
def test_logits_of_more_than_one_chunk_never_live(arrays, chunk_tokens, largest):
    x_BTD, w_VD, targets_BT = arrays

    def loss(x_BTD, w_VD):
        return jnp.sum(token_log_probs(x_BTD, w_VD, targets_BT, chunk_tokens=chunk_tokens).logp_BT)
    shapes = list(shapes_in(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x_BTD, w_VD).jaxpr))
    assert max(np.prod(shape) for shape in shapes if VOCAB in shape and WIDTH not in shape) == largest


def shapes_in(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, 'eqns')):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from shapes_in(inner)


def test_logits_are_float32_and_weight_gradients_are_summed_in_the_weights_dtype(arrays):
    x_BTD, w_VD, targets_BT = arrays
    found = token_log_probs(x_BTD.astype(jnp.bfloat16), w_VD, targets_BT, chunk_tokens=3)
    assert {value.dtype for value in found} == {jnp.dtype('float32')}
    rounded = x_BTD.astype(jnp.bfloat16).astype(jnp.float32), w_VD.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(found.logp_BT, oracle(*rounded, targets_BT, 1.0)[0], rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda w: jnp.sum(token_log_probs(x_BTD.astype(jnp.bfloat16), w, targets_BT,
                                                          chunk_tokens=3).logp_BT))(w_VD)
    assert gradient.dtype == jnp.float32

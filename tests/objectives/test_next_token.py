"""Next-token loss against optax, and its z-loss by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llm.objectives.log_probs import token_log_probs
from llm.objectives.loss import total
from llm.objectives.next_token import next_token, per_chat

KEYS = jax.random.split(jax.random.key(0), 3)
X_BTD, W_VD = jax.random.normal(KEYS[0], (2, 5, 4)), jax.random.normal(KEYS[1], (9, 4))
TARGETS_BT = jax.random.randint(KEYS[2], (2, 5), 0, 9)
MASK_BT = jnp.array([[1.0, 1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0, 0.0]])


def loss_of(x_BTD, w_VD=W_VD, z_loss=0.0):
    return next_token(token_log_probs(x_BTD, w_VD, TARGETS_BT, chunk_vocab=2), MASK_BT, z_loss=z_loss)


def test_mean_over_the_mask_of_optax_cross_entropy_and_z_loss():
    logits_BTV = jnp.einsum('BTD,VD->BTV', X_BTD, W_VD)
    entropy_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, TARGETS_BT)
    z_BT = jnp.square(jax.nn.logsumexp(logits_BTV, axis=2))
    expected = np.average(entropy_BT, weights=MASK_BT)
    np.testing.assert_allclose(total(loss_of(X_BTD)), expected, rtol=1e-5)
    np.testing.assert_allclose(total(loss_of(X_BTD, z_loss=0.1)),
                               expected + 0.1 * np.average(z_BT, weights=MASK_BT), rtol=1e-5)
    assert set(loss_of(X_BTD).terms) == {'next_token'}


def test_a_model_that_knows_nothing_pays_log_vocabulary():
    np.testing.assert_allclose(total(loss_of(X_BTD, 0 * W_VD)), np.log(9), rtol=1e-6)


def test_masked_tokens_give_no_gradient():
    gradient_BTD = jax.grad(lambda x_BTD: total(loss_of(x_BTD, z_loss=0.1)))(X_BTD)
    np.testing.assert_array_equal(jnp.any(gradient_BTD != 0, axis=2), MASK_BT > 0)


def test_chats_weigh_alike_however_long_their_answers():
    mask_BT = jnp.array([[0.0, 1, 1, 1, 0, 1, 0, 0], [0, 0, 1, 0, 1, 1, 0, 0]])
    segments_BT = jnp.array([[1, 1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 2, 2, 2, 2, 0]])
    expected_BT = [[0, 1 / 3, 1 / 3, 1 / 3, 0, 1, 0, 0], [0, 0, 1, 0, 0.5, 0.5, 0, 0]]
    np.testing.assert_allclose(per_chat(mask_BT, segments_BT), expected_BT, rtol=1e-6)

"""Rows split over devices along their length, and the attention kernel: the same loss, gradients and answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from llm.objectives.loss import total
from llm.rollout.generate import make_generate
from llm.sharding import AxisRules, batch_sharding, make_mesh, shardings_of
from llm.stages.pretrain import language_loss
from tests import tiny
from tests.model import models

LENGTH = 256  # two blocks of the kernel
MESHES = ((1, 1, 1, 2), (1, 2, 2, 2), (2, 1, 1, 4))  # data, fsdp, tensor, context


def packed_rows(length: int) -> dict[str, jax.Array]:
    """Rows of three pieces each, cut at other places in every row; positions begin anew with each piece."""
    random = np.random.default_rng(0)
    cuts = np.sort(random.integers(1, length, (4, 2)))
    segments_BT = 1 + sum((np.arange(length)[None] >= cuts[:, i:i + 1]).astype(np.int32) for i in range(2))
    starts_B3 = np.concatenate([np.zeros((4, 1), int), cuts], 1)
    positions_BT = np.arange(length)[None] - np.take_along_axis(starts_B3, segments_BT - 1, 1)
    draw = lambda: random.integers(0, tiny.MODEL.vocab_size, (4, length), np.int32)
    return dict(tokens_BT=draw(), targets_BT=draw(), positions_BT=positions_BT.astype(np.int32),
                segments_BT=segments_BT, mask_BT=(random.random((4, length)) < 0.8).astype(np.float32))


@functools.cache
def value_and_grad(mesh: tuple[int, ...], length: int, attention: str = 'einsum', chunk: int = 8192):
    """Of the pretraining loss, with the z term."""
    execution = tiny.execution(mesh, attention=attention, scan_unroll=1, logits_chunk_vocab=chunk)
    model, rules = Transformer(models.LLAMA, execution), AxisRules.from_config(execution.rules)
    placed = make_mesh(execution.mesh)
    boxed = jax.eval_shape(lambda key: model.init(key, *[jnp.zeros((1, 2), jnp.int32)] * 2, MaskSpec())['params'],
                           jax.random.key(0))
    with jax.set_mesh(placed):
        params = jax.device_put(models.init(model), shardings_of(boxed, placed, rules))
        batch = jax.device_put(packed_rows(length), batch_sharding(placed, rules))
        found = jax.jit(jax.value_and_grad(
            lambda params: total(language_loss(model, params, None, batch, None, z_loss=1e-2))))(params)
    return jax.tree.map(np.asarray, found)


def same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()),
                 found[1], expected[1])


@pytest.mark.parametrize('mesh', MESHES)
def test_a_split_length_changes_neither_loss_nor_gradients(mesh):
    same(value_and_grad(mesh, 32), value_and_grad((1, 1, 1, 1), 32))
    same(value_and_grad(mesh, 32, chunk=100), value_and_grad((1, 1, 1, 1), 32))  # does not divide 512


@pytest.mark.parametrize('mesh', ((1, 1, 1, 1), (1, 2, 2, 2)))
def test_the_kernel_gives_the_loss_and_gradients_of_einsum(mesh):
    same(value_and_grad(mesh, LENGTH, 'splash'), value_and_grad((1, 1, 1, 1), LENGTH))


def test_answers_do_not_depend_on_the_split_of_the_length():
    def answers(mesh: tuple[int, ...], width: int):
        execution = tiny.execution(mesh, scan_unroll=1)
        model = Transformer(models.LLAMA, execution)
        generate = make_generate(model, max_new_tokens=5, temperature=1.0, eos_id=1, pad_id=0)
        tokens_BT, length_B = models.tokens(4, width), jnp.array([width, 2, 5, 3])
        with jax.set_mesh(make_mesh(execution.mesh)):
            return jax.device_get(jax.jit(generate)(models.init(model), tokens_BT, length_B, jnp.arange(4),
                                                    jax.random.key(0)))
    for width in (8, 7):  # one that two devices divide, and one that they do not
        expected, found = answers((1, 1, 1, 1), width), answers((1, 1, 1, 2), width)
        assert (found.tokens_BT == expected.tokens_BT).all()
        np.testing.assert_allclose(found.logp_BT, expected.logp_BT, atol=1e-4)

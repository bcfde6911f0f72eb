"""Encoders of text and of images: what they see, what their tables mean, what each head reads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.model import heads
from llm.model.attention import MaskSpec
from llm.model.layers import ImageEmbed
from llm.model.transformer import Transformer
from tests import tiny
from tests.model import models

BOTH_WAYS = MaskSpec(causal=False)


@functools.cache
def made(head: str, kind: str = 'encoder'):
    model = Transformer({'encoder': models.BERT, 'vision': models.VIT}[kind], tiny.execution(scan_unroll=1), head=head)
    return model, models.init(model)


def run(head: str, tokens_BT, mask: MaskSpec = BOTH_WAYS, **options):
    model, params = made(head)

    def apply(params, tokens_BT, mask, options):
        return model.apply({'params': params}, tokens_BT, models.positions(tokens_BT), mask, **options)
    return jax.jit(apply)(params, tokens_BT, mask, options)


def test_every_output_depends_on_every_token():
    model, params = made('none')
    tokens_BT = models.tokens(1, 6)

    def output(x_BTD):
        x_BTD = model.apply({'params': params}, x_BTD, models.positions(tokens_BT), BOTH_WAYS, method='trunk')[0]
        return jnp.square(x_BTD[:, 2]).sum()
    x_BTD = model.apply({'params': params}, tokens_BT, models.positions(tokens_BT), method='embed')
    assert (jnp.abs(jax.jit(jax.grad(output))(x_BTD)).max((0, 2)) > 1e-4).all()


def test_padding_changes_nothing():
    tokens_BT = models.tokens(1, 6)
    alone = run('none', tokens_BT[:, :4])
    padded = run('none', tokens_BT, MaskSpec(causal=False, segments_BT=jnp.array([[1, 1, 1, 1, 0, 0]])))
    np.testing.assert_allclose(padded[:, :4], alone, rtol=1e-5, atol=1e-5)


def test_a_causal_mask_is_no_encoders():
    with pytest.raises(AssertionError, match="kind 'encoder'"):
        run('none', models.tokens(1, 4), MaskSpec())


def test_embeddings_are_the_normed_sum_of_three_tables():
    """Position p is row p + offset of its table; without types every token is of type 0."""
    model, params = made('none')
    tokens_BT, types_BT = models.tokens(2, 5), jnp.array([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]])
    table = params['embed']
    assert table['positions'].shape == (32 + 2, 64) and table['token_types'].shape == (2, 64)
    found = model.apply({'params': params}, tokens_BT, models.positions(tokens_BT), types_BT, method='embed')
    total = table['tokens'][tokens_BT] + table['positions'][2:7][None] + table['token_types'][types_BT]
    total = (total - total.mean(-1, keepdims=True)) / jnp.sqrt(total.var(-1, keepdims=True) + 1e-5)
    expected = total * table['norm']['scale'][None, None] + table['norm']['bias'][None, None]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    default = model.apply({'params': params}, tokens_BT, models.positions(tokens_BT), method='embed')
    zeros = model.apply({'params': params}, tokens_BT, models.positions(tokens_BT), 0 * types_BT, method='embed')
    assert (default == zeros).all() and not np.allclose(default, found, atol=1e-2)


def test_post_norm_ends_in_a_norm_and_has_no_other():
    model, params = made('none')
    assert set(params) == {'embed', 'layers'}
    plain = jax.tree.map(lambda x: x, params)
    plain['layers']['mlp_norm'] = {'scale': jnp.ones((2, 64)), 'bias': jnp.zeros((2, 64))}
    tokens_BT = models.tokens(1, 5)
    x_BTD = jax.jit(lambda: model.apply({'params': plain}, tokens_BT, models.positions(tokens_BT), BOTH_WAYS))()
    np.testing.assert_allclose(x_BTD.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(x_BTD.std(-1), 1, rtol=1e-3)


TRUNK = {'embed', 'layers'}
POOLED = TRUNK | {'pooler'}


@pytest.mark.parametrize('head, shape, groups', [
    ('none', (2, 5, 64), TRUNK), ('pooled', (2, 64), POOLED), ('masked', (2, 5, 512), TRUNK | {'masked_head'}),
    ('classes', (2, 3), POOLED | {'classes_head'}), ('labels', (2, 5, 3), TRUNK | {'labels_head'}),
    ('span', (2, 5, 2), TRUNK | {'span_head'}), ('next_sentence', (2, 2), POOLED | {'next_sentence_head'}),
    ('pretraining', ((2, 5, 512), (2, 2)), POOLED | {'masked_head', 'next_sentence_head'})])
def test_heads_have_their_own_parameters_and_give_float32(head, shape, groups):
    assert set(made(head)[1]) == groups
    found = run(head, models.tokens(2, 5))
    assert jax.tree.map(lambda x: x.shape, found) == shape
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found))


def test_every_head_of_an_encoder_is_tested():
    mark = test_heads_have_their_own_parameters_and_give_float32.pytestmark[0]
    assert {case[0] for case in mark.args[1]} == set(heads.HEADS['encoder'])


@pytest.mark.parametrize('head, group', [('classes', 'classes_head'), ('next_sentence', 'next_sentence_head')])
def test_classes_are_read_from_the_pooled_first_token(head, group):
    params, tokens_BT = made(head)[1], models.tokens(2, 5)
    x_BD = jax.jit(lambda: made(head)[0].apply({'params': params}, tokens_BT, models.positions(tokens_BT), BOTH_WAYS,
                                               method='hidden'))()[:, 0]
    pooled_BD = jnp.tanh(x_BD @ params['pooler']['w'] + params['pooler']['bias'][None])
    expected = pooled_BD @ params[group]['w'] + params[group]['bias'][None]
    np.testing.assert_allclose(run(head, tokens_BT), expected, rtol=1e-4, atol=1e-5)


def test_masked_logits_are_the_token_table_after_a_transform():
    params, tokens_BT = made('masked')[1], models.tokens(2, 5)
    part = params['masked_head']
    x_BTD = jax.jit(lambda: made('masked')[0].apply({'params': params}, tokens_BT, models.positions(tokens_BT),
                                                    BOTH_WAYS, method='hidden'))()
    h_BTD = x_BTD @ part['dense']['w'] + part['dense']['bias'][None, None]
    h_BTD = h_BTD * jax.scipy.stats.norm.cdf(h_BTD)
    h_BTD = (h_BTD - h_BTD.mean(-1, keepdims=True)) / jnp.sqrt(h_BTD.var(-1, keepdims=True) + 1e-5)
    h_BTD = h_BTD * part['norm']['scale'][None, None] + part['norm']['bias'][None, None]
    expected = h_BTD @ params['embed']['tokens'].T + part['bias'][None, None]
    np.testing.assert_allclose(run('masked', tokens_BT), expected, rtol=1e-4, atol=1e-3)


def test_patches_are_a_convolution_that_never_overlaps():
    embed = ImageEmbed(models.VIT, tiny.execution())
    params, image_BYXC = made('none', 'vision')[1]['embed'], jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
    positions_BT = jnp.broadcast_to(jnp.arange(10), (2, 10))
    found = embed.apply({'params': params}, image_BYXC, positions_BT)
    patches = jax.lax.conv_general_dilated(image_BYXC, params['patches']['w'], (4, 4), 'VALID',
                                           dimension_numbers=('NHWC', 'HWIO', 'NHWC')).reshape(2, 9, 64)
    expected = patches + params['patches']['bias'][None, None] + params['positions'][None, 1:]
    np.testing.assert_allclose(found[:, 1:], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[:, 0], jnp.broadcast_to(params['class_token'] + params['positions'][:1], (2, 64)),
                               rtol=1e-6)


@pytest.mark.parametrize('head, shape, groups', [
    ('none', (2, 10, 64), set()), ('classes', (2, 6), {'classes_head'}), ('pooled', (2, 64), {'pooler'})])
def test_images_are_classified_by_the_class_token(head, shape, groups):
    model, params = made(head, 'vision')
    assert set(params) == {'embed', 'layers', 'final_norm'} | groups
    image_BYXC = jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
    positions_BT = jnp.broadcast_to(jnp.arange(10), (2, 10))
    found = jax.jit(lambda: model.apply({'params': params}, image_BYXC, positions_BT, BOTH_WAYS))()
    assert found.shape == shape
    if head == 'classes':
        x_BTD = jax.jit(lambda: model.apply({'params': params}, image_BYXC, positions_BT, BOTH_WAYS, method='hidden'))()
        expected = x_BTD[:, 0] @ params['classes_head']['w'] + params['classes_head']['bias'][None]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_head_of_another_kind_is_refused():
    with pytest.raises(AssertionError, match="'decoder', 'masked'"):
        models.init(Transformer(models.LLAMA, tiny.execution(), head='masked'))

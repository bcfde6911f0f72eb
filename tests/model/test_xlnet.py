"""XLNet's two streams: who sees whom, distances, memory, heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.model import heads
from llm.model.attention import MaskSpec
from llm.model.xlnet import XLNet, shift
from tests import tiny
from tests.model import models

BOTH_WAYS = MaskSpec(causal=False)
ORDER = np.array([3, 0, 4, 1, 5, 2])  # when each place is predicted
PERM_MASK_BTS = jnp.asarray(ORDER[None, :, None] <= ORDER[None, None, :], jnp.int32)


@functools.cache
def made(head: str = 'token'):
    model = XLNet(models.XLNET if head == 'token' else tiny.model(**{
        **vars(models.XLNET), 'num_classes': 3}), tiny.execution(scan_unroll=1), head=head)
    return model, models.init(model)


def test_a_shifted_row_has_each_distance_under_its_key():
    """Column c of a row is distance S - c; query t stands at M + t, key s at s."""
    queries, memory = 4, 3
    keys = queries + memory
    distance_C = np.arange(keys, -queries, -1)
    shifted = shift(jnp.broadcast_to(distance_C, (1, 1, queries, len(distance_C))), keys)
    expected = memory + np.arange(queries)[:, None] - np.arange(keys)[None]
    assert (shifted[0, 0] == expected).all()


def reach(place: int, method: str) -> np.ndarray:
    """How much each token's embedding moves what is computed at a place, in either stream."""
    model, params = made()
    tokens_BT = jnp.arange(6)[None]  # all different: a row of the table is one place

    def output(table):
        tree = {**params, 'embed': {'tokens': table}}
        targets = jnp.array([[place]]) if method == 'query' else None
        x_BTD, _ = model.apply({'params': tree}, tokens_BT, BOTH_WAYS, perm_mask_BTS=PERM_MASK_BTS, targets_BP=targets,
                               method='hidden')
        return jnp.square(x_BTD[:, 0 if method == 'query' else place]).sum()
    gradient = jax.jit(jax.grad(output))(params['embed']['tokens'])
    return np.abs(gradient).max(1)[:6]


@pytest.mark.parametrize('place', [0, 3])
def test_streams_see_what_was_predicted_before_and_content_itself(place):
    before = ORDER < ORDER[place]
    assert (reach(place, 'query')[before] > 1e-5).all() and (reach(place, 'query')[~before] == 0).all()
    with_itself = ORDER <= ORDER[place]
    assert (reach(place, 'content')[with_itself] > 1e-5).all() and (reach(place, 'content')[~with_itself] == 0).all()


@pytest.mark.parametrize('types', [False, True])
def test_memory_is_what_an_earlier_segment_was(types):
    """Where no token sees the later segment, reading at once is reading the segments in turn."""
    model, params = made()
    tokens_BT = models.tokens(2, 7)
    types_BT = jnp.array([[0, 0, 0, 0, 1, 0, 1]] * 2) if types else None  # memory is read as type 0
    later = jnp.arange(7) >= 4
    perm_mask_BTS = (later[None, None, :] & ~later[None, :, None]).astype(jnp.int32)
    targets_BP = jnp.array([[1, 2], [0, 2]])

    def run(tokens_BT, **options):
        return model.apply({'params': params}, tokens_BT, BOTH_WAYS, method='hidden', **options)

    def part(kind: slice):
        return None if types_BT is None else types_BT[:, kind]
    query_mask = perm_mask_BTS | jnp.eye(7, dtype=jnp.int32)[None]
    whole, _ = run(tokens_BT, types_BT=types_BT, perm_mask_BTS=query_mask, targets_BP=targets_BP + 4)
    _, memory_LBMD = run(tokens_BT[:, :4], types_BT=part(slice(4)))
    turn, kept = run(tokens_BT[:, 4:], types_BT=part(slice(4, 7)), perm_mask_BTS=jnp.eye(3, dtype=jnp.int32)[None],
                     targets_BP=targets_BP, memory_LBMD=memory_LBMD)
    assert memory_LBMD.shape == (2, 2, 4, 64) and kept.shape == (2, 2, 3, 64)
    np.testing.assert_allclose(turn, whole, rtol=1e-4, atol=1e-5)


def test_no_gradient_flows_into_what_is_remembered():
    model, params = made()
    gradient = jax.grad(lambda params: jnp.square(model.apply(
        {'params': params}, models.tokens(1, 4), BOTH_WAYS, method='hidden')[1]).sum())(params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_only_whether_types_are_the_same_counts():
    model, params = made()
    tokens_BT, types_BT = models.tokens(1, 5), jnp.array([[0, 0, 1, 1, 0]])

    def run(types_BT):
        return model.apply({'params': params}, tokens_BT, BOTH_WAYS, types_BT=types_BT)
    np.testing.assert_allclose(run(types_BT), run(1 - types_BT), rtol=1e-5, atol=1e-5)
    assert not np.allclose(run(types_BT), run(0 * types_BT), atol=1e-2)
    # One number for every key: the softmax does not see it.
    np.testing.assert_allclose(run(None), run(0 * types_BT), rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing():
    model, params = made()
    tokens_BT = models.tokens(1, 6)
    mask = MaskSpec(causal=False, segments_BT=jnp.array([[1, 1, 1, 1, 0, 0]]))
    padded = model.apply({'params': params}, tokens_BT, mask, targets_BP=jnp.array([[2]]))
    alone = model.apply({'params': params}, tokens_BT[:, :4], BOTH_WAYS, targets_BP=jnp.array([[2]]))
    np.testing.assert_allclose(padded, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('head, shape, groups', [
    ('token', (2, 5, 512), {'token_head'}), ('none', (2, 5, 64), set()), ('pooled', (2, 64), {'pooler'}),
    ('classes', (2, 3), {'pooler', 'classes_head'}), ('labels', (2, 5, 3), {'labels_head'}),
    ('span', (2, 5, 2), {'span_head'})])
def test_heads_have_their_own_parameters_and_give_float32(head, shape, groups):
    model, params = made(head)
    assert set(params) == {'embed', 'layers', 'query_token'} | groups
    found = jax.jit(lambda: model.apply({'params': params}, models.tokens(2, 5), BOTH_WAYS))()
    assert found.shape == shape and found.dtype == jnp.float32


def test_every_head_is_tested():
    mark = test_heads_have_their_own_parameters_and_give_float32.pytestmark[0]
    assert {case[0] for case in mark.args[1]} == set(heads.HEADS['two_stream'])

"""Schedules, which leaves decay, clipping, and one optimizer for each part of the parameters."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm import optim
from llm.config import OptimConfig
from llm.errors import UserError
from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from llm.run import initializer
from llm.sharding import AxisRules, make_mesh
from llm.train_state import abstract_params
from tests import tiny

CONFIG = OptimConfig(learning_rate=0.1, warmup_steps=4, schedule='cosine', schedule_steps=20,
                     decay_fraction=0.2, final_fraction=0.1, weight_decay=0.5, b1=0.9, b2=0.95, eps=1e-8,
                     clip_norm=1.0)
GPT2 = {'norm': 'layernorm', 'use_bias': True, 'positions': 'learned', 'mlp': 'gelu'}


def changed(**changes):
    return dataclasses.replace(CONFIG, **changes)


def rates(config, steps=26, **how):
    schedule = jax.jit(jax.vmap(optim.schedule(config, **how)))
    return np.asarray(schedule(jnp.arange(steps)))


@pytest.mark.parametrize('name', ('cosine', 'wsd', 'constant'))
def test_warm_up_rises_from_the_first_update_to_the_full_rate(name):
    warm_up = rates(changed(schedule=name))[:5]
    assert warm_up[0] == pytest.approx(0.1 / 4) and warm_up[4] == pytest.approx(0.1)
    np.testing.assert_allclose(np.diff(warm_up), np.diff(warm_up)[0], rtol=1e-4)


def test_cosine_passes_the_middle_half_way_and_ends_at_the_final_fraction():
    found = rates(CONFIG)
    np.testing.assert_allclose(found[[12, 20, 25]], [0.055, 0.01, 0.01], rtol=1e-5)
    assert np.all(np.diff(found[4:21]) < 0)


def test_wsd_is_flat_until_its_last_fifth_and_then_falls_linearly():
    found = rates(changed(schedule='wsd'))
    np.testing.assert_allclose(found[4:17], 0.1, rtol=1e-6)
    np.testing.assert_allclose(found[16:21], [0.1, 0.0775, 0.055, 0.0325, 0.01], rtol=1e-5)
    np.testing.assert_allclose(found[20:], 0.01, rtol=1e-5)


def test_constant_has_no_end():
    np.testing.assert_allclose(rates(changed(schedule='constant', schedule_steps=1))[4:], 0.1, rtol=1e-6)


def test_no_warm_up_starts_at_the_full_rate():
    assert rates(changed(warmup_steps=0))[0] == pytest.approx(0.1)


def test_frozen_steps_shift_the_schedule():
    np.testing.assert_array_equal(rates(CONFIG, frozen_steps=3)[:3], 0)
    np.testing.assert_allclose(rates(CONFIG, frozen_steps=3)[3:], rates(CONFIG)[:-3], rtol=1e-6)


@pytest.mark.parametrize('changes', ({'warmup_steps': 20}, {'schedule': 'wsd', 'warmup_steps': 17}))
def test_a_schedule_too_short_for_its_warm_up_is_refused_in_one_line(changes):
    with pytest.raises(UserError, match=r'schedule_steps=20 is less than optim.warmup_steps=\d+ plus \d+'):
        optim.schedule(changed(**changes))


def test_clipping_to_nothing_is_refused():
    with pytest.raises(UserError, match='optim.clip_norm=0'):
        optim.make_optimizer(changed(clip_norm=0.0))


@pytest.mark.parametrize('changes, head', ((GPT2, 'token'), ({}, 'scalar')))
def test_matrices_and_tables_decay_norms_and_biases_do_not(changes, head):
    model = Transformer(tiny.model(**changes), tiny.execution(), head=head)
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    execution = tiny.execution()
    params = abstract_params(lambda key: model.init(key, tokens_BT, tokens_BT, MaskSpec())['params'],
                             make_mesh(execution.mesh), AxisRules.from_config(execution.rules))
    decayed = {jax.tree_util.keystr(path, simple=True, separator='/'): mask
               for path, mask in jax.tree_util.tree_leaves_with_path(optim.decay_mask(params))}
    kept = {name for name, mask in decayed.items() if not mask}
    assert kept == {name for name in decayed if 'norm' in name or name.endswith('bias')}
    assert {'embed/tokens', 'layers/mlp/down/w', 'layers/attention/out/w'} <= set(decayed) - kept
    assert 'layers/attention_norm/scale' in kept


def one_update(tx, params, grads):
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    return optax.apply_updates(params, updates)


@pytest.mark.parametrize('name', ('adamw', 'muon'))
def test_decay_shrinks_by_rate_times_decay_and_spares_biases(name):
    params = {'w': jnp.full((2, 2), 3.0), 'bias': jnp.full(2, 3.0)}
    found = one_update(optim.make_optimizer(changed(name=name)), params, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_allclose(found['w'], 3.0 * (1 - 0.1 / 4 * 0.5), rtol=1e-6)
    np.testing.assert_array_equal(found['bias'], 3.0)


def test_clipping_takes_the_size_off_a_gradient_above_the_norm_only():
    # A huge eps makes Adam's first update proportional to the clipped gradient.
    tx = optim.make_optimizer(changed(eps=1e6, weight_decay=0.0))
    params = {'w': jnp.zeros(2)}

    def moved(size):
        return one_update(tx, params, {'w': size * jnp.array([0.6, 0.8])})['w']
    np.testing.assert_allclose(moved(100.0), moved(1.0), rtol=1e-5)
    np.testing.assert_allclose(moved(0.5), 0.5 * moved(1.0), rtol=1e-5)


def test_each_part_has_its_own_rate_freeze_and_clipping():
    tx = optim.by_top_key({'policy': optim.make_optimizer(CONFIG, frozen_steps=2),
                           'value': optim.make_optimizer(changed(learning_rate=0.2))})
    params = {'policy': {'w': jnp.ones(2)}, 'value': {'w': jnp.ones(2)}}
    state, update, moved = tx.init(params), jax.jit(tx.update), []
    # Clipped together, the policy's huge gradient would leave nothing of the value's.
    grads = {'policy': {'w': jnp.full(2, 1e15)}, 'value': {'w': jnp.ones(2)}}
    for _ in range(3):
        updates, state = update(grads, state, params)
        moved.append([float(jnp.abs(updates[key]['w']).max()) for key in ('policy', 'value')])
    assert [policy > 0 for policy, _ in moved] == [False, False, True]
    alone = optim.make_optimizer(changed(learning_rate=0.2))
    expected, _ = alone.update({'w': jnp.ones(2)}, alone.init(params['value']), params['value'])
    np.testing.assert_allclose(moved[0][1], jnp.abs(expected['w']).max(), rtol=1e-6)


@pytest.mark.parametrize('changes', (GPT2, {}), ids=('gpt2', 'llama'))
def test_muon_makes_hidden_matrices_orthogonal_and_leaves_the_rest_to_adam(changes):
    config = changed(name='muon', weight_decay=0.0, clip_norm=1e9, warmup_steps=0)
    params = nn.unbox(initializer(Transformer(tiny.model(**changes), tiny.execution()))(jax.random.key(0)))
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)

    def first_update(tx):
        return jax.tree_util.tree_leaves_with_path(tx.update(grads, tx.init(params), params)[0])
    orthogonal = 0
    rest = optax.nadamw(0.1, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=0.0)
    for (path, muon), (_, adamw) in zip(first_update(optim.make_optimizer(config)), first_update(rest)):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        if not name.startswith('layers/') or not name.endswith('/w'):
            np.testing.assert_allclose(muon, adamw, rtol=1e-4, err_msg=name)
            continue
        orthogonal += 1
        rows = tiny.MODEL.model_dim if name != 'layers/mlp/down/w' else tiny.MODEL.mlp_dim
        for matrix in np.asarray(muon).reshape(muon.shape[0], rows, -1):
            singular = np.linalg.svd(matrix, compute_uv=False)
            # Five Newton-Schulz steps leave singular values in about [.7, 1.2] (of one scale), and smallest ones lower.
            assert singular.max() / np.median(singular) < 1.7
            assert np.sqrt(np.mean(np.square(matrix))) == pytest.approx(0.1 * 0.2, rel=0.3)
    assert orthogonal == len(params['layers']['attention']) + len(params['layers']['mlp'])

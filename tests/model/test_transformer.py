"""Properties of the whole model, of both kinds: GPT-2's parts and Llama's."""

import functools

from flax import errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from llm.sharding import AxisRules, batch_sharding, make_mesh, shardings_of
from tests import tiny
from tests.model import models

both_kinds = pytest.mark.parametrize('config', models.KINDS.values(), ids=models.KINDS)


def apply(model, params, tokens_BT, **options):
    def run(params, tokens_BT):
        return model.apply({'params': params}, tokens_BT, models.positions(tokens_BT), MaskSpec(), **options)
    return jax.jit(run)(params, tokens_BT)


@both_kinds
def test_no_output_depends_on_a_later_token(config):
    model = Transformer(config, tiny.execution())
    params, tokens_BT, now = models.init(model), models.tokens(2, 9), 4

    def output(x_BTD):
        x_BTD = model.apply({'params': params}, x_BTD, models.positions(tokens_BT), MaskSpec(), method='trunk')[0]
        return jnp.square(x_BTD[:, now]).sum()
    x_BTD = model.apply({'params': params}, tokens_BT, models.positions(tokens_BT), method='embed')
    reach_T = jnp.abs(jax.jit(jax.grad(output))(x_BTD)).max((0, 2))
    assert (reach_T[now + 1:] == 0).all() and (reach_T[:now + 1] > 1e-4).all()


@both_kinds
def test_packed_pieces_are_computed_as_if_alone(config):
    model = Transformer(config, tiny.execution())
    params, tokens_BT = models.init(model), models.tokens(1, 12)
    cuts = [(0, 5), (5, 11), (11, 12)]
    segments_BT = jnp.concatenate([jnp.full((1, stop - start), i + 1) for i, (start, stop) in enumerate(cuts)], 1)
    positions_BT = jnp.concatenate([jnp.arange(stop - start)[None] for start, stop in cuts], 1)
    packed = jax.jit(lambda: model.apply({'params': params}, tokens_BT, positions_BT,
                                         MaskSpec(segments_BT=segments_BT)))()
    pieces_BT = jnp.concatenate([jnp.pad(tokens_BT[:, start:stop], ((0, 0), (0, 12 + start - stop)))
                                 for start, stop in cuts])  # what is padded comes later, and is not seen
    alone = apply(model, params, pieces_BT)
    for row, (start, stop) in enumerate(cuts):
        np.testing.assert_allclose(packed[0, start:stop], alone[row, :stop - start], rtol=1e-4, atol=1e-4)


@functools.cache
def value_and_grad(remat: str, unroll: int, dropout: float):
    execution = tiny.execution(remat=remat, scan_unroll=unroll)
    model, tokens_BT = Transformer(models.LLAMA, execution, dropout=dropout), models.tokens(2, 8)

    def loss(params):
        logits_BTV = model.apply({'params': params}, tokens_BT, models.positions(tokens_BT), MaskSpec(),
                                 deterministic=not dropout, rngs={'dropout': jax.random.key(3)})
        return jnp.square(logits_BTV).mean()
    return jax.jit(jax.value_and_grad(loss))(models.init(model))


@pytest.mark.parametrize('remat, unroll, dropout', [
    ('none', 1, 0.0), ('minimal', 0, 0.0), ('qkv', 1, 0.0), ('full', 1, 0.0), ('offload', 1, 0.0), ('full', 0, 0.2)])
def test_remat_and_unroll_change_no_number(remat, unroll, dropout):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
                 value_and_grad(remat, unroll, dropout), value_and_grad('none', 0, dropout))


def backward(remat: str, unroll: int) -> jax.stages.Traced:
    model, tokens_BT = Transformer(models.LLAMA, tiny.execution(remat=remat, scan_unroll=unroll)), models.tokens(2, 8)
    step = jax.jit(jax.grad(lambda params: apply(model, params, tokens_BT).sum()))
    return step.trace(models.init(model))


def test_remat_recomputes_the_more_the_less_is_kept():
    """The backward pass holds more matmuls, also with the layers unrolled, where they could be merged again."""
    def matmuls(remat: str) -> int:
        compiled = backward(remat, 0).lower().compile().as_text()
        return compiled.count(' dot(') + compiled.count('__onednn$matmul')
    assert matmuls('none') < matmuls('minimal') < matmuls('qkv') < matmuls('full')


def test_only_offload_puts_layer_inputs_into_host_memory():
    saved = 'f32<host>[2,2,8,64]'  # [L, B, T, D]
    assert saved in str(backward('offload', 1).jaxpr) and saved not in str(backward('full', 1).jaxpr)


@both_kinds
def test_logits_do_not_depend_on_the_mesh(config):
    model = Transformer(config, tiny.execution())
    params, tokens_BT = models.init(model), models.tokens(8, 8)
    expected = apply(model, params, tokens_BT)
    rules = AxisRules.from_config(tiny.execution().rules)
    boxed = jax.eval_shape(lambda key: model.init(key, tokens_BT, tokens_BT, MaskSpec())['params'], jax.random.key(0))
    for shape in tiny.MESHES:
        mesh = make_mesh(tiny.execution(shape).mesh)
        with jax.set_mesh(mesh):
            sharded = jax.device_put(params, shardings_of(boxed, mesh, rules))
            rows = jax.device_put(tokens_BT, batch_sharding(mesh, rules))
            got = jax.jit(lambda params, tokens_BT: apply(model, params, tokens_BT))(sharded, rows)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_dropout_only_when_asked():
    model = Transformer(models.LLAMA, tiny.execution(), dropout=0.3)
    params, tokens_BT = models.init(model), models.tokens(2, 6)
    plain = apply(Transformer(models.LLAMA, tiny.execution()), params, tokens_BT)
    assert (apply(model, params, tokens_BT) == plain).all()
    dropped = jax.jit(lambda key: model.apply({'params': params}, tokens_BT, models.positions(tokens_BT), MaskSpec(),
                                              deterministic=False, rngs={'dropout': key}))
    first, again, other = (dropped(jax.random.key(seed)) for seed in (0, 0, 1))
    assert (first == again).all() and not np.allclose(first, other) and not np.allclose(first, plain)
    with pytest.raises(errors.InvalidRngError):
        apply(model, params, tokens_BT, deterministic=False)


def test_heads_have_their_own_parameters():
    tied = models.init(Transformer(models.LLAMA, tiny.execution()))
    untied_config = tiny.model(tie_embeddings=False)
    untied = models.init(Transformer(untied_config, tiny.execution()))
    scorer = Transformer(untied_config, tiny.execution(), head='scalar')
    scalar = models.init(scorer)
    trunk = {'embed', 'layers', 'final_norm'}
    assert set(tied) == trunk and set(untied) == trunk | {'token_head'} and set(scalar) == trunk | {'scalar_head'}
    score_BT = apply(scorer, scalar, models.tokens(2, 6))
    assert score_BT.shape == (2, 6) and score_BT.dtype == jnp.float32


@pytest.mark.parametrize('tie_embeddings', [True, False])
def test_logits_are_hidden_states_times_the_unembedding(tie_embeddings):
    model = Transformer(tiny.model(tie_embeddings=tie_embeddings), tiny.execution())
    params, tokens_BT = models.init(model), models.tokens(2, 6)
    x_BTD = apply(model, params, tokens_BT, method='hidden')
    w_VD = model.apply({'params': params}, method='unembedding')
    assert w_VD is (params['embed']['tokens'] if tie_embeddings else params['token_head']['w'])
    np.testing.assert_allclose(apply(model, params, tokens_BT), jnp.einsum('BTD,VD->BTV', x_BTD, w_VD),
                               rtol=1e-5, atol=1e-4)


def test_bfloat16_computes_near_float32_and_gives_float32_logits():
    params, tokens_BT = models.init(Transformer(models.LLAMA, tiny.execution())), models.tokens(2, 6)
    exact, rough = (apply(Transformer(models.LLAMA, tiny.execution(compute_dtype=dtype)), params, tokens_BT)
                    for dtype in ('float32', 'bfloat16'))
    assert rough.dtype == jnp.float32 and not (rough == exact).all()
    assert float(jnp.abs(rough - exact).mean() / jnp.abs(exact).mean()) < 0.05

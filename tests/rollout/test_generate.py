"""Generation with a cache against whole forward passes of the same model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.errors import UserError
from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from llm.rollout.generate import Generation, make_generate
from llm.sharding import AxisRules, batch_sharding, make_mesh, shardings_of
from tests import tiny
from tests.model import models

PAD, EOS, NEW = 0, 1, 10
LENGTH_B = jnp.array([6, 3, 1, 5])
PROMPT_BT = jnp.where(jnp.arange(6)[None] < LENGTH_B[:, None], models.tokens(4, 6).clip(2), PAD)
INDEX_B = jnp.arange(4)
both_kinds = pytest.mark.parametrize('kind', models.KINDS)


@functools.cache
def parts(kind: str, temperature: float, eos_id: int = EOS):
    """The model, its parameters and its compiled sampler, once for all tests."""
    model = Transformer(models.KINDS[kind], tiny.execution())
    return model, models.init(model), jax.jit(make_generate(model, max_new_tokens=NEW, temperature=temperature,
                                                            eos_id=eos_id, pad_id=PAD))


def sample(kind: str, temperature: float, rows=slice(None)) -> Generation:
    _, params, generate = parts(kind, temperature)
    return generate(params, PROMPT_BT[rows], LENGTH_B[rows], INDEX_B[rows], jax.random.key(7))


@both_kinds
def test_greedy_with_a_cache_is_greedy_without_one(kind):
    model, params, _ = parts(kind, 0.0)
    forward = jax.jit(lambda tokens_BT: model.apply({'params': params}, tokens_BT, models.positions(tokens_BT),
                                                    MaskSpec()))
    out = sample(kind, 0.0)
    for row, length in enumerate(LENGTH_B):
        tokens = [int(token) for token in PROMPT_BT[row, :length]]
        while len(tokens) < length + NEW and (len(tokens) == length or tokens[-1] != EOS):
            padded = jnp.array([tokens + [PAD] * (6 + NEW - len(tokens))])
            tokens.append(int(forward(padded)[0, len(tokens) - 1].argmax()))
        assert out.tokens_BT[row].tolist() == tokens + [PAD] * (6 + NEW - len(tokens))
        assert int(out.length_B[row]) == len(tokens)


@both_kinds
@pytest.mark.parametrize('temperature', [0.0, 0.7])
def test_log_probs_are_those_of_a_whole_forward_pass(kind, temperature):
    model, params, _ = parts(kind, temperature)
    out = sample(kind, temperature)
    forward = jax.jit(lambda tokens_BT: model.apply({'params': params}, tokens_BT, models.positions(tokens_BT),
                                                    MaskSpec()))
    logits_BTV = forward(out.tokens_BT)
    logp_BTV = jax.nn.log_softmax(logits_BTV[:, :-1] / (temperature or 1.0))
    logp_BT = jnp.take_along_axis(logp_BTV, out.tokens_BT[:, 1:, None], 2)[..., 0]
    np.testing.assert_allclose(out.logp_BT[:, 1:], logp_BT * out.mask_BT[:, 1:], atol=1e-5)
    assert (out.logp_BT[out.mask_BT == 1] < 0).all()


def test_the_mask_is_on_the_answers_alone():
    out = sample('llama', 0.7)
    columns_BT = jnp.arange(6 + NEW)[None]
    answer_BT = (columns_BT >= LENGTH_B[:, None]) & (columns_BT < out.length_B[:, None])
    assert (out.mask_BT == answer_BT).all()
    assert (out.tokens_BT[:, :6][PROMPT_BT != PAD] == PROMPT_BT[PROMPT_BT != PAD]).all()
    assert (out.tokens_BT[columns_BT >= out.length_B[:, None]] == PAD).all()


def test_a_sample_does_not_depend_on_its_neighbours():
    together = sample('llama', 0.7)
    order = jnp.array([2, 0, 3, 1])
    shuffled = sample('llama', 0.7, order)
    assert (shuffled.tokens_BT == together.tokens_BT[order]).all()
    alone = sample('llama', 0.7, slice(1, 2))
    assert (alone.tokens_BT[0] == together.tokens_BT[1]).all()
    _, params, generate = parts('llama', 0.7)
    other_index = generate(params, PROMPT_BT, LENGTH_B, INDEX_B + 10, jax.random.key(7))
    assert (other_index.tokens_BT != together.tokens_BT).any(1).all()


def test_an_end_token_ends_an_answer():
    """The third token that sample 0 chooses, made the end token, ends it there; the tokens before stay."""
    free = sample('llama', 0.7)
    end = int(free.tokens_BT[0, 8])
    assert end not in free.tokens_BT[0, 6:8]
    _, params, generate = parts('llama', 0.7, end)
    out = generate(params, PROMPT_BT, LENGTH_B, INDEX_B, jax.random.key(7))
    assert int(out.length_B[0]) == 9 and (out.tokens_BT[0, :9] == free.tokens_BT[0, :9]).all()
    assert (out.tokens_BT[0, 9:] == PAD).all() and out.mask_BT[0].sum() == 3 and (out.logp_BT[0, 9:] == 0).all()


def test_tokens_are_drawn_from_the_softmax():
    """2,000 first tokens: their mean log-probability is minus the entropy, within four standard errors."""
    model, params, _ = parts('llama', 0.7)
    generate = jax.jit(make_generate(model, max_new_tokens=1, temperature=1.0, eos_id=EOS, pad_id=PAD))
    count = 2000
    out = generate(params, jnp.broadcast_to(PROMPT_BT[:1], (count, 6)), jnp.full(count, 6), jnp.arange(count),
                   jax.random.key(7))
    logits_V = jax.jit(lambda params: model.apply({'params': params}, PROMPT_BT[:1], jnp.arange(6)[None],
                                                  MaskSpec()))(params)[0, -1]
    logp_V = jax.nn.log_softmax(logits_V)
    probs_V = jnp.exp(logp_V)
    mean = (probs_V * logp_V).sum()
    error = jnp.sqrt((probs_V * jnp.square(logp_V - mean)).sum() / count)
    assert abs(out.logp_BT[:, 6].mean() - mean) < 4 * error
    top = int(probs_V.argmax())
    share = (out.tokens_BT[:, 6] == top).mean()
    assert abs(share - probs_V[top]) < 4 * jnp.sqrt(probs_V[top] * (1 - probs_V[top]) / count)


def test_samples_do_not_depend_on_the_mesh():
    model, params, generate = parts('llama', 0.7)
    expected = sample('llama', 0.7)
    rules, mesh = AxisRules.from_config(tiny.execution().rules), make_mesh(tiny.execution((2, 2, 2)).mesh)
    boxed = jax.eval_shape(lambda key: model.init(key, PROMPT_BT, PROMPT_BT, MaskSpec())['params'], jax.random.key(0))
    with jax.set_mesh(mesh):
        rows = jax.device_put((PROMPT_BT, LENGTH_B, INDEX_B), batch_sharding(mesh, rules))
        out = generate(jax.device_put(params, shardings_of(boxed, mesh, rules)), *rows, jax.random.key(7))
    assert (out.tokens_BT == expected.tokens_BT).all()
    np.testing.assert_allclose(out.logp_BT, expected.logp_BT, atol=1e-5)


def test_too_long_or_senseless_requests_are_refused():
    model, params, _ = parts('llama', 0.7)
    generate = make_generate(model, max_new_tokens=251, temperature=1.0, eos_id=EOS, pad_id=PAD)
    with pytest.raises(UserError, match='max_positions=256'):
        generate(params, PROMPT_BT, LENGTH_B, INDEX_B, jax.random.key(7))
    with pytest.raises(UserError, match='temperature=-1'):
        make_generate(model, max_new_tokens=1, temperature=-1, eos_id=EOS, pad_id=PAD)

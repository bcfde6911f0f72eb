"""Generation with a cache against whole forward passes of the same model, and samples that take turns against those
that have a row to themselves."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.errors import UserError
from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from llm.rollout import generate as generate_lib
from llm.rollout.draw import draw
from llm.rollout.generate import Generation, make_generate, most_steps
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


# Eleven samples of eleven lengths, their prompts in two widths.
WIDTH, MANY = 70, 11
MANY_LENGTH_B = jnp.array([70, 3, 36, 35, 34, 1, 50, 12, 69, 20, 33])
MANY_BT = jnp.where(jnp.arange(WIDTH)[None] < MANY_LENGTH_B[:, None], models.tokens(MANY, WIDTH).clip(2), PAD)
MOST_B = jnp.array([10, 1, 3, 10, 2, 7, 10, 1, 5, 10, 4])


def in_turns(slots: int, kind: str = 'llama', order=np.arange(MANY), eos_id: int = EOS, **execution) -> Generation:
    """The eleven, in that order, in so many slots; the end token is one that does come."""
    model = Transformer(models.KINDS[kind], tiny.execution(**execution))
    generate = make_generate(model, max_new_tokens=NEW, temperature=0.7, eos_id=eos_id, pad_id=PAD)
    with mock.patch.object(generate_lib, 'slots_of', lambda samples, platform: min(slots, samples)):
        return jax.jit(generate)(models.init(model), MANY_BT[order], MANY_LENGTH_B[order], jnp.arange(MANY)[order],
                                 jax.random.key(7), MOST_B[order])


@functools.cache
def alone(kind: str, eos_id: int) -> list[Generation]:
    """Each of the eleven in a batch and a cache of its own."""
    model = Transformer(models.KINDS[kind], tiny.execution())
    generate = jax.jit(make_generate(model, max_new_tokens=NEW, temperature=0.7, eos_id=eos_id, pad_id=PAD))
    params = models.init(model)
    return [generate(params, MANY_BT[row:row + 1], MANY_LENGTH_B[row:row + 1], jnp.array([row]), jax.random.key(7),
                     MOST_B[row:row + 1]) for row in range(MANY)]


def same(found: Generation, expected: list[Generation], order=np.arange(MANY)) -> None:
    for row, number in enumerate(order):
        assert (found.tokens_BT[row] == expected[number].tokens_BT[0]).all(), number
        assert (found.mask_BT[row] == expected[number].mask_BT[0]).all()
        assert found.length_B[row] == expected[number].length_B[0]
        np.testing.assert_allclose(found.logp_BT[row], expected[number].logp_BT[0], atol=1e-5)


@both_kinds
def test_samples_that_take_turns_are_those_that_have_a_row_to_themselves(kind):
    """In other slots, columns of the ring, chunks and widths of prompts, and beside others."""
    same(in_turns(3, kind), alone(kind, EOS))


@pytest.mark.parametrize('slots', [1, 4, 11])
def test_neither_slots_nor_order_nor_an_end_token_change_a_sample(slots):
    free = alone('llama', EOS)
    end = int(free[3].tokens_BT[0, MANY_LENGTH_B[3] + 4])  # the fifth token of one, which then has five
    expected = alone('llama', end)
    assert 1 < int(expected[3].length_B[0] - MANY_LENGTH_B[3]) <= 5
    same(in_turns(slots, eos_id=end), expected)
    order = np.random.default_rng(slots).permutation(MANY)
    same(in_turns(slots, order=order, eos_id=end), expected, order)


def test_layers_in_a_loop_sample_what_unrolled_layers_do():
    same(in_turns(3, scan_unroll=1), alone('llama', EOS))


def test_a_sample_has_no_more_tokens_than_it_asks_for():
    out = in_turns(3)
    said_B = out.length_B - MANY_LENGTH_B
    ended_B = jnp.take_along_axis(out.tokens_BT, out.length_B[:, None] - 1, 1)[:, 0] == EOS
    assert (said_B <= MOST_B).all() and ((said_B == MOST_B) | ended_B).all()
    assert (out.mask_BT.sum(1) == said_B).all()


def test_samples_of_one_prompt_are_those_of_copies_of_it():
    model, params, generate = parts('llama', 0.7)
    index_B = jnp.arange(12)
    copies = generate(params, PROMPT_BT.repeat(3, 0), LENGTH_B.repeat(3), index_B, jax.random.key(7))
    shared = generate(params, PROMPT_BT, LENGTH_B, index_B, jax.random.key(7))
    assert (shared.tokens_BT == copies.tokens_BT).all() and (shared.length_B == copies.length_B).all()
    np.testing.assert_allclose(shared.logp_BT, copies.logp_BT, atol=1e-5)
    assert (shared.tokens_BT[0] != shared.tokens_BT[1]).any()


def steps_of(most_B: list[int], slots: int) -> int:
    """Decode steps that were run for samples without an end token: each draws once for all slots."""
    drawn = []

    def counted(logits_BV, key_B, temperature):
        jax.debug.callback(lambda: drawn.append(len(logits_BV)))
        return draw(logits_BV, key_B, temperature)
    model, count = Transformer(models.LLAMA, tiny.execution()), len(most_B)
    with mock.patch.object(generate_lib, 'slots_of', lambda samples, platform: slots), \
            mock.patch.object(generate_lib, 'draw', counted):
        generate = make_generate(model, max_new_tokens=NEW, temperature=0.7, eos_id=-1, pad_id=PAD)
        jax.block_until_ready(jax.jit(generate)(models.init(model), jnp.full((count, 4), 2), jnp.full(count, 4),
                                                jnp.arange(count), jax.random.key(7), jnp.array(most_B)))
    jax.effects_barrier()
    first, *decoded = drawn
    assert first == count and set(decoded) <= {slots}
    return len(decoded)


@pytest.mark.parametrize('most_B, slots, steps', [
    ([10, 2, 2, 2, 2, 2, 2, 2, 2, 2], 2, 9),  # one slot has the long one, the other the nine short ones
    ([4, 4, 4, 4, 4, 4], 2, 9), ([1, 1, 1, 1], 2, 0), ([1, 5, 1, 1], 4, 4), ([3, 2, 3, 2, 3], 5, 2)])
def test_short_answers_do_not_wait_for_long_ones(most_B, slots, steps):
    assert steps_of(most_B, slots) == steps <= most_steps(len(most_B), slots, NEW)


def test_no_order_of_turns_takes_more_than_the_most_steps():
    random = np.random.default_rng(0)
    for samples, slots in ((1, 1), (5, 8), (9, 2), (40, 7), (33, 32)):
        for left_B in (random.integers(0, NEW, (50, samples)), np.full((1, samples), NEW - 1)):
            for row in left_B:
                busy = [0] * slots
                for left in row:
                    busy[np.argmin(busy)] += left
                assert max(busy) <= most_steps(samples, slots, NEW)


@pytest.mark.parametrize('scan_unroll', [0, 1])
def test_turns_on_a_mesh_are_those_of_one_device(scan_unroll):
    """Four shards of rows with two slots and four samples each."""
    execution = tiny.execution((2, 2, 2), scan_unroll=scan_unroll)
    model, count = Transformer(models.LLAMA, execution), 16
    rows = np.arange(count) % MANY
    tokens_BT, length_B, most_B = (np.asarray(x)[rows] for x in (MANY_BT, MANY_LENGTH_B, MOST_B))
    index_B = np.arange(count)
    generate = jax.jit(make_generate(model, max_new_tokens=NEW, temperature=0.7, eos_id=EOS, pad_id=PAD))
    expected = generate(models.init(model), tokens_BT, length_B, index_B, jax.random.key(7), most_B)
    rules, mesh = AxisRules.from_config(execution.rules), make_mesh(execution.mesh)
    boxed = jax.eval_shape(lambda key: model.init(key, PROMPT_BT, PROMPT_BT, MaskSpec())['params'], jax.random.key(0))
    with jax.set_mesh(mesh), mock.patch.object(generate_lib, 'slots_of', lambda samples, platform: 2):
        placed = jax.device_put((tokens_BT, length_B, index_B), batch_sharding(mesh, rules))
        most_B = jax.device_put(most_B, batch_sharding(mesh, rules))
        out = jax.jit(generate.__wrapped__)(jax.device_put(models.init(model), shardings_of(boxed, mesh, rules)),
                                            *placed, jax.random.key(7), most_B)
    assert (out.tokens_BT == expected.tokens_BT).all() and (out.length_B == expected.length_B).all()
    np.testing.assert_allclose(out.logp_BT, expected.logp_BT, atol=1e-5)


def test_too_long_or_senseless_requests_are_refused():
    model, params, _ = parts('llama', 0.7)
    generate = make_generate(model, max_new_tokens=251, temperature=1.0, eos_id=EOS, pad_id=PAD)
    with pytest.raises(UserError, match='max_positions=256'):
        generate(params, PROMPT_BT, LENGTH_B, INDEX_B, jax.random.key(7))
    with pytest.raises(UserError, match='temperature=-1'):
        make_generate(model, max_new_tokens=1, temperature=-1, eos_id=EOS, pad_id=PAD)

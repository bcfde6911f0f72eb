"""Answers to prompts, sampled on the device: a queue of samples, and a cache whose rows they take in turns.

In: right-padded prompts with their lengths, each sample's index, a key. Out: `Generation`.
Left out: top-k and top-p (`draw.py` says why), serving.

Prompts are read first (`prefill.py`). Then every step draws one token of each slot; a sample that ends leaves its slot
to the next (`slots.py`), so that short answers do not wait for long ones. Nothing goes to the host in between.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm.errors import UserError
from llm.model.attention import Cache, MaskSpec
from llm.model.transformer import layers_apart, Transformer
from llm.rollout.draw import draw
from llm.rollout.prefill import of_all, prefill
from llm.rollout.slots import begin, Queue, refill, Samples, Slots
from llm.sharding import AxisRules, constrain, platform


class Generation(NamedTuple):
    """Prompts, each followed directly by its answer, right-padded; T is prompt width + max_new_tokens.

    mask_BT: 1 on tokens that were chosen, the end token included. logp_BT: log-probability of the chosen token
    t under the temperature, 0 elsewhere; with temperature 0 (greedy) that of temperature 1.
    length_B: prompt and answer.
    """

    tokens_BT: jax.Array
    mask_BT: jax.Array
    logp_BT: jax.Array
    length_B: jax.Array


class _State(NamedTuple):
    step: jax.Array  # how many were made
    slots: Slots
    column: jax.Array  # of the cache
    token_ZC: jax.Array  # that each slot drew in each of Z steps
    logp_ZC: jax.Array


def slots_of(samples: int, platform: str) -> int:
    """How many of a shard's samples are decoded at once.

    A step reads all weights once, whatever the rows: with fewer than a few hundred a TPU waits for its memory. A CPU
    hardly does, and the more slots there are, the more of them stand idle while the last answers end.
    """
    return min(samples, 32 if platform == 'cpu' else 256)


def most_steps(samples: int, slots: int, max_new_tokens: int) -> int:
    """Decode steps that a shard's samples take at most; the first token of each is drawn before."""
    each = max_new_tokens - 1
    return each if samples <= slots else (samples - 1) * each // slots + each


def make_generate(model: Transformer, *, max_new_tokens: int, temperature: float, eos_id: int,
                  pad_id: int) -> Callable[..., Generation]:
    """Returns generate(params, tokens_PT, length_P, index_B, key, max_new_B=None) -> Generation, to be jitted.

    tokens_PT are P prompts, right-padded, each of length_P >= 1 tokens. Of B samples the first B / P are of the first
    prompt, and so on; a prompt is read once. Sample i ends after max_new_B[i] tokens (None: max_new_tokens), or with
    its end token. Token t of it is drawn with the key fold_in(fold_in(key, index_i), t): it depends on the key, its
    index and its prompt alone.
    """
    if max_new_tokens < 1 or temperature < 0:
        raise UserError(f'max_new_tokens={max_new_tokens}, temperature={temperature}: use at least one token and a '
                        f'temperature of 0 (greedy) or more')
    rules = AxisRules.from_config(model.exec.rules)

    def choose(params: Any, x_BD: jax.Array, index_B: jax.Array, drawn_B: jax.Array,
               key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next token of samples that have drawn so many, and its log-probability."""
        logits_BV = model.apply({'params': params}, x_BD[:, None], method='token_logits')[:, 0]
        key_B = jax.vmap(lambda index, drawn: jax.random.fold_in(jax.random.fold_in(key, index), drawn))(
            index_B, drawn_B)
        return draw(logits_BV, key_B, temperature)

    def decode(params: Any, key: jax.Array, state: _State) -> _State:
        """Draws a token for every slot."""
        at, variables = state.slots.at_C, {'params': params}
        position_C1 = at.position_C[:, None]
        x_C1D = model.apply(variables, at.token_C[:, None], position_C1, method='embed')
        x_C1D, cache = model.apply(variables, x_C1D, position_C1, MaskSpec(), Cache(*state.slots.kv, state.column),
                                   method='trunk')
        token_C, logp_C = choose(params, x_C1D[:, 0], at.index_C, at.drawn_C, key)
        going_C = (at.left_C > 0).astype(jnp.int32)
        left_C = jnp.where(token_C == eos_id, 0, at.left_C - going_C)
        at = Samples(token_C, at.position_C + going_C, at.drawn_C + going_C, left_C, at.index_C)
        return _State(state.step + 1, state.slots._replace(at_C=at, kv=cache[:2]), cache.column,
                      state.token_ZC.at[state.step].set(token_C), state.logp_ZC.at[state.step].set(logp_C))

    def rest(params: Any, key: jax.Array, queue: Queue, columns: int, ways: int) -> tuple[jax.Array, jax.Array]:
        """All tokens after the first, and their log-probabilities, [B, max_new_tokens - 1]; beyond a sample's end stand
        those of others."""
        mine = len(queue.row_B) // ways
        slots, how = slots_of(mine, platform()), dict(ways=ways, rules=rules)
        queue, turn_B = _in_turns(queue, ways)
        log_ZC = jnp.zeros((most_steps(mine, slots, max_new_tokens), ways * slots))
        log_ZC = constrain(log_ZC, (None, 'batch'), rules)
        state = _State(jnp.int32(0), begin(queue, slots=slots, columns=columns, **how), jnp.int32(0),
                       log_ZC.astype(jnp.int32), log_ZC)

        def step(state: _State) -> _State:
            state = decode(params, key, state)
            if mine == slots:
                return state
            return state._replace(slots=refill(state.slots, queue, state.step, state.column, **how))
        state = jax.lax.while_loop(lambda state: (state.slots.at_C.left_C > 0).any(), step, state)
        slot_B = of_all(state.slots.slot_B.reshape(ways, mine), slots)[turn_B]
        step_BM = state.slots.start_B[turn_B][:, None] + jnp.arange(max_new_tokens - 1)[None]
        return state.token_ZC[step_BM, slot_B[:, None]], state.logp_ZC[step_BM, slot_B[:, None]]

    def generate(params, tokens_PT: jax.Array, length_P: jax.Array, index_B: jax.Array, key: jax.Array,
                 max_new_B: jax.Array | None = None) -> Generation:
        (prompts, width), count = tokens_PT.shape, len(index_B)
        if width + max_new_tokens > model.config.max_positions:
            raise UserError(f'max_new_tokens={max_new_tokens} after prompts of up to {width} tokens passes '
                            f'model.max_positions={model.config.max_positions}; use fewer')
        assert count % prompts == 0, (count, prompts)
        ways = rules.ways('batch') if prompts % rules.ways('batch') == 0 else 1
        params = layers_apart(params, model.config, model.exec)
        read = prefill(model, params, tokens_PT, length_P, ways)
        tokens_BT, length_B, row_B, x_BD = (x.repeat(count // prompts, axis=0)
                                            for x in (tokens_PT, length_P, read.row_P, read.x_PD))
        most_B = jnp.full(count, max_new_tokens) if max_new_B is None else max_new_B.clip(1, max_new_tokens)
        none_B = jnp.zeros(count, jnp.int32)
        token_B, logp_B = choose(params, x_BD, index_B, none_B, key)
        answer_BN = token_B[:, None], logp_B[:, None]
        if max_new_tokens > 1:
            left_B = jnp.where(token_B == eos_id, 0, most_B - 1)
            queue = Queue(Samples(token_B, length_B, none_B + 1, left_B, index_B), row_B, read.kv)
            more_BM = rest(params, key, queue, width + max_new_tokens, ways)
            answer_BN = [jnp.concatenate(parts, 1) for parts in zip(answer_BN, more_BM)]
        return _generation(tokens_BT, length_B, *answer_BN, most_B, eos_id=eos_id, pad_id=pad_id)

    return generate


def _in_turns(queue: Queue, ways: int) -> tuple[Queue, jax.Array]:
    """Each shard's samples sorted, and where each went: the longest come first, where that is known, so that few slots
    stand idle at the end; last those that need no turn."""
    mine = len(queue.row_B) // ways
    order_WM = jnp.argsort(-queue.waiting_B.left_C.reshape(ways, mine), axis=1)
    order_B, turn_B = (of_all(x_WM, mine) for x_WM in (order_WM, jnp.argsort(order_WM, axis=1)))
    waiting_B, row_B = jax.tree.map(lambda x: x[order_B], (queue.waiting_B, queue.row_B))
    return Queue(waiting_B, row_B, queue.kv), turn_B


def _generation(tokens_BT: jax.Array, length_B: jax.Array, token_BN: jax.Array, logp_BN: jax.Array,
                most_B: jax.Array, *, eos_id: int, pad_id: int) -> Generation:
    """Right-padded prompts and the first of N tokens after each, up to an end token or the most that are wanted."""
    most = token_BN.shape[1]
    is_end_BN = token_BN == eos_id
    before_BN = jnp.cumsum(is_end_BN, axis=1) - is_end_BN
    said_B = ((before_BN == 0) & (jnp.arange(most)[None] < most_B[:, None])).sum(1)
    padded_BT = jnp.pad(tokens_BT, ((0, 0), (0, most)))
    number_BT = jnp.arange(padded_BT.shape[1])[None] - length_B[:, None]  # of a token in its answer
    mask_BT = (number_BT >= 0) & (number_BT < said_B[:, None])
    answer_BT, logp_BT = (jnp.take_along_axis(x_BN, number_BT.clip(0, most - 1), 1) for x_BN in (token_BN, logp_BN))
    tokens_BT = jnp.where(mask_BT, answer_BT, jnp.where(number_BT < 0, padded_BT, pad_id))
    return Generation(tokens_BT, mask_BT.astype(jnp.float32), jnp.where(mask_BT, logp_BT, 0.0), length_B + said_B)

"""Sampling of answers for training: one prefill, then one-token steps with a key-value cache, all on the device.

In: right-padded prompts with their lengths, each sample's index, a key. Out: `Generation`.
Left out: top-k and top-p (a policy gradient needs the distribution that was sampled from), serving.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm.errors import UserError
from llm.model.attention import Cache, MaskSpec, init_cache
from llm.model.transformer import Transformer


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
    step: jax.Array
    token_B: jax.Array  # the last one
    done_B: jax.Array
    out: Generation
    cache: Cache


def _choose(logits_BV: jax.Array, key_B: jax.Array, step: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """A token of each row, and its log-probability."""
    scaled_BV = logits_BV / (temperature or 1.0)
    if temperature:
        step_key_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, step)
        token_B = jax.vmap(jax.random.categorical)(step_key_B, scaled_BV)
    else:
        token_B = scaled_BV.argmax(-1)
    logp_B = jnp.take_along_axis(jax.nn.log_softmax(scaled_BV), token_B[:, None], 1)[:, 0]
    return token_B.astype(jnp.int32), logp_B


def _append(state: _State, token_B: jax.Array, logp_B: jax.Array, eos_id: int) -> _State:
    """Puts a token behind each row that is not done."""
    out = state.out
    here_BT = jnp.arange(out.tokens_BT.shape[1])[None] == out.length_B[:, None]
    here_BT &= ~state.done_B[:, None]
    out = Generation(jnp.where(here_BT, token_B[:, None], out.tokens_BT),
                     jnp.where(here_BT, 1.0, out.mask_BT),
                     jnp.where(here_BT, logp_B[:, None], out.logp_BT),
                     out.length_B + ~state.done_B)
    return state._replace(step=state.step + 1, token_B=token_B, done_B=state.done_B | (token_B == eos_id), out=out)


def make_generate(model: Transformer, *, max_new_tokens: int, temperature: float, eos_id: int,
                  pad_id: int) -> Callable[..., Generation]:
    """Returns generate(params, tokens_BT, length_B, index_B, key) -> Generation, to be jitted by the caller.

    tokens_BT are prompts, right-padded, each of length_B >= 1 tokens. Token t of sample i is drawn with the key
    fold_in(fold_in(key, index_i), t), so that a sample does not depend on its neighbours in the batch.
    The number of decode steps is that of the longest answer.
    """
    if max_new_tokens < 1 or temperature < 0:
        raise UserError(f'max_new_tokens={max_new_tokens}, temperature={temperature}: use at least one token and a '
                        f'temperature of 0 (greedy) or more')

    def append(state: _State, logits_BV: jax.Array, key_B: jax.Array) -> _State:
        return _append(state, *_choose(logits_BV, key_B, state.step, temperature), eos_id)

    def run(params, tokens_BT, positions_BT, last_B, cache) -> tuple[jax.Array, Cache]:
        """Logits after column `last_B` of each row, and the cache with the keys and values of all columns."""
        variables = {'params': params}
        x_BTD = model.apply(variables, tokens_BT, positions_BT, method='embed')
        x_BTD, cache = model.apply(variables, x_BTD, positions_BT, MaskSpec(), cache, method='trunk')
        x_B1D = jnp.take_along_axis(x_BTD, last_B[:, None, None], 1)
        return model.apply(variables, x_B1D, method='token_logits')[:, 0], cache

    def generate(params, tokens_BT: jax.Array, length_B: jax.Array, index_B: jax.Array, key: jax.Array) -> Generation:
        batch, width = tokens_BT.shape
        total = width + max_new_tokens
        if total > model.config.max_positions:
            raise UserError(f'max_new_tokens={max_new_tokens} after prompts of up to {width} tokens passes '
                            f'model.max_positions={model.config.max_positions}; use fewer')
        key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, index_B)
        positions_BT = jnp.broadcast_to(jnp.arange(width), (batch, width))
        # What the padding writes into the cache is never seen: each slot is written again before its turn comes.
        logits_BV, cache = run(params, tokens_BT, positions_BT, length_B - 1,
                               init_cache(model.config, model.exec, batch, total))
        padded_BT = jnp.pad(tokens_BT, ((0, 0), (0, max_new_tokens)), constant_values=pad_id)
        inside_BT = jnp.arange(total)[None] < length_B[:, None]
        zeros_BT = jnp.zeros((batch, total), jnp.float32)
        out = Generation(jnp.where(inside_BT, padded_BT, pad_id), zeros_BT, zeros_BT, length_B)
        state = _State(jnp.int32(0), length_B, jnp.zeros(batch, bool), out, cache)
        state = append(state, logits_BV, key_B)

        def step(state: _State) -> _State:
            column_B = length_B + state.step - 1  # of the last token, also in rows that are done
            logits_BV, cache = run(params, state.token_B[:, None], column_B[:, None], jnp.zeros_like(length_B),
                                   state.cache)
            return append(state._replace(cache=cache), logits_BV, key_B)
        state = jax.lax.while_loop(lambda s: (s.step < max_new_tokens) & ~s.done_B.all(), step, state)
        return state.out

    return generate

"""Prompts, each read once: their keys and values, and what the first token of every answer is drawn from.

In: right-padded prompts with their lengths. Out: `Prefilled`, from which samples begin.
Left out: decoding (`generate.py`).

Prompts are sorted by length and read in chunks, each in the narrowest of a few widths that holds it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm.model.attention import init_cache, MaskSpec
from llm.model.transformer import Transformer

_CHUNK_ROWS = 16  # of a shard, at most: enough to keep matmuls busy
_LEAST_WIDTH = 32  # tokens; a narrower one is not worth compiling


class Prefilled(NamedTuple):
    """P prompts of up to W tokens.

    kv: keys and values, arrays as in a `Cache` of W columns, of which a prompt's last token has the last one.
    row_P: where a prompt's are, among those of its shard. x_PD: hidden states after prompts.
    """

    kv: Any
    row_P: jax.Array
    x_PD: jax.Array


def prefill(model: Transformer, params: Any, tokens_PT: jax.Array, length_P: jax.Array, ways: int) -> Prefilled:
    """Reads P right-padded prompts of length_P >= 1 tokens; each of `ways` shards of rows reads its own."""
    prompts, width = tokens_PT.shape
    mine = prompts // ways
    chunks = -(-mine // _CHUNK_ROWS)
    rows = -(-mine // chunks)
    order_WM = jnp.argsort(length_P.reshape(ways, mine), axis=1)
    ended_PT = jnp.take_along_axis(tokens_PT, (jnp.arange(width)[None] + length_P[:, None]) % width, 1)

    def chunk(number: jax.Array) -> tuple[Any, jax.Array]:
        place_R = jnp.minimum(number * rows + jnp.arange(rows), mine - 1)  # the last chunk is filled up
        taken_R = of_all(order_WM[:, place_R], mine)
        return _read(model, params, ended_PT[taken_R], length_P[taken_R])
    kv, x_RD = jax.tree.map(lambda x: x[None], chunk(0)) if chunks == 1 else jax.lax.map(chunk, jnp.arange(chunks))
    kv = jax.tree.map(lambda x: _joined(x, x.ndim - 4, ways), kv)
    row_WM = jnp.argsort(order_WM, axis=1)
    return Prefilled(kv, row_WM.reshape(-1), _joined(x_RD, 1, ways)[of_all(row_WM, chunks * rows)])


def of_all(index_WM: jax.Array, mine: int) -> jax.Array:
    """Places among the rows of all shards, from those among the `mine` of each."""
    return (index_WM + mine * jnp.arange(len(index_WM))[:, None]).reshape(-1)


def _joined(x: jax.Array, axis: int, ways: int) -> jax.Array:
    """Chunks, the first axis, become rows, at that axis; each shard keeps its own."""
    x = jnp.moveaxis(x, 0, axis - 1)
    before, (chunks, rows), after = x.shape[:axis - 1], x.shape[axis - 1:axis + 1], x.shape[axis + 1:]
    return x.reshape(*before, chunks, ways, rows // ways, *after).swapaxes(axis - 1, axis).reshape(*before, -1, *after)


def _read(model: Transformer, params: Any, ended_RT: jax.Array, length_R: jax.Array) -> tuple[Any, jax.Array]:
    """Keys and values, and hidden states after the last column, of rows that end there."""
    width = ended_RT.shape[1]
    widths = [width, *(narrow for narrow in (width // 2, width // 4) if narrow >= _LEAST_WIDTH)]
    branches = [functools.partial(_read_width, model, params, ended_RT, length_R, width) for width in widths]
    return jax.lax.switch((length_R.max() <= jnp.array(widths[1:], jnp.int32)).sum(), branches)


def _read_width(model: Transformer, params: Any, ended_RT: jax.Array, length_R: jax.Array,
                width: int) -> tuple[Any, jax.Array]:
    """The same from that many last columns, which hold all prompts."""
    variables, left = {'params': params}, ended_RT.shape[1] - width
    positions_RT = jnp.arange(width)[None] - (width - length_R)[:, None]  # below 0: padding
    x_RTD = model.apply(variables, ended_RT[:, left:], jnp.maximum(positions_RT, 0), method='embed')
    x_RTD, cache = model.apply(variables, x_RTD, positions_RT, MaskSpec(),
                               init_cache(model.config, model.exec, len(ended_RT), width), method='trunk')
    kv = (cache.k_LBKSH, cache.v_LBKSH)
    return jax.tree.map(lambda x: jnp.pad(x, (*((0, 0),) * (x.ndim - 2), (left, 0), (0, 0))), kv), x_RTD[:, -1]

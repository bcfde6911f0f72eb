"""Held-out numbers: an objective's sums over rows that are never trained on, and answers for a person to read.

In: a jitted evaluation step, parameters, rows. Out: sums and weights as Python floats; generated texts.
Left out: which numbers decide (the stages), where they are written (the run's journal).
"""

import math
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from llm.data.tokenizer import Tokenizer
from llm.model.transformer import Transformer
from llm.rollout.generate import make_generate
from llm.sharding import AxisRules, batch_sharding, global_batch


def totals(eval_step, params: Any, rows, *, count: int, batch_size: int, sharding) -> dict[str, tuple[float, float]]:
    """(sum, weight) of every term and metric over the first `count` rows (all of them, if there are fewer).

    The last batch is filled up with empty rows, whose masks are zero, so that one compiled step serves all.
    """
    count = min(count, len(rows))

    def filled(indices: np.ndarray) -> dict[str, np.ndarray]:
        inside = indices < count
        fields = rows.rows(np.where(inside, indices, 0))
        return {name: np.where(inside.reshape(-1, *[1] * (field.ndim - 1)), field, np.zeros_like(field))
                for name, field in fields.items()}

    sums: dict[str, list[float]] = {}
    for start in range(0, count, batch_size):
        batch = global_batch(filled, np.arange(start, start + batch_size), sharding)
        loss = jax.device_get(eval_step(params, batch))
        pairs = {name: (term.sum, term.weight) for name, term in loss.terms.items()} | dict(loss.metrics)
        for name, (total, weight) in pairs.items():
            seen = sums.setdefault(name, [0.0, 0.0])
            seen[0] += float(total)
            seen[1] += float(weight)
    return {name: (total, weight) for name, (total, weight) in sums.items()}


def language(eval_step, params: Any, corpora: dict[str, Any], **how) -> dict[str, float]:
    """Cross-entropy by source and over all: nats a token, and bits a byte of the predicted text."""
    values, nats, tokens = {}, 0.0, 0.0
    for name, rows in corpora.items():
        total, weight = totals(eval_step, params, rows, **how)['next_token']
        size = rows.num_bytes(min(how['count'], len(rows)))
        values[f'nats_per_token/{name}'] = total / weight
        values[f'bits_per_byte/{name}'] = total / math.log(2) / size
        nats, tokens = nats + total, tokens + weight
    return {'nats_per_token': nats / tokens, **values}


def answers(model: Transformer, params: Any, prompts: list[list[int]], tokenizer: Tokenizer, *, max_new_tokens: int,
            temperature: float, seed: int, mesh: Mesh, rules: AxisRules) -> list[str]:
    """What the model says after each prompt (token ids), as text; sampled with a key of its own."""
    sharding = batch_sharding(mesh, rules)
    ways = len(prompts) + -len(prompts) % (sharding.num_devices)
    width = max(len(prompt) for prompt in prompts)
    tokens_BT = np.full((ways, width), tokenizer.special_ids['pad'], np.int32)
    length_B = np.ones(ways, np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, :len(prompt)] = prompt
        length_B[row] = len(prompt)
    batch = global_batch(lambda rows: {'tokens_BT': tokens_BT[rows], 'length_B': length_B[rows],
                                       'index_B': rows.astype(np.int32)}, np.arange(ways), sharding)
    generate = make_generate(model, max_new_tokens=max_new_tokens, temperature=temperature,
                             eos_id=tokenizer.special_ids['eos'], pad_id=tokenizer.special_ids['pad'])
    made = jax.device_get(generate(params, batch['tokens_BT'], batch['length_B'], batch['index_B'],
                                   jax.random.key(seed)))
    return [tokenizer.decode([int(token) for token, chosen in zip(made.tokens_BT[row], made.mask_BT[row]) if chosen])
            for row in range(len(prompts))]

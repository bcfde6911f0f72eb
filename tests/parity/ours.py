"""Our side of a comparison: a folder of transformers' as our model, and what it gives by the names that theirs have.

In: a folder with config.json and safetensors; a batch as transformers takes it. Out: arrays of transformers' shapes.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from llm.interop.import_hf import read_model
from llm.model.attention import MaskSpec
from llm.model.make import make_model
from tests import tiny
from tests.parity import references

HIDDEN = -1e4  # what a span's logits are on padding, in the references
Batch = dict[str, np.ndarray]
Outputs = dict[str, jax.Array]


@functools.cache
def load(folder: str) -> tuple[nn.Module, Any]:
    """The model and its parameters, on one device."""
    described, params = read_model(folder, mesh=(1, 1, 1))
    return make_model(described.model, tiny.execution(scan_unroll=1), described.head), params


def outputs(model: nn.Module, params: Any, batch: Batch, wanted: tuple[str, ...]) -> Outputs:
    """Arrays by transformers' names; `wanted` are those of a model whose head does not tell."""
    found: Outputs = {}
    if 'earlier_input_ids' in batch:
        earlier = {'input_ids': batch['earlier_input_ids']}
        found['mems'] = _apply(model, params, earlier, method='hidden')[1].transpose(0, 2, 1, 3)  # [L, T, B, D]
    options = {'memory_LBMD': found['mems'].transpose(0, 2, 1, 3)} if found else {}
    if 'last_hidden_state' in wanted:
        result = _apply(model, params, batch, method='hidden')
        found['last_hidden_state'] = result[0] if model.config.kind == 'two_stream' else result
        if 'pooler_output' in wanted:
            found['pooler_output'] = _apply(model.clone(head='pooled'), params, batch)
        return found
    result = _apply(model, params, batch, **options)
    if model.head == 'span':
        seen = batch['attention_mask'] == 1
        return {f'{side}_logits': jnp.where(seen, result[..., index], HIDDEN)
                for index, side in enumerate(('start', 'end'))}
    if model.head == 'pretraining':
        return dict(zip(('prediction_logits', 'seq_relationship_logits'), result))
    if model.head == 'scalar':
        last_B1 = batch['attention_mask'].sum(1, keepdims=True) - 1
        return {'logits': jnp.take_along_axis(result, jnp.asarray(last_B1), 1)}
    return {'logits': result, **found}


def _apply(model: nn.Module, params: Any, batch: Batch, **options) -> Any:
    """The model on a batch as transformers takes it."""
    kind, variables = model.config.kind, {'params': params}
    if kind == 'vision':
        image_BYXC = jnp.asarray(batch['pixel_values']).transpose(0, 2, 3, 1)
        places_BT = jnp.broadcast_to(jnp.arange(model.config.max_positions),
                                     (len(image_BYXC), model.config.max_positions))
        return model.apply(variables, image_BYXC, places_BT, MaskSpec(causal=False), **options)
    tokens_BT = jnp.asarray(batch['input_ids'])
    if 'token_type_ids' in batch:
        options['types_BT'] = jnp.asarray(batch['token_type_ids'])
    segments_BT = jnp.asarray(batch['attention_mask']) if 'attention_mask' in batch else None
    if kind == 'two_stream':
        if 'perm_mask' in batch:
            options |= {'perm_mask_BTS': jnp.asarray(batch['perm_mask']),
                        'targets_BP': jnp.asarray(batch['target_mapping'].argmax(-1))}
        return model.apply(variables, tokens_BT, MaskSpec(causal=False, segments_BT=segments_BT), **options)
    # Of a decoder's row what is padded on the right comes later, and is not seen.
    mask = MaskSpec() if kind == 'decoder' else MaskSpec(causal=False, segments_BT=segments_BT)
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    return model.apply(variables, tokens_BT, positions_BT, mask, **options)


def loss(outputs: Outputs, labels: Batch) -> jax.Array:
    """As `reference/write.py` defines it."""
    total = 0.0
    for name, wanted in labels.items():
        logits = outputs[name]
        if logits.shape[-1] == 1:
            total += jax.nn.softplus(-logits).mean()
        else:
            counted = wanted >= 0
            costs = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, wanted, 0))
            total += jnp.where(counted, costs, 0).sum() / counted.sum()
    return total


@functools.cache
def computed(name: str, batch: str) -> tuple[Outputs, jax.Array, Any]:
    """Outputs, loss and its gradients of a reference's model, in its batch."""
    model, params = load(str(references.FOLDER / 'models' / name / 'model'))
    arrays = references.expected(name)[batch]

    def run(params):
        found = outputs(model, params, arrays['in'], tuple(arrays['out']))
        return loss(found, arrays['label']), found
    (value, found), gradients = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    return found, value, gradients

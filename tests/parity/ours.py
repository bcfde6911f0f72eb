"""Our side of a comparison: a folder of transformers' as our model, and what it gives by the names that theirs have.

In: a folder with config.json and safetensors; a batch as transformers takes it. Out: arrays of transformers' shapes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llm.interop.import_hf import read_model
from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from tests import tiny
from tests.parity import references

HIDDEN = -1e4  # what a span's logits are on padding, in the references
Batch = dict[str, np.ndarray]
Outputs = dict[str, jax.Array]


@functools.cache
def load(folder: str) -> tuple[Transformer, Any]:
    """The model and its parameters, on one device."""
    described, params = read_model(folder, mesh=(1, 1, 1))
    return Transformer(described.model, tiny.execution(scan_unroll=1), head=described.head), params


def outputs(model: Transformer, params: Any, batch: Batch, wanted: tuple[str, ...]) -> Outputs:
    """Of a text or image model; `wanted` are names of transformers' outputs."""
    inputs, positions_BT, mask = _inputs(model, batch)
    types_BT = batch.get('token_type_ids')

    def apply(model, **options):
        if types_BT is not None:
            options['types_BT'] = jnp.asarray(types_BT)
        return model.apply({'params': params}, inputs, positions_BT, mask, **options)
    found: Outputs = {}
    if 'last_hidden_state' in wanted:
        found['last_hidden_state'] = apply(model, method='hidden')
    if 'pooler_output' in wanted:
        found['pooler_output'] = apply(model.clone(head='pooled'))
    if found:
        return found
    result = apply(model)
    if model.head == 'span':
        seen = batch['attention_mask'] == 1
        return {f'{side}_logits': jnp.where(seen, result[..., index], HIDDEN)
                for index, side in enumerate(('start', 'end'))}
    if model.head == 'pretraining':
        return dict(zip(('prediction_logits', 'seq_relationship_logits'), result))
    if model.head == 'scalar':
        last_B1 = batch['attention_mask'].sum(1, keepdims=True) - 1
        return {'logits': jnp.take_along_axis(result, jnp.asarray(last_B1), 1)}
    return {'logits': result}


def _inputs(model: Transformer, batch: Batch) -> tuple[jax.Array, jax.Array, MaskSpec]:
    if model.config.kind == 'vision':
        image_BYXC = jnp.asarray(batch['pixel_values']).transpose(0, 2, 3, 1)
        places = jnp.arange(model.config.max_positions)
        return image_BYXC, jnp.broadcast_to(places, (len(image_BYXC), places.size)), MaskSpec(causal=False)
    tokens_BT = jnp.asarray(batch['input_ids'])
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    if model.config.kind == 'decoder':  # what is padded on the right comes later, and is not seen
        return tokens_BT, positions_BT, MaskSpec()
    return tokens_BT, positions_BT, MaskSpec(causal=False, segments_BT=jnp.asarray(batch['attention_mask']))


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

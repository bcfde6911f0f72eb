"""Every family, shrunk from a released size: the same numbers on every mesh, and nothing large on every device."""

import dataclasses
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import sizes
from llm.architecture import ModelConfig, RopeScaling
from llm.door import from_dict
from llm.model.attention import MaskSpec
from llm.model.make import init_inputs, make_model
from llm.sharding import AxisRules, batch_sharding, make_mesh, shardings_of
from tests import tiny
from tests.model import models

# A size of each family, and the heads it is tried with.
FAMILIES = {
    'gpt2': ('token',), 'llama2_7b': ('token',), 'llama3_1_8b': ('token',), 'llama3_2_1b': ('token',),
    'mistral_7b': ('token',), 'qwen2_5_0_5b': ('token',), 'qwen3_8b': ('token', 'scalar'), 'gemma_7b': ('token',),
    'gemma2_2b': ('token',), 'gemma3_4b': ('token',), 'smollm2_1_7b': ('token',),
    'bert_base': ('pretraining', 'classes'), 'roberta_base': ('masked',), 'xlnet_base': ('token',),
    'vit_b16': ('classes',)}
CASES = [(name, head) for name, heads in FAMILIES.items() for head in heads]


def shrunk(name: str) -> ModelConfig:
    """The parts of a released model at a width of 32, with windows and scaling that a row of 8 tokens feels."""
    config = from_dict(ModelConfig, getattr(sizes, name)().to_dict())
    scaling = config.rope_scaling and RopeScaling(config.rope_scaling.kind, 4.0, 1.0, 4.0, 8)
    image = dict(image_size=12, patch_size=4, max_positions=10) if config.kind == 'vision' else {}
    return dataclasses.replace(config, **dict(
        vocab_size=config.vocab_size and 96, model_dim=32, num_layers=2, num_heads=4, head_dim=8, mlp_dim=64,
        num_kv_heads=4 if config.num_kv_heads == config.num_heads else 2, max_positions=16,
        embed_scale=1.0 if config.embed_scale == 1 else 2.0, window=min(config.window, 3),
        global_every=min(config.global_every, 2), rope_scaling=scaling, num_classes=4) | image)


def inputs(config: ModelConfig):
    """Eight rows as the module takes them: padded, with types, with targets, of images."""
    tokens_BT = models.tokens(8, 8, 96)
    if config.kind == 'vision':
        image_BYXC = jax.random.normal(jax.random.key(1), (8, 12, 12, 3))
        return (image_BYXC, jnp.broadcast_to(jnp.arange(10), (8, 10)), MaskSpec(causal=False)), {}
    if config.kind == 'decoder':
        return (tokens_BT, models.positions(tokens_BT), MaskSpec()), {}
    padded = MaskSpec(causal=False, segments_BT=(jnp.arange(8)[None] < jnp.arange(1, 9)[:, None]).astype(jnp.int32))
    if config.kind == 'encoder':
        types_BT = tokens_BT % config.token_types
        return (tokens_BT, models.positions(tokens_BT), padded), {'types_BT': types_BT}
    perm_mask_BTS = jax.random.bernoulli(jax.random.key(3), 0.5, (8, 8, 8)).astype(jnp.int32)
    return (tokens_BT, padded), {'types_BT': tokens_BT % 2, 'perm_mask_BTS': perm_mask_BTS,
                                 'targets_BP': tokens_BT[:, :3] % 8}


@pytest.mark.parametrize('name, head', CASES)
def test_outputs_do_not_depend_on_the_mesh(name, head):
    config, rules = shrunk(name), AxisRules.from_config(tiny.execution().rules)
    model = make_model(config, tiny.execution(scan_unroll=1), head)
    params, (arguments, named) = models.init(model), inputs(config)
    start, options = init_inputs(config)
    boxed = jax.eval_shape(lambda key: model.init(key, *start, **options)['params'], jax.random.key(0))

    def run(params, arguments, named):
        return jax.tree.leaves(model.apply({'params': params}, *arguments, **named))
    found = []
    for shape in tiny.MESHES:
        mesh = make_mesh(tiny.execution(shape).mesh)
        with jax.set_mesh(mesh):
            sharded = jax.device_put(params, shardings_of(boxed, mesh, rules))
            rows = jax.device_put((arguments, named), batch_sharding(mesh, rules))
            found.append([np.asarray(output) for output in jax.jit(run)(sharded, *rows)])
    for other in found[1:]:
        for expected, output in zip(found[0], other, strict=True):
            assert np.isfinite(output).all() and output.std() > 0.01
            np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name, head', CASES)
def test_only_what_is_small_is_on_every_device(name, head):
    """Of the released size, with the default rules, but for a dimension that two shards do not divide."""
    config = from_dict(ModelConfig, getattr(sizes, name)().to_dict())
    uneven = {'vocab': config.vocab_size, 'heads': config.num_heads, 'kv_heads': config.num_kv_heads}
    rules = tiny.execution().rules | {axis: () for axis, size in uneven.items() if size % 2}
    model = make_model(config, tiny.execution(scan_unroll=1), head)
    arguments, named = init_inputs(config)
    boxed = jax.eval_shape(lambda key: model.init(key, *arguments, **named)['params'], jax.random.key(0))
    shardings = shardings_of(boxed, make_mesh(tiny.execution((2, 2, 2)).mesh), AxisRules.from_config(rules))
    leaves = zip(jax.tree.leaves(nn.meta.unbox(boxed)), jax.tree.leaves(shardings), strict=True)
    assert max(math.prod(leaf.shape) for leaf, sharding in leaves if sharding.is_fully_replicated) < 500_000

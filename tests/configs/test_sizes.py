"""Parameter counts of the named sizes, exactly, without allocating one."""

import math

import jax
import jax.numpy as jnp
import pytest

from configs import sizes
from llm.config import ModelConfig
from llm.door import from_dict
from llm.model.attention import MaskSpec
from llm.model.transformer import Transformer
from llm.sharding import AxisRules, make_mesh, shardings_of
from tests import tiny

# The GPT-2 ones as counted by transformers' GPT2LMHeadModel; Llama's by Meta's checkpoints.
COUNTS = {
    'gpt2': 124_439_808, 'gpt2_medium': 354_823_168, 'gpt2_large': 774_030_080, 'gpt2_xl': 1_557_611_200,
    'llama2_7b': 6_738_415_616, 'llama3_8b': 8_030_261_248, 'llama3_70b': 70_553_706_496}


def boxed_params(name: str):
    config = from_dict(ModelConfig, getattr(sizes, name)().to_dict())
    model = Transformer(config, tiny.execution(scan_unroll=1))
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    return jax.eval_shape(lambda key: model.init(key, tokens_BT, tokens_BT, MaskSpec())['params'], jax.random.key(0))


@pytest.mark.parametrize('name', COUNTS)
def test_sizes_have_exactly_the_published_parameters(name):
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(boxed_params(name))) == COUNTS[name]


@pytest.mark.parametrize('name', ['tiny', 'mini', 'llama2_7b', 'llama3_8b', 'llama3_70b'])
def test_every_parameter_has_rules_and_splits_over_a_mesh(name):
    mesh = make_mesh(tiny.execution((2, 2, 2)).mesh)
    boxed = boxed_params(name)
    shardings = shardings_of(boxed, mesh, AxisRules.from_config(tiny.execution().rules))
    whole = [leaf.shape for leaf, sharding in zip(jax.tree.leaves(boxed), jax.tree.leaves(shardings))
             if sharding.is_fully_replicated]
    assert all(len(shape) <= 2 and math.prod(shape) < 1e6 for shape in whole), 'only norms are whole'

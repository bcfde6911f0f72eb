"""Parameter counts of the named sizes, exactly, without allocating one."""

import math

from flax import linen as nn
import jax
import pytest

from configs import sizes
from llm.architecture import ModelConfig
from llm.door import from_dict
from llm.model.make import init_inputs, make_model
from llm.sharding import AxisRules, make_mesh, shardings_of
from tests import tiny

# As counted by transformers' classes for the released configurations; tied tables once.
DECODERS = {
    'gpt2': 124_439_808, 'gpt2_medium': 354_823_168, 'gpt2_large': 774_030_080, 'gpt2_xl': 1_557_611_200,
    'llama2_7b': 6_738_415_616, 'llama2_13b': 13_015_864_320, 'llama2_70b': 68_976_648_192,
    'llama3_8b': 8_030_261_248, 'llama3_70b': 70_553_706_496, 'llama3_1_8b': 8_030_261_248,
    'llama3_1_70b': 70_553_706_496, 'llama3_1_405b': 405_853_388_800, 'llama3_2_1b': 1_235_814_400,
    'llama3_2_3b': 3_212_749_824, 'llama3_3_70b': 70_553_706_496,
    'smollm2_135m': 134_515_008, 'smollm2_360m': 361_821_120, 'smollm2_1_7b': 1_711_376_384,
    'mistral_7b': 7_241_732_096, 'mistral_7b_v0_2': 7_241_732_096, 'mistral_7b_v0_3': 7_248_023_552,
    'mistral_nemo_12b': 12_247_782_400, 'mistral_small_22b': 22_247_282_688, 'mistral_small_24b': 23_572_403_200,
    'mistral_large_123b': 122_610_069_504,
    'qwen2_0_5b': 494_032_768, 'qwen2_1_5b': 1_543_714_304, 'qwen2_7b': 7_615_616_512, 'qwen2_72b': 72_706_203_648,
    'qwen2_5_0_5b': 494_032_768, 'qwen2_5_1_5b': 1_543_714_304, 'qwen2_5_3b': 3_085_938_688,
    'qwen2_5_7b': 7_615_616_512, 'qwen2_5_14b': 14_770_033_664, 'qwen2_5_32b': 32_763_876_352,
    'qwen2_5_72b': 72_706_203_648,
    'qwen3_0_6b': 596_049_920, 'qwen3_1_7b': 1_720_574_976, 'qwen3_4b': 4_022_468_096, 'qwen3_8b': 8_190_735_360,
    'qwen3_14b': 14_768_307_200, 'qwen3_32b': 32_762_123_264,
    'gemma_2b': 2_506_172_416, 'gemma_7b': 8_537_680_896,
    'gemma2_2b': 2_614_341_888, 'gemma2_9b': 9_241_705_984, 'gemma2_27b': 27_227_128_320,
    'gemma3_270m': 268_098_176, 'gemma3_1b': 999_885_952, 'gemma3_4b': 3_880_263_168, 'gemma3_12b': 11_766_034_176,
    'gemma3_27b': 27_009_346_304}
ENCODERS = {  # with the pooler
    'bert_tiny': 4_385_920, 'bert_mini': 11_170_560, 'bert_small': 28_763_648, 'bert_medium': 41_373_184,
    'bert_base': 109_482_240, 'bert_large': 335_141_888, 'bert_base_cased': 108_310_272,
    'bert_large_cased': 333_579_264, 'bert_base_multilingual_cased': 177_853_440, 'minilm_l6': 22_713_216}
IMAGES = {
    'vit_ti16': 5_717_416, 'vit_s16': 22_050_664, 'vit_s32': 22_878_952, 'vit_b8': 86_576_872,
    'vit_b16': 86_567_656, 'vit_b16_384': 86_859_496, 'vit_b32': 88_224_232, 'vit_b32_384': 88_297_192,
    'vit_l16': 304_326_632, 'vit_l16_384': 304_715_752, 'vit_l32': 306_535_400, 'vit_l32_384': 306_632_680,
    'vit_h14': 632_045_800}
COUNTS = {
    **{(name, 'token'): count for name, count in DECODERS.items()},
    **{(name, 'pooled'): count for name, count in ENCODERS.items()},
    **{(name, 'classes'): count for name, count in IMAGES.items()},
    ('bert_base', 'pretraining'): 110_106_428, ('bert_large', 'pretraining'): 336_226_108,
    ('roberta_base', 'masked'): 124_697_433, ('roberta_large', 'masked'): 355_412_057,
    ('xlnet_base', 'token'): 116_750_336, ('xlnet_large', 'token'): 360_300_800,
    ('xlnet_base', 'none'): 116_718_336, ('xlnet_large', 'none'): 360_268_800}


def boxed_params(name: str, head: str = 'token'):
    config = from_dict(ModelConfig, getattr(sizes, name)().to_dict())
    model = make_model(config, tiny.execution(scan_unroll=1), head)
    arguments, named = init_inputs(config)
    return jax.eval_shape(lambda key: model.init(key, *arguments, **named)['params'], jax.random.key(0))


@pytest.mark.parametrize('name, head', COUNTS)
def test_sizes_have_exactly_the_published_parameters(name, head):
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(boxed_params(name, head))) == COUNTS[name, head]


def test_every_released_size_is_counted():
    named = {name for name, value in vars(sizes).items()
             if getattr(value, '__module__', '').startswith('configs.families')}
    assert named - {'llama'} == {name for name, _ in COUNTS}


@pytest.mark.parametrize('name', ['tiny', 'mini', 'llama2_7b', 'llama3_8b', 'llama3_70b', 'gemma2_27b', 'qwen2_5_72b'])
def test_every_parameter_has_rules_and_splits_over_a_mesh(name):
    mesh = make_mesh(tiny.execution((2, 2, 2)).mesh)
    boxed = boxed_params(name)
    shardings = shardings_of(boxed, mesh, AxisRules.from_config(tiny.execution().rules))
    leaves = zip(jax.tree.leaves(nn.meta.unbox(boxed)), jax.tree.leaves(shardings), strict=True)
    whole = [leaf.shape for leaf, sharding in leaves if sharding.is_fully_replicated]
    assert all(len(shape) <= 2 and math.prod(shape) < 1e6 for shape in whole), 'only norms are whole'

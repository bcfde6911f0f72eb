"""What a model config refuses, what a manifest keeps of it, and that new fields made no old model another one."""

import dataclasses

import pytest

from configs import base
from configs import sizes
from llm.architecture import ModelConfig, RopeScaling
from llm.config import PretrainConfig, stage_config
from llm.door import from_dict
from llm.errors import UserError
from llm.identity import identity_dict
from tests import tiny

# The fields that the first checkpoints have, and no other.
FIRST = ['vocab_size', 'model_dim', 'num_layers', 'num_heads', 'num_kv_heads', 'head_dim', 'mlp_dim', 'max_positions',
         'positions', 'rope_theta', 'norm', 'norm_eps', 'mlp', 'use_bias', 'tie_embeddings']
NAMES = [name for name in vars(sizes) if callable(getattr(sizes, name)) and name not in ('ConfigDict', 'llama')]


def preset(name: str) -> ModelConfig:
    return from_dict(ModelConfig, getattr(sizes, name)().to_dict())


def pretrain(name: str) -> PretrainConfig:
    return stage_config(base.pretrain(getattr(sizes, name)()))


@pytest.mark.parametrize('name', ['tiny', 'mini', 'gpt2', 'llama2_7b', 'llama3_8b', 'llama3_70b'])
def test_fields_at_their_neutral_values_are_left_out(name):
    """Of the identity, so that old runs are found; of the manifest, so that old checkpoints are still parents."""
    assert list(preset(name).stored()) == FIRST
    in_identity = {key.removeprefix('model.') for key in identity_dict(pretrain(name)) if key.startswith('model.')}
    assert in_identity == set(FIRST)


def test_a_field_that_is_set_is_in_the_identity():
    names = {key for key in identity_dict(pretrain('gemma3_4b')) if key.startswith('model.')}
    assert {'model.window', 'model.qk_norm', 'model.rope_scaling.factor', 'model.embed_scale'} <= names
    assert not {'model.attention_softcap', 'model.kind', 'model.token_types'} & names


@pytest.mark.parametrize('name', NAMES)
def test_every_preset_is_sound_and_comes_back_from_what_is_stored(name):
    config = preset(name)
    assert from_dict(ModelConfig, config.stored()) == config


@pytest.mark.parametrize('changes, message', [
    ({'kind': 'both'}, "model.kind='both' is not known; use one of decoder, encoder, two_stream, vision"),
    ({'mlp': 'relu'}, "model.mlp='relu' is not known; use one of gelu, swiglu, geglu, gelu_exact"),
    ({'positions': 'relative'}, "model.positions='relative' does not go with the rest"),
    ({'kind': 'two_stream'}, "model.positions='rotary' does not go with the rest"),
    ({'window': -1}, 'model.window=-1 is less than 0'),
    ({'window': 4, 'kind': 'encoder'}, 'model.window=4 does not go with the rest of the model: only a decoder has one'),
    ({'global_every': 2}, 'model.global_every=2 does not go with the rest of the model: it needs a model.window'),
    ({'rope_local_theta': 1e4}, 'model.rope_local_theta=10000.0 does not go with the rest'),
    ({'norm': 'layernorm', 'norm_offset': 1.0}, "model.norm='layernorm' does not go with the rest"),
    ({'norm': 'layernorm', 'qk_norm': True}, "model.norm='layernorm' does not go with the rest"),
    ({'norm_first': False, 'sandwich_norms': True}, 'model.sandwich_norms=True does not go with the rest'),
    ({'positions': 'learned', 'rope_scaling': RopeScaling('linear', 2.0)}, 'model.rope_scaling='),
    ({'kind': 'vision', 'token_types': 2}, 'model.token_types=2 does not go with the rest'),
    ({'vocab_size': 0}, 'model.vocab_size=0 is less than 1'),
    ({'kind': 'vision', 'positions': 'learned', 'image_size': 32, 'patch_size': 16, 'image_channels': 3},
     'model.max_positions=256 is not one class token and the whole patches of patch_size=16 in image_size=32; use 5'),
    ({'kind': 'vision', 'positions': 'learned', 'image_size': 32, 'patch_size': 16},
     'model.image_channels=0 is less than 1')])
def test_what_does_not_go_together_is_named(changes, message):
    with pytest.raises(UserError) as error:
        tiny.model(**changes)
    assert str(error.value).startswith(message) and '\n' not in str(error.value)


@pytest.mark.parametrize('values, message', [
    (('yarn', 2.0), "model.rope_scaling.kind='yarn' is not known; use one of linear, llama3"),
    (('linear', 0.5), 'model.rope_scaling.factor=0.5 is less than 1'),
    (('llama3', 8.0), 'model.rope_scaling.low_freq_factor=0.0 is less than 1'),
    (('llama3', 8.0, 4.0, 4.0, 64), 'model.rope_scaling.high_freq_factor=4.0 is not more than low_freq_factor=4.0')])
def test_scaling_that_cannot_be_is_named(values, message):
    with pytest.raises(UserError) as error:
        RopeScaling(*values)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize('name', ['bert_base', 'xlnet_base', 'vit_b16'])
def test_only_a_decoder_is_pretrained_on_next_tokens(name):
    with pytest.raises(UserError, match='does not predict the next token; use decoder'):
        pretrain(name)


def test_every_field_has_its_line_in_base():
    assert list(base.model().to_dict().keys() ^ {field.name for field in dataclasses.fields(ModelConfig)}) == []

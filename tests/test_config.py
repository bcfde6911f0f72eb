"""Configs at the door: what is unknown, missing or ill-typed is named; what was finished stays the same run."""

import dataclasses
import importlib
import pathlib

from ml_collections import ConfigDict
import pytest

from configs import base
from configs import sizes
from llm.config import SamplesConfig, stage_config, StageConfig, STAGES
from llm.door import from_dict
from llm.errors import UserError
from llm.execution import ExecConfig
from llm.identity import digest, identity_dict

RECIPES = [path.stem for path in pathlib.Path(base.__file__).parent.glob('*.py')
           if path.stem not in ('__init__', 'base', 'sizes')]
BASES = {'pretrain': lambda: base.pretrain(sizes.tiny()), 'sft': base.sft, 'reward': base.reward, 'ppo': base.ppo}


def at(values: dict, key: str) -> tuple[dict, str]:
    """The section that a dotted key is in, and its name there."""
    *sections, name = key.split('.')
    for section in sections:
        values = values[section]
    return values, name


def default(stage: str = 'pretrain', /, **changes) -> ConfigDict:
    """The config of base.py, with values set by dotted key, whatever their types."""
    values = BASES[stage]().to_dict()
    for key, value in (({'reward_from': 'stage:reward'} if stage == 'ppo' else {}) | changes).items():
        section, name = at(values, key)
        section[name] = value
    return ConfigDict(values)


def flat(value, path: str = '') -> set[str]:
    if not isinstance(value, dict) or not value:
        return {path}
    return {name for key, item in value.items() for name in flat(item, f'{path}.{key}')}


@pytest.mark.parametrize('stage', STAGES)
def test_base_lists_every_key_of_a_stage_and_no_other(stage):
    config = default(stage, **{'data.sources': {'mine': base.source(text='x')}})
    parsed = stage_config(config)
    assert type(parsed) is STAGES[stage]
    assert flat(config.to_dict()) == flat(dataclasses.asdict(parsed))


@pytest.mark.parametrize('recipe', RECIPES)
def test_recipe_parses_in_every_variant(recipe):
    get_config = importlib.import_module(f'configs.{recipe}').get_config
    with pytest.raises(ValueError, match="variant 'nonesuch' is not known; use one of ") as error:
        get_config('nonesuch')
    named = str(error.value).split('use one of ')[1].removesuffix(', or none').split(', ')
    assert 'tiny' in named
    for variant in ('', *named):
        config = get_config(variant)
        for stage in config.get('stages', {'': config}).values():
            if stage.stage == 'ppo' and stage.reward_from is None:
                stage.reward_from = 'stage:reward'
            parsed = stage_config(stage)
            assert from_dict(STAGES[stage.stage], dataclasses.asdict(parsed)) == parsed


@pytest.mark.parametrize('stage, key, message', [
    ('pretrain', 'optim.learning_rat', 'unknown config key optim.learning_rat; did you mean learning_rate?'),
    ('pretrain', 'batchsize', 'unknown config key batchsize; did you mean batch_size?'),
    ('sft', 'exec.mesh.fsd', 'unknown config key exec.mesh.fsd; did you mean fsdp?'),
    ('pretrain', 'exec.mesh.xyz', 'unknown config key exec.mesh.xyz; known: context, data, fsdp, tensor'),
])
def test_unknown_key_is_named_with_the_nearest(stage, key, message):
    with pytest.raises(UserError) as error:
        stage_config(default(stage, **{key: 1}))
    assert str(error.value).startswith(message)


def test_unknown_key_of_a_source_is_named_with_its_source():
    with pytest.raises(UserError, match=r'unknown config key data.sources.mine.jsnl; did you mean jsonl\?'):
        stage_config(default(**{'data.sources': {'mine': base.source(jsnl='x')}}))


@pytest.mark.parametrize('key', ['seed', 'optim.b1', 'exec.mesh.data', 'model.norm', 'tokenizer'])
def test_missing_key_is_named(key):
    values = default().to_dict()
    section, name = at(values, key)
    del section[name]
    with pytest.raises(UserError, match=f'config key {key} is missing; configs/base.py lists every key'):
        from_dict(STAGES['pretrain'], values)


@pytest.mark.parametrize('key, value, message', [
    ('batch_size', '8', "batch_size='8' is not int"),
    ('batch_size', 8.0, 'batch_size=8.0 is not int'),
    ('batch_size', None, 'batch_size=None is not int'),
    ('seed', True, 'seed=True is not int'),
    ('dropout', True, 'dropout=True is not float'),
    ('optim.learning_rate', '1e-3', "optim.learning_rate='1e-3' is not float"),
    ('model.use_bias', 1, 'model.use_bias=1 is not bool'),
    ('init_from', 3, 'init_from=3 is not str'),
    ('optim', 3, 'optim=3 is not a section of keys'),
    ('data.sources', 3, 'data.sources=3 is not a section of keys'),
    ('data.sources', {'mine': 3}, 'data.sources.mine=3 is not a section of keys'),
    ('samples.prompts', 'Hello', "samples.prompts='Hello' is not a tuple; write it as ('Hello',)"),
    ('samples.prompts', (1,), 'samples.prompts=1 is not str'),
    ('exec.rules.mlp', 'tensor', "exec.rules.mlp='tensor' is not a tuple; write it as ('tensor',)"),
])
def test_value_of_another_type_is_named(key, value, message):
    with pytest.raises(UserError) as error:
        stage_config(default(**{key: value}))
    assert str(error.value).startswith(message) and '\n' not in str(error.value)


@pytest.mark.parametrize('stage, key, value, message', [
    ('sft', 'stage', 'stf', "stage='stf' is not a stage; use one of pretrain, sft, reward, ppo"),
    ('pretrain', 'exec.remat', 'all', "exec.remat='all' is not known; use one of none, minimal, qkv, full, offload"),
    ('pretrain', 'exec.compute_dtype', 'float16', "exec.compute_dtype='float16' is not known; use one of"),
    ('pretrain', 'optim.schedule', 'linear', "optim.schedule='linear' is not known; use one of"),
    ('pretrain', 'model.mlp', 'relu', "model.mlp='relu' is not known; use one of gelu, swiglu"),
    ('pretrain', 'model.num_kv_heads', 3, 'model.num_heads=4 is not a multiple of model.num_kv_heads=3'),
    ('pretrain', 'model.num_kv_heads', 0, 'model.num_kv_heads=0 is less than 1; use 1 or more'),
    ('pretrain', 'model.num_layers', 0, 'model.num_layers=0 is less than 1; use 1 or more'),
    ('pretrain', 'model.head_dim', 15, 'model.head_dim=15 is odd'),
    ('pretrain', 'exec.micro_batches', 3, 'batch_size=16 is not divisible by exec.micro_batches=3'),
    ('pretrain', 'exec.micro_batches', 0, 'exec.micro_batches=0 is less than 1; use 1 or more'),
    ('pretrain', 'exec.attention', 'flash', "exec.attention='flash' is not known; use one of einsum, splash"),
    ('pretrain', 'exec.logits_chunk_vocab', 0, 'exec.logits_chunk_vocab=0 is less than 1; use 1 or more'),
    ('pretrain', 'exec.scan_unroll', -1, 'exec.scan_unroll=-1 is less than 0'),
    ('pretrain', 'batch_size', 0, 'batch_size=0 is less than 1; use 1 or more'),
    ('pretrain', 'eval_rows', 0, 'eval_rows=0 is less than 1; use 1 or more'),
    ('pretrain', 'figures.yardstick_bytes', 10, 'figures.yardstick_bytes=10 is less than 1000; use 1000 or more'),
    ('pretrain', 'dropout', 1.0, 'dropout=1.0 is not a probability below 1'),
    ('pretrain', 'keep_checkpoints', 1, 'keep_checkpoints=1 leaves nothing to fall back to; use 2 or more'),
    ('sft', 'patience', 0, 'patience=0 is less than 1; use 1 or more'),
    ('reward', 'ranked_answers', 1, 'ranked_answers=1 is less than 2; use 2 or more'),
    ('reward', 'normalize_samples', 1, 'normalize_samples=1 is less than 2'),
    ('reward', 'temperature', -1.0, 'temperature=-1.0 is not positive'),
    ('ppo', 'temperature', 0.0, 'temperature=0.0 is not positive; use more than 0'),
    ('ppo', 'epochs', 0, 'epochs=0 is less than 1; use 1 or more'),
    ('ppo', 'rollout_batch', 40, 'rollout_batch=40 is not divisible by batch_size=16'),
    ('ppo', 'seq_len', 100, 'seq_len=100 is not max_prompt_tokens=64 plus max_new_tokens=48'),
])
def test_value_that_cannot_be_is_named(stage, key, value, message):
    with pytest.raises(UserError) as error:
        stage_config(default(stage, **{key: value}))
    assert str(error.value).startswith(message) and '\n' not in str(error.value)


@pytest.mark.parametrize('kinds', [{}, {'text': 'a', 'jsonl': 'b'}])
def test_source_is_of_one_kind(kinds):
    with pytest.raises(UserError, match='set exactly one'):
        stage_config(default(**{'data.sources': {'mine': base.source(**kinds)}}))


def test_whole_number_is_a_float_where_one_is_asked_for():
    rate = stage_config(default(**{'optim.learning_rate': 1})).optim.learning_rate
    assert (rate, type(rate)) == (1.0, float)


# A config as a finished run might have stored it: every key that there was, but those at a neutral default.
# Neither it nor the hashes below may change: a run that was finished must be found again.
OLD_SOURCE = {'tfds': None, 'jsonl': None, 'text': None, 'fields': {}, 'train_split': 'train',
              'validation_split': 'validation', 'validation_files': None, 'holdout_percent': 5.0, 'weight': 1.0}
OLD_DATA = {'sources': {'mine': {**OLD_SOURCE, 'tfds': 'bible', 'fields': {'text': 'verse'}}},
            'data_dir': 'data', 'max_bad_percent': 1.0}
OLD = {
    'seed': 0, 'init_from': 'stage:before', 'data': OLD_DATA, 'batch_size': 16, 'seq_len': 112, 'stop_step': 1000,
    'dropout': 0.1, 'log_every_steps': 10, 'eval_every_steps': 200, 'eval_rows': 256, 'save_every_steps': 200,
    'keep_checkpoints': 2,
    'exec': {'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1}, 'rules': {'mlp': ('tensor',), 'norm': ()},
             'compute_dtype': 'bfloat16', 'remat': 'none', 'scan_unroll': 0, 'logits_chunk_vocab': 128,
             'micro_batches': 1},
    'optim': {'learning_rate': 1e-3, 'warmup_steps': 100, 'schedule': 'wsd', 'schedule_steps': 1000,
              'decay_fraction': 0.2, 'final_fraction': 0.1, 'weight_decay': 0.1, 'b1': 0.9, 'b2': 0.95, 'eps': 1e-8,
              'clip_norm': 1.0},
    'samples': {'prompts': ('In the beginning',), 'max_new_tokens': 48, 'temperature': 0.7}}
OLD_STAGES = {
    'pretrain': {
        'model': {'vocab_size': 512, 'model_dim': 64, 'num_layers': 2, 'num_heads': 4, 'num_kv_heads': 2,
                  'head_dim': 16, 'mlp_dim': 128, 'max_positions': 256, 'positions': 'rotary', 'rope_theta': 10_000.0,
                  'norm': 'rmsnorm', 'norm_eps': 1e-5, 'mlp': 'swiglu', 'use_bias': False, 'tie_embeddings': True},
        'tokenizer': {'path': None, 'train_bytes': 10_000_000}, 'z_loss': 1e-4},
    'sft': {'patience': 3},
    'reward': {'ranked_answers': 4, 'prompt_data': OLD_DATA, 'normalize_samples': 256, 'max_prompt_tokens': 64,
               'max_new_tokens': 48, 'temperature': 1.0},
    'ppo': {'dropout': 0.0, 'reward_from': 'stage:reward', 'rollout_batch': 64, 'epochs': 4, 'max_prompt_tokens': 64,
            'max_new_tokens': 48, 'temperature': 1.0, 'discount': 1.0, 'gae_lambda': 0.95, 'clip_epsilon': 0.2,
            'value_clip_epsilon': 0.2, 'value_coef': 0.5, 'value_learning_rate': 1e-4, 'value_warmup_steps': 2,
            'kl_coef': 0.05, 'kl_target': 6.0, 'kl_horizon': 10_000.0, 'kl_budget': 20.0,
            'missing_eos_penalty': 1.0}}


def old(stage: str) -> StageConfig:
    return from_dict(STAGES[stage], {'stage': stage, **OLD, **OLD_STAGES[stage]})


@pytest.mark.parametrize('stage, frozen', [
    ('pretrain', 'ad3bd7401d1d571b8711c26da5198f263a8f9351fe0e457219bcbbe1f07eecd6'),
    ('sft', '155d21558841eeec881a4714528b98aaf32316ba04d88c916d71eee49c5dd84c'),
    ('reward', 'ad6f5f3ed2eb15cb40891f6fecf0804c7e21c001850090eb5a27833040b25938'),
    ('ppo', '816d46a47ae217d7a2324fe4683db955228d0fc0e11a1efbf59f53c23f39983e'),
])
def test_identity_of_an_old_config_never_changes(stage, frozen):
    assert digest(identity_dict(old(stage))) == frozen


def test_neutral_default_is_not_in_the_identity():
    config = old('pretrain')
    assert 'optim.ema_decay' not in identity_dict(config)
    averaged = dataclasses.replace(config, optim=dataclasses.replace(config.optim, ema_decay=0.99))
    assert identity_dict(averaged) == {**identity_dict(config), 'optim.ema_decay': 0.99}


def test_place_of_the_data_is_not_in_the_identity():
    def identity(**keys):
        values = {**OLD['data'], 'sources': {'mine': {**OLD_SOURCE, **keys}}}
        config = from_dict(STAGES['pretrain'], {'stage': 'pretrain', **OLD, **OLD_STAGES['pretrain'], 'data': values})
        return identity_dict(config)
    assert identity(jsonl='a') == identity(jsonl='b', validation_files='c')
    assert identity(jsonl='a', fields={'text': 'verse'}) != identity(jsonl='a')


def test_how_and_how_long_a_run_is_made_is_not_in_its_identity():
    execution = from_dict(ExecConfig, {
        'mesh': {'data': 2, 'fsdp': 2, 'tensor': 2}, 'rules': {}, 'compute_dtype': 'bfloat16', 'remat': 'full',
        'scan_unroll': 1, 'logits_chunk_vocab': 7, 'micro_batches': 4})
    other = dataclasses.replace(
        old('pretrain'), exec=execution, stop_step=2000, log_every_steps=1, save_every_steps=7, keep_checkpoints=3,
        samples=SamplesConfig((), 1, 1.0), init_from=None,
        data=dataclasses.replace(old('pretrain').data, data_dir='elsewhere'))
    assert identity_dict(other) == identity_dict(old('pretrain'))


@pytest.mark.parametrize('key, value', [
    ('exec.compute_dtype', 'float32'), ('optim.schedule_steps', 2000), ('eval_every_steps', 100), ('seed', 1),
    ('model.num_layers', 3), ('data.sources.mine.weight', 0.5), ('optim.learning_rate', 1e-4)])
def test_key_that_changes_the_result_is_in_the_identity(key, value):
    changed = dataclasses.asdict(old('pretrain'))
    section, name = at(changed, key)
    section[name] = value
    before, after = identity_dict(old('pretrain')), identity_dict(from_dict(STAGES['pretrain'], changed))
    assert {name for name in before | after if before.get(name) != after.get(name)} == {key}

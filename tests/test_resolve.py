"""A parent that does not fit is refused, in one line that names the key, both values and the remedy."""

import dataclasses
import json
import pathlib
import shutil

from ml_collections import ConfigDict
import pytest

from configs import base
from llm.config import DataConfig, stage_config
from llm.data import tokenizer as tokenizers
from llm.door import from_dict
from llm.errors import UserError
from llm.manifest import manifest_path, read, write
from llm.resolve import bring, content, first_bytes
from llm.run import read_result
from tests import damage
from tests import tiny


@pytest.fixture
def workdir(finished_pipeline, tmp_path) -> pathlib.Path:
    """A copy of the finished pipeline's folders."""
    return shutil.copytree(finished_pipeline, tmp_path / 'runs')


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def folder_of(workdir: pathlib.Path, name: str) -> pathlib.Path:
    folder, = workdir.glob(f'{name}-*')
    return folder


def alone(workdir: pathlib.Path, name: str, **changes) -> ConfigDict:
    """A config of one stage, whose parents are the folders of the workdir."""
    config = tiny.pipeline_config(workdir).stages[name]
    for key in ('init_from', 'reward_from'):
        if config.get(key):
            config[key] = str(folder_of(workdir, config[key].removeprefix('stage:')))
    config.update_from_flattened_dict(changes)
    return config


def refusal(config: ConfigDict, workdir: pathlib.Path) -> str:
    """The line with which the pipeline refuses this config."""
    with pytest.raises(UserError) as error:
        tiny.run(config, workdir)
    assert '\n' not in str(error.value)
    return str(error.value)


def rewrite(folder: pathlib.Path, step: int, **changes) -> None:
    """The manifest of a step with other fields, sealed as the code that wrote it would have."""
    write(folder / 'checkpoints', dataclasses.replace(read(folder / 'checkpoints', step), **changes))


@pytest.mark.parametrize('child, key, parent, stages', [
    ('sft', 'init_from', 'ppo', "'pretrain' or 'sft'"), ('sft', 'init_from', 'reward', "'pretrain' or 'sft'"),
    ('reward', 'init_from', 'pretrain', "'sft'"), ('ppo', 'init_from', 'pretrain', "'sft'"),
    ('ppo', 'reward_from', 'sft', "'reward'"), ('pretrain', 'init_from', 'sft', "'pretrain'")])
def test_parent_of_another_stage(workdir, child, key, parent, stages):
    path = folder_of(workdir, parent)
    assert refusal(alone(workdir, child, **{key: str(path)}), workdir / 'new') == (
        f"stage {child}: {key}={path}: stage={parent!r}, wanted {stages} or 'import'; give a step of such a stage")


def test_parent_without_the_head(workdir):
    folder = folder_of(workdir, 'reward')
    rewrite(folder, read_result(folder).step, heads=['token'])
    assert refusal(alone(workdir, 'ppo'), workdir / 'new').endswith(
        "heads=['token'], wanted 'scalar'; give a step that has this head")


def test_parent_that_does_not_predict_the_next_token(workdir):
    folder = folder_of(workdir, 'pretrain')
    step = read_result(folder).step
    model = read(folder / 'checkpoints', step).model
    rewrite(folder, step, model={**model, 'kind': 'two_stream', 'positions': 'relative'})
    assert refusal(alone(workdir, 'sft'), workdir / 'new').endswith(
        "model.kind='two_stream' does not predict the next token; give a decoder")


def test_scorer_with_another_tokenizer(workdir):
    folder = folder_of(workdir, 'reward')
    step = read_result(folder).step
    tokenizer = read(folder / 'checkpoints', step).tokenizer
    rewrite(folder, step, tokenizer={**tokenizer, 'sha256': 'another'})
    assert refusal(alone(workdir, 'ppo'), workdir / 'new') == (
        f"reward_from={folder}: tokenizer.sha256='another', wanted {tokenizer['sha256']!r}; "
        'give a parent with the same tokenizer')


@pytest.mark.parametrize('key, found, wanted', [
    ('vocab_size', 320, 330), ('model_dim', 32, 48), ('num_layers', 2, 3), ('norm', 'rmsnorm', 'layernorm')])
def test_parent_of_another_vocabulary_or_shape(workdir, key, found, wanted):
    path = folder_of(workdir, 'pretrain')
    config = alone(workdir, 'pretrain', **{f'model.{key}': wanted}, init_from=str(path))
    assert refusal(config, workdir / 'new') == (
        f'init_from={path}: model.{key}={found!r}, wanted {wanted!r}; give a parent with the same model')


def test_parent_whose_tokenizer_was_replaced(workdir):
    target = folder_of(workdir, 'pretrain') / 'tokenizer.model'
    tokenizers.train([' '.join(tiny.WORDS)] * 50, 320, 10**6, str(target))
    line = refusal(alone(workdir, 'sft'), workdir / 'new')
    assert 'tokenizer.model has SHA-256' in line and "restore the parent's tokenizer.model" in line


def test_parent_whose_tokenizer_is_damaged(workdir):
    path = folder_of(workdir, 'pretrain') / 'tokenizer.model'
    path.write_bytes(path.read_bytes()[:1000])
    assert 'tokenizer.model' in refusal(alone(workdir, 'sft'), workdir / 'new')


def test_tokenizer_of_another_size_than_the_model(workdir):
    path = str(folder_of(workdir, 'pretrain') / 'tokenizer.model')
    config = alone(workdir, 'pretrain', **{'tokenizer.path': path, 'model.vocab_size': 330})
    assert refusal(config, workdir / 'new') == (
        "model.vocab_size=330 is not the tokenizer's 320; make them equal")


def test_parent_of_another_dtype(workdir):
    folder = folder_of(workdir, 'pretrain')
    leaves = read(folder / 'checkpoints', 4).leaves
    path = sorted(leaves['params'])[0]
    leaves['params'][path]['dtype'] = 'bfloat16'
    rewrite(folder, 4, leaves=leaves)
    assert f'params/{path} has dtype bfloat16, wanted float32' in refusal(alone(workdir, 'sft'), workdir / 'new')


@pytest.mark.parametrize('spoil', [damage.flip_bit, damage.truncate, damage.copy_half, shutil.rmtree])
def test_damaged_parent_is_refused_and_the_step_before_it_is_named(workdir, spoil, capfd):
    folder = folder_of(workdir, 'pretrain') / 'checkpoints'
    spoil(folder / '4' / 'params')
    line = refusal(alone(workdir, 'sft'), workdir / 'new')
    assert line.startswith(f'{folder}@4 is refused: ') and line.endswith(f'; use {folder}@2')
    assert 'Traceback' not in capfd.readouterr().err


def test_unsealed_parent(workdir):
    folder = folder_of(workdir, 'pretrain') / 'checkpoints'
    manifest_path(folder, 4).unlink()
    assert refusal(alone(workdir, 'sft'), workdir / 'new') == (
        f'stage sft: {manifest_path(folder, 4)} is not there: no such sealed step; use one of these: 2')


def test_parent_of_an_unknown_version(workdir):
    folder = folder_of(workdir, 'pretrain')
    rewrite(folder, 4, version=99)
    assert 'has version=99, this code reads version=1; use the code that wrote it' in refusal(
        alone(workdir, 'sft'), workdir / 'new')


@pytest.mark.parametrize('reference, what', [
    ('nowhere', 'init_from=nowhere has no checkpoint; name the folder of a run'),
    ('nowhere@4', 'no such sealed step; use one of these: none'),
    ('nowhere@last', "init_from='nowhere@last': 'last' after @ is not a step; write PATH or PATH@100")])
def test_parent_that_is_not_there(workdir, reference, what, monkeypatch):
    monkeypatch.chdir(workdir)
    assert what in refusal(alone(workdir, 'sft', init_from=reference), workdir / 'new')


def test_rows_longer_than_the_model_has_positions(workdir):
    line = 'seq_len=65 is more than model.max_positions=64; use shorter rows'
    assert refusal(alone(workdir, 'pretrain', seq_len=65), workdir / 'new') == f'pretrain: {line}'
    assert refusal(alone(workdir, 'sft', seq_len=65), workdir / 'new') == f'sft: {line}'


def test_chosen_step_of_a_finished_run_and_a_named_one(workdir, monkeypatch):
    asked = []
    monkeypatch.setattr('llm.stages.sft.run', lambda run: asked.append(run.parents['init_from'].step) or 1 / 0)
    path = folder_of(workdir, 'pretrain')
    result = json.loads((path / 'result.json').read_text())
    (path / 'result.json').write_text(json.dumps({**result, 'step': 2}))
    for reference in (path, f'{path}@4'):
        with pytest.raises(ZeroDivisionError):
            tiny.run(alone(workdir, 'sft', init_from=str(reference)), workdir / 'new')
    assert asked == [2, 4]


@pytest.mark.parametrize('name, key', [('sft', 'data'), ('reward', 'prompt_data')])
def test_missing_data_file(workdir, name, key):
    config = alone(workdir, name)
    source, = config[key].sources.values()
    source.jsonl = 'nowhere/*.jsonl'
    assert refusal(config, workdir / 'new') == (
        f'stage {name}: jsonl=nowhere/*.jsonl matches no file; check the path')


def test_tokenizer_of_no_text(workdir):
    config = alone(workdir, 'pretrain')
    config.data.sources.text.jsonl = str(workdir / 'chats.jsonl')
    assert refusal(config, workdir / 'new').startswith('data.sources.text has records of messages, but a tokenizer is')


def test_no_data(workdir):
    config = alone(workdir, 'sft')
    config.data.sources = {}
    assert refusal(config, workdir / 'new') == (
        'stage sft: data.sources is empty; name at least one source in the config')


def test_bad_rows_above_the_share(workdir):
    with (workdir / 'chats.jsonl').open('ab') as file:
        file.write(b'{"messages": [\n\xff\n')
    assert refusal(alone(workdir, 'sft'), workdir / 'new').startswith(
        f'2 of 122 rows are bad, more than data.max_bad_percent=1.0: {workdir}/chats.jsonl:121: not JSON; '
        f'{workdir}/chats.jsonl:122: invalid UTF-8')


def test_identity_holds_the_content_of_all_data_that_trains(tmp_path):
    tiny.write_data(tmp_path)
    config = tiny.pipeline_config(tmp_path).stages.ppo
    config.ptx_data = base.data(chats=base.source(jsonl=str(tmp_path / 'chats.jsonl')))
    config.gold_data = base.data(rated=base.source(jsonl=str(tmp_path / 'text.jsonl')))
    hashes = content('ppo', stage_config(config), silent)
    assert set(hashes) == {'data.prompts', 'ptx_data.chats', 'gold_data.rated'}
    assert all(set(splits) == {'train', 'validation'} for splits in hashes.values())
    config.ptx_coef, config.ptx_data, config.gold_data = 0.0, base.data(), base.data()
    assert content('ppo', stage_config(config), silent) == {'data.prompts': hashes['data.prompts']}


@pytest.mark.parametrize('words, hashed', [(13, {'train', 'validation', 'test'}), (0, {'train', 'validation'})])
def test_identity_holds_the_test_split_where_training_rows_are_kept_apart_from_it(tmp_path, words, hashed):
    config = tiny.pipeline_config(tmp_path).stages.sft
    config.data = base.data(answer=base.source(tfds='exchanges'))
    config.data.clean.overlap_words = words
    assert set(content('sft', stage_config(config), silent)['data.answer']) == hashed


def test_all_data_of_a_stage_is_brought_choices_and_gold_too(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr('llm.data.sources.materialize', lambda source, data_dir, progress: built.append(source.jsonl))
    for name, files in (('sft', {'chats', 'choices'}), ('ppo', {'prompts', 'chats', 'rated'})):
        config = tiny.pipeline_config(tmp_path).stages[name]
        bring(stage_config(config), silent)
        assert {pathlib.Path(path).stem for path in built} == files
        built.clear()


def test_what_is_only_measured_on_is_no_part_of_the_identity(tmp_path):
    tiny.write_data(tmp_path)
    config = tiny.pipeline_config(tmp_path).stages.sft
    before = content('sft', stage_config(config), silent)
    config.choices = base.data(labels=base.source(jsonl=str(tmp_path / 'chats.jsonl')))
    assert content('sft', stage_config(config), silent) == before


def test_tokenizer_is_trained_on_cleaned_text(tmp_path):
    rows = ['cafe\u0301', 'x', 'the king', 'The KING', 'the queen']
    (tmp_path / 'text.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in rows))
    data = from_dict(DataConfig, base.data(mine=base.source(
        jsonl=str(tmp_path / 'text.jsonl'), holdout_percent=0.0)).to_dict())
    assert list(first_bytes('mine', data, 1000)) in [['café', king, 'the queen'] for king in ('the king', 'The KING')]
    assert list(first_bytes('mine', data, 3)) == ['caf']


def test_each_run_says_what_its_data_held(finished_pipeline):
    found = {folder.name.split('-')[0]: json.loads((folder / 'data.json').read_text())
             for folder in finished_pipeline.glob('*-????????')}
    assert {name: set(said) for name, said in found.items()} == {
        'pretrain': {'data.text'}, 'sft': {'data.chats', 'choices.choices'},
        'reward': {'data.ranked', 'prompt_data.prompts'}, 'ppo': {'data.prompts', 'gold_data.rated'}}
    for splits in found['pretrain']['data.text'], found['sft']['data.chats']:
        assert set(splits) == {'train', 'validation'}
        for account in splits.values():
            assert account['documents'] >= account['kept'] >= account['records'] > 0
            assert account['rows'] > 0 and account['tokens'] > account['records']
            assert account['chars'] >= account['kept_chars'] > account['kept']
    account, = found['sft']['choices.choices'].values()  # only measured on
    assert account['documents'] >= account['kept'] > 0 and 'rows' not in account

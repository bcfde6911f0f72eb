"""Who is finished and who runs next: nothing is made twice, nothing is lost, and the reason is said in one line."""

import dataclasses
import itertools
import json
import pathlib
import shutil

from ml_collections import ConfigDict
import pytest

from llm.config import StageConfig
from llm.errors import StorageError, UserError
from llm.manifest import read, sealed_steps, write
from llm.pipeline import parse, topological
from llm.stages import pretrain, sft
from tests import tiny
from tests.damage import flip_bit


class Started(Exception):
    """A stage was about to run."""


@pytest.fixture
def workdir(finished_pipeline, tmp_path) -> pathlib.Path:
    """A copy of the finished pipeline's folders."""
    return shutil.copytree(finished_pipeline, tmp_path / 'runs')


@pytest.fixture
def nothing_runs(monkeypatch):
    def start(run):
        raise Started(run.name)
    for stage in (pretrain, sft):
        monkeypatch.setattr(stage, 'run', start)


def first(config: ConfigDict, *names: str) -> ConfigDict:
    """The pipeline of these stages alone."""
    return ConfigDict({'stages': {name: config.stages[name] for name in names}})


def folder_of(workdir: pathlib.Path, name: str) -> pathlib.Path:
    folder, = (path for path in workdir.glob(f'{name}-*') if '.replaced-' not in path.name)
    return folder


def rows(folder: pathlib.Path) -> list[dict]:
    """The metric rows, without what no two runs share."""
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != 'time'} for line in lines]


def bytes_of(workdir: pathlib.Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in workdir.rglob('*') if path.is_file()}


# The graph.

def stages(**init_from: str | None) -> dict[str, StageConfig]:
    """Stages of the kind sft, whose names and parents are given."""
    config = parse(tiny.pipeline_config(pathlib.Path('nowhere')))['sft']
    return {name: dataclasses.replace(config, init_from=parent) for name, parent in init_from.items()}


@pytest.mark.parametrize('names', list(itertools.permutations(('pretrain', 'sft', 'reward', 'ppo'))))
def test_parents_come_first(names):
    config = parse(tiny.pipeline_config(pathlib.Path('nowhere')))
    assert topological({name: config[name] for name in names}) == ['pretrain', 'sft', 'reward', 'ppo']


def test_siblings_keep_their_order():
    assert topological(stages(c='stage:b', b='stage:z', a='stage:z', z='runs/x')) == ['z', 'b', 'c', 'a']


@pytest.mark.parametrize('parents, circle', [
    ({'a': 'stage:a'}, 'a -> a'), ({'a': 'stage:b', 'b': 'stage:c', 'c': 'stage:b'}, 'b -> c -> b')])
def test_circle_is_refused(parents, circle):
    with pytest.raises(UserError, match=f'stages wait for each other: .*{circle}; change one init_from'):
        topological(stages(**parents))


def test_unknown_stage_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r'b.init_from=stage:basse names no stage; did you mean base\?'):
        topological(stages(base='runs/x', b='stage:basse'))


def test_missing_parent_is_named():
    with pytest.raises(UserError, match='mine needs a parent and init_from is empty; set init_from to stage:NAME or'):
        topological(stages(mine=None))


def test_key_beside_the_stages_is_refused():
    config = tiny.pipeline_config(pathlib.Path('nowhere'))
    with config.unlocked():
        config.seed = 1
    with pytest.raises(UserError, match='unknown config key seed; in a pipeline, keys belong to a stage'):
        parse(config)


# What runs.

def test_finished_stage_is_not_run_again(workdir, nothing_runs):
    before, said = bytes_of(workdir), []
    results = tiny.run(tiny.pipeline_config(workdir), workdir, say=said.append)
    assert bytes_of(workdir) == before
    assert list(results) == ['pretrain', 'sft', 'reward', 'ppo']
    assert [line.split('  ')[:2] for line in said] == [
        [name, f'finished at step {result.step} ({result.why})'] for name, result in results.items()]


@pytest.fixture(scope='module')
def uninterrupted(finished_pipeline, tmp_path_factory) -> pathlib.Path:
    """The folder of a pretraining run of 6 steps."""
    workdir = tmp_path_factory.mktemp('uninterrupted')
    config = tiny.pipeline_config(finished_pipeline, **{'pretrain.stop_step': 6})
    tiny.run(first(config, 'pretrain'), workdir)
    return folder_of(workdir, 'pretrain')


@pytest.mark.parametrize('damaged', [False, True])
def test_extended_run_goes_on_as_if_it_had_never_ended(workdir, uninterrupted, damaged):
    folder, said = folder_of(workdir, 'pretrain'), []
    if damaged:
        flip_bit(folder / 'checkpoints' / '4' / 'params')
    config = tiny.pipeline_config(workdir, **{'pretrain.stop_step': 6})
    result = tiny.run(first(config, 'pretrain'), workdir, say=said.append)['pretrain']
    assert 'pretrain  goes on from step 4 to stop_step=6' in said
    assert f'pretrain  goes on from step {2 if damaged else 4}' in said
    assert len([line for line in said if f'{folder}/checkpoints@4 is refused: ' in line]) == damaged
    assert (result.last_step, folder_of(workdir, 'pretrain')) == (6, folder)
    assert rows(folder) == rows(uninterrupted)
    assert read(folder / 'checkpoints', 6).leaves == read(uninterrupted / 'checkpoints', 6).leaves


def test_shorter_stop_step_keeps_the_longer_run(workdir, nothing_runs):
    config = tiny.pipeline_config(workdir, **{'pretrain.stop_step': 2})
    assert tiny.run(config, workdir)['pretrain'].last_step == 4


def test_a_run_that_goes_on_shows_no_end_that_it_has_not_come_to(workdir, nothing_runs):
    folder, ends = folder_of(workdir, 'pretrain'), ('result.json', 'figures.json', 'samples.jsonl')
    assert all((folder / name).exists() for name in ends)
    with pytest.raises(Started):
        tiny.run(tiny.pipeline_config(workdir, **{'pretrain.stop_step': 6}), workdir)
    assert not any((folder / name).exists() for name in ends)
    assert (folder / 'metrics.jsonl').exists()


@pytest.mark.parametrize('key, value, line', [
    ('pretrain.optim.learning_rate', 1e-2, 'optim.learning_rate: 0.005 -> 0.01'),
    ('pretrain.seed', 1, 'seed: 0 -> 1'),
    ('pretrain.model.num_layers', 3, 'model.num_layers: 2 -> 3'),
    ('sft.patience', 1, 'patience: 3 -> 1'),
    ('sft.eval_every_steps', 1, 'eval_every_steps: 2 -> 1')])
def test_changed_key_makes_a_new_run_and_is_named(workdir, nothing_runs, key, value, line):
    name, said = key.split('.')[0], []
    old = folder_of(workdir, name)
    with pytest.raises(Started, match=name):
        tiny.run(tiny.pipeline_config(workdir, **{key: value}), workdir, say=said.append)
    assert [text for text in said if 'differs' in text] == [f'{name}  a new run; {old.name} differs in {line}']
    assert len(list(workdir.glob(f'{name}-*'))) == 2


def test_changed_data_makes_a_new_run_and_is_named(workdir, nothing_runs):
    with (workdir / 'text.jsonl').open('a') as file:
        file.write('{"text": "one more king"}\n')
    said = []
    with pytest.raises(Started, match='pretrain'):
        tiny.run(tiny.pipeline_config(workdir), workdir, say=said.append)
    line, = (text for text in said if 'differs' in text)
    assert 'data.text.train: ' in line and 'learning_rate' not in line


@pytest.mark.parametrize('overrides', [
    {'pretrain.exec.mesh.data': 8, 'sft.exec.micro_batches': 2}, {'pretrain.exec.remat': 'full'},
    {'sft.log_every_steps': 3, 'sft.samples.prompts': ()}])
def test_key_that_changes_no_result_makes_no_new_run(workdir, nothing_runs, overrides):
    tiny.run(tiny.pipeline_config(workdir, **overrides), workdir)


def test_rerun_sets_the_old_run_aside_and_children_of_equal_weights_stay(workdir, monkeypatch):
    monkeypatch.setattr(sft, 'run', None)
    old, said = rows(folder_of(workdir, 'pretrain')), []
    tiny.run(tiny.pipeline_config(workdir), workdir, rerun='pretrain', say=said.append)
    folder = folder_of(workdir, 'pretrain')
    aside = workdir / f'{folder.name}.replaced-1'
    assert f'pretrain  the earlier run is now {aside}' in said
    assert not [line for line in said if 'differs' in line]
    assert rows(aside) == rows(folder) == old


def test_rerun_of_an_unknown_stage_is_refused(workdir, nothing_runs):
    with pytest.raises(UserError, match=r'--rerun=sff is not a stage of this pipeline; did you mean sft\?'):
        tiny.run(tiny.pipeline_config(workdir), workdir, rerun='sff')


@pytest.mark.parametrize('made_anew', [False, True])
def test_a_folder_that_vanishes_is_a_matter_of_storage(tmp_path, monkeypatch, made_anew):
    def run(run):
        run.folder.rmtree()
        if made_anew:  # by what was still being written
            (run.folder / 'checkpoints' / '4.orbax-checkpoint-tmp').mkdir(parents=True)
        open(run.folder / 'tensorboard' / 'events')
    monkeypatch.setattr(pretrain, 'run', run)
    tiny.write_data(tmp_path)
    with pytest.raises(StorageError, match='pretrain-.* is gone; bring it back'):
        tiny.run(first(tiny.pipeline_config(tmp_path), 'pretrain'), tmp_path)


@pytest.mark.parametrize('ended', [True, False])
def test_children_of_a_parent_with_other_weights_are_made_again(workdir, nothing_runs, ended):
    folder, said = folder_of(workdir, 'sft'), []
    if not ended:
        (folder / 'result.json').unlink()
    manifest = read(folder / 'checkpoints', sealed_steps(folder / 'checkpoints')[-1])
    record = manifest.parents['init_from'] | {'fingerprint': 'of weights that were there before'}
    write(folder / 'checkpoints', dataclasses.replace(manifest, parents={'init_from': record}))
    with pytest.raises(Started, match='sft'):
        tiny.run(tiny.pipeline_config(workdir), workdir, say=said.append)
    assert 'sft  init_from was made again with other weights, so this stage is too' in said
    assert (workdir / f'{folder.name}.replaced-1' / 'checkpoints').exists()
    assert not (folder / 'checkpoints').exists()


def test_other_source_code_is_said_and_the_run_kept(workdir, nothing_runs, monkeypatch):
    monkeypatch.setattr('llm.provenance.code', lambda: 'another')
    said = []
    tiny.run(tiny.pipeline_config(workdir), workdir, say=said.append)
    assert 'sft  finished under other source code, reused; --rerun=sft makes it again' in said

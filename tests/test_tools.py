"""What a person runs by hand on a finished run: numbers again, samples, the chain back to the raw data."""

import json
import os
import shutil
import sys

import pytest

from llm.main import guarded
from llm.run import read_result
from tests.stages import exactness
from tools import compare, evaluate, lineage, sample


@pytest.fixture
def printed(capsys, monkeypatch):
    """printed(tool, *words) -> the lines that the tool prints, here within this process."""
    def call(tool, *words: str) -> list[str]:
        monkeypatch.setattr(sys, 'argv', [tool.__name__, *words])
        capsys.readouterr()
        assert guarded(tool.main) == 0
        return lines(capsys.readouterr().out)
    return call


@pytest.fixture
def refusal(capsys, monkeypatch):
    """refusal(tool, *words) -> the one line with which the tool refuses them."""
    def call(tool, *words: str) -> str:
        monkeypatch.setattr(sys, 'argv', [tool.__name__, *words])
        capsys.readouterr()
        assert guarded(tool.main) == 2
        out, err = capsys.readouterr()
        assert out == '' and err.startswith('error: ') and err.count('\n') == 1
        return err[len('error: '):-1]
    return call


def lines(text: str) -> list[str]:
    """As JSON lines has them: what else `splitlines` takes for an end may stand in an answer."""
    return text.removesuffix('\n').split('\n')


def samples_of(folder) -> list[dict]:
    """What the finished run said."""
    return [json.loads(line) for line in lines((folder / 'samples.jsonl').read_text())]


@pytest.mark.parametrize('name, step', [('pretrain', 2), ('sft', None), ('ppo', 2)])
def test_evaluate_prints_the_numbers_of_the_steps_row(finished_pipeline, printed, name, step):
    folder = exactness.folder_of(name, finished_pipeline)
    line, = printed(evaluate, str(folder) if step is None else f'{folder}@{step}')
    step = read_result(folder).step if step is None else step
    row, = (row for row in exactness.rows(folder) if (row['step'], row['kind']) == (step, 'evaluate'))
    assert json.loads(line) == {'run': folder.name} | {key: value for key, value in row.items() if key != 'kind'}


@pytest.mark.parametrize('name', ['pretrain', 'sft', 'reward', 'ppo'])
def test_evaluate_makes_the_chosen_steps_figures_again(finished_pipeline, printed, name):
    folder = exactness.folder_of(name, finished_pipeline)
    expected = json.loads((folder / 'figures.json').read_text())
    line, = printed(evaluate, str(folder), '--figures=512')
    found = json.loads(line)
    assert found['figures'] | {'step': found['step']} == expected


def test_evaluate_prints_one_object_even_where_rows_are_prepared_again(finished_pipeline, tmp_path, printed):
    workdir = shutil.copytree(finished_pipeline, tmp_path / 'runs')
    shutil.rmtree(workdir / 'data')
    folder = exactness.folder_of('pretrain', workdir)
    line, = printed(evaluate, str(folder))
    assert json.loads(line)['step'] == read_result(folder).step


@pytest.mark.parametrize('name', exactness.NAMES)
def test_sample_says_what_the_run_said_at_its_end(finished_pipeline, printed, name):
    folder = exactness.folder_of(name, finished_pipeline)
    assert [json.loads(line) for line in printed(sample, str(folder))] == samples_of(folder)


@pytest.mark.parametrize('name, answer', [('pretrain', 'continuation'), ('sft', 'answer'), ('ppo', 'answer')])
def test_sample_answers_each_prompt(finished_pipeline, printed, name, answer):
    folder = exactness.folder_of(name, finished_pipeline)
    rows = [json.loads(line) for line in printed(sample, str(folder), '--prompt=the king', '--prompt=a "queen"\n')]
    assert [row['prompt'] for row in rows] == ['the king', 'a "queen"\n']
    assert all(row.keys() == {'prompt', answer} and row[answer] for row in rows)
    if name != 'ppo':  # which was run without prompts
        assert rows[0] == samples_of(folder)[0]


def test_sample_refuses_a_prompt_for_a_scorer(finished_pipeline, refusal):
    folder = exactness.folder_of('reward', finished_pipeline)
    assert refusal(sample, str(folder), '--prompt=the king').startswith(
        "--prompt='the king': a scorer says nothing itself; leave --prompt out")


@pytest.mark.parametrize('tool', [evaluate, sample, lineage], ids=lambda tool: tool.__name__)
@pytest.mark.parametrize('reference', ['nowhere@5', 'nowhere', 'nowhere@five'])
def test_what_is_no_checkpoint_costs_one_line(refusal, tool, reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 'nowhere' in refusal(tool, reference)


def test_lineage_goes_from_the_policy_to_the_raw_data_of_all_four_stages(finished_pipeline, printed):
    lines = printed(lineage, f'{exactness.folder_of("ppo", finished_pipeline)}@2')
    step = {name: read_result(exactness.folder_of(name, finished_pipeline)).step for name in exactness.NAMES}
    sft, pretrain = ('sft', step['sft'], 'chats'), ('pretrain', step['pretrain'], 'text')
    expected = {'this step:': ('ppo', 2, 'prompts'), 'init_from:': sft, 'init_from.init_from:': pretrain,
                'reward_from:': ('reward', step['reward'], 'ranked'), 'reward_from.init_from:': sft,
                'reward_from.init_from.init_from:': pretrain}
    assert len(lines) == len(expected)
    for line, (role, (name, step, data)) in zip(lines, expected.items()):
        folder = exactness.folder_of(name, finished_pipeline)
        assert line.startswith(f'{role} {name} {folder}/checkpoints@{step} identity ')
        assert f'{finished_pipeline}/{data}.jsonl' in line


def test_compare_takes_the_mean_and_the_range_over_workdirs(finished_pipeline, tmp_path, printed):
    other = shutil.copytree(finished_pipeline, tmp_path / 'other')
    path, = other.glob('ppo-*/figures.json')
    figures = json.loads(path.read_text())
    here = figures['policies']['sft']['length']
    figures['policies']['sft']['length'] = here + 2
    path.write_text(json.dumps(figures))
    rows = printed(compare, str(finished_pipeline), str(other))
    row, = (row for row in rows if row.startswith('| ppo/policies/sft/length |'))
    assert [float(cell) for cell in row.split('|')[2:-1]] == pytest.approx([here + 1, here, here + 2, 2], rel=1e-3)


def test_compare_passes_over_runs_that_have_not_ended_and_files_that_are_torn(finished_pipeline, tmp_path, printed):
    workdir = shutil.copytree(finished_pipeline, tmp_path / 'runs')
    expected = printed(compare, str(workdir))
    newer = shutil.copytree(exactness.folder_of('sft', workdir), workdir / 'sft-newer')
    (newer / 'result.json').unlink()
    for file in newer.glob('*.json*'):
        os.utime(file, (2e9, 2e9))
    assert printed(compare, str(workdir)) == expected
    path = exactness.folder_of('ppo', finished_pipeline).name
    (workdir / path / 'figures.json').write_text('{"policies": {"s')
    assert printed(compare, str(workdir)) == [row for row in expected if not row.startswith('| ppo/') or any(
        row.startswith(f'| ppo/{key}') for key in json.loads((workdir / path / 'result.json').read_text()))]


def test_compare_refuses_a_folder_without_runs(tmp_path, refusal):
    assert 'holds no ended run' in refusal(compare, str(tmp_path))

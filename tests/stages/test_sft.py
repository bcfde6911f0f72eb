"""Fine-tuning ends by itself where it only gets worse, and hands on the step before that."""

import dataclasses
import json
import shutil

import jax
import pytest

from llm.pipeline import open_step
from llm.run import read_result
from llm.stages import sft
from tests import tiny
from tests.stages import exactness

# Learns for a few steps, then a rate that goes on growing throws it out of the valley.
CHANGES = {'sft.patience': 1, 'sft.eval_every_steps': 1, 'sft.stop_step': 30, 'sft.optim.schedule_steps': 1000,
           'sft.optim.warmup_steps': 100, 'sft.optim.learning_rate': 1.0,
           # So many that one step apart is heard in some.
           'sft.samples.prompts': tuple(tiny.WORDS), 'sft.samples.max_new_tokens': 16}


@pytest.fixture(scope='module')
def ended(finished_pipeline, tmp_path_factory):
    """The workdir, the config and the result of a run that ended before its time."""
    workdir = shutil.copytree(finished_pipeline, tmp_path_factory.mktemp('sft') / 'runs')
    config = exactness.up_to('sft', tiny.pipeline_config(workdir, **CHANGES))
    return workdir, config, tiny.run(config, workdir)['sft']


def losses(folder) -> list[float]:
    """The held-out loss of each step."""
    rows = [row for row in exactness.rows(folder) if row['kind'] == 'evaluate']
    assert [row['step'] for row in rows] == list(range(len(rows)))
    return [row['next_token'] for row in rows]


def test_ends_at_the_first_worse_evaluation_and_keeps_the_best(ended):
    workdir, _, result = ended
    *better, worse = losses(exactness.folder_of('sft', workdir))
    assert better == sorted(better, reverse=True) and worse > better[-1]
    assert 0 < result.step == len(better) - 1 < result.last_step == len(better) < 30
    assert (result.why, result.before, result.after) == ('no better for 1 evaluations', better[0], better[-1])


def test_samples_are_those_of_the_best_step(ended):
    workdir, _, result = ended
    folder = exactness.folder_of('sft', workdir)

    def samples(reference: str) -> list[dict]:
        run, _, params = open_step(reference, say=print, progress=lambda *of: None)
        with jax.set_mesh(run.mesh):
            return sft.samples(run, params)
    kept = [json.loads(line) for line in (folder / 'samples.jsonl').read_text().splitlines()]
    assert samples(str(folder)) == kept != samples(f'{folder}@{result.last_step}')


def test_started_again_it_is_finished_however_long_it_may_be(ended, monkeypatch):
    workdir, config, result = ended
    monkeypatch.setattr(sft, 'run', None)
    longer = config.copy_and_resolve_references()
    longer.stages.sft.stop_step = 60
    assert tiny.run(config, workdir)['sft'] == tiny.run(longer, workdir)['sft'] == result


def test_killed_before_its_result_was_written_it_ends_there_again(ended, tmp_path):
    workdir, config, result = ended
    workdir = shutil.copytree(workdir, tmp_path / 'runs')
    folder = exactness.folder_of('sft', workdir)
    rows = exactness.rows(folder)
    (folder / 'result.json').unlink()
    again = tiny.run(config, workdir)['sft']
    assert dataclasses.replace(again, seconds=result.seconds, phases=result.phases) == result
    assert exactness.rows(folder) == rows and read_result(folder) == again

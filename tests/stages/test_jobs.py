"""Jobs of several processes: the same losses, files and order of rows as one process; all leave together."""

import json
import pathlib
import signal
import time

import pytest

from tests import jobs
from tests import tiny

STAGES = ('pretrain', 'sft', 'reward', 'ppo')
MESH = {f'{name}.exec.mesh.{axis}': 2 for name in STAGES for axis in ('data', 'fsdp', 'tensor')}


def rows(workdir: pathlib.Path, stage: str) -> list[dict]:
    """What two runs of one config share of a stage's rows."""
    path, = workdir.glob(f'{stage}-*/metrics.jsonl')
    return [{key: value for key, value in json.loads(line).items() if key != 'time'}
            for line in path.read_text().splitlines()]


def log(workdir: pathlib.Path, index: int, most: int = 3000) -> str:
    return pathlib.Path(f'{workdir}.{index}.log').read_text()[-most:]


def assert_close(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs):
        assert mine == {key: pytest.approx(value, rel=1e-5, abs=1e-5) if isinstance(value, float) else value
                        for key, value in other.items()}


@pytest.fixture(scope='module')
def alone(tmp_path_factory) -> pathlib.Path:
    """All four stages in this process."""
    folder = tmp_path_factory.mktemp('alone')
    tiny.write_data(folder)
    tiny.run(tiny.pipeline_config(folder, **MESH), folder / 'runs')
    return folder


def assert_same_run(alone: pathlib.Path, workdir: pathlib.Path, *files: str) -> None:
    for stage in STAGES:
        assert_close(rows(workdir, stage), rows(alone / 'runs', stage))
        for name in ('result.json', 'samples.jsonl', 'data.json', *files):
            assert len(list(workdir.glob(f'{stage}-*/{name}'))) == 1
    assert (workdir / 'report.html').exists()


def test_four_stages_in_two_processes(alone):
    workdir = alone / 'by2'
    job = jobs.start(jobs.write_config(alone, **MESH), workdir, 2)
    assert jobs.finish(job) == [0, 0], log(workdir, 0) + log(workdir, 1)
    assert_same_run(alone, workdir, 'figures.json')
    assert 'pretrain  step 2' in log(workdir, 0, 10**6) and 'pretrain' not in log(workdir, 1), 'only process 0 speaks'


def test_four_stages_in_four_processes_by_one_command(alone):
    workdir = alone / 'by4'
    keys = {f'{name}.figures.rows': 0 for name in STAGES}  # takes as long as all the rest
    job = jobs.launch(jobs.write_config(alone, **MESH, **keys), workdir, 4)
    assert jobs.finish(job) == [0], log(workdir, 0)
    assert_same_run(alone, workdir)


def test_epoch_is_the_same_whatever_number_of_processes_go_on(tmp_path, monkeypatch):
    """1, then 2, then 4 processes: no row lost, none read twice, the global order and the losses of one process."""
    tiny.write_data(tmp_path)
    lines = (tmp_path / 'text.jsonl').read_text().splitlines(keepends=True)
    (tmp_path / 'text.jsonl').write_text(''.join(lines[:12]))
    config = tiny.pipeline_config(tmp_path, **MESH)
    keys = {**MESH, 'pretrain.figures.rows': 0, 'pretrain.stop_step': 6}

    def run(workdir: pathlib.Path, counts: tuple[int, ...]) -> list[int]:
        """The rows trained on, in their global order."""
        seen = []
        for part, count in enumerate(counts):
            steps = 6 // len(counts)
            monkeypatch.setenv('ROWS_LOG', str(tmp_path / f'{workdir.name}-{part}'))
            path = jobs.write_config(tmp_path, only='pretrain', **keys | {'pretrain.stop_step': steps * (part + 1)})
            assert jobs.finish(jobs.start(path, workdir, count, module='tests.loading')) == [0] * count
            logs = [pathlib.Path(f'{tmp_path / workdir.name}-{part}.{index}').read_text().splitlines()[:steps]
                    for index in range(count)]  # what was loaded ahead of its use stands behind
            for batch in zip(*logs):
                seen += [row for piece in batch for row in json.loads(piece)]
        return seen
    assert config.stages.pretrain.batch_size == 8
    whole = run(tmp_path / 'whole', (1,))
    parts = run(tmp_path / 'parts', (1, 2, 4))
    assert parts == whole
    epoch = max(whole) + 1
    assert epoch <= len(whole) and sorted(whole[:epoch]) == list(range(epoch))
    assert_close(rows(tmp_path / 'parts', 'pretrain'), rows(tmp_path / 'whole', 'pretrain'))


@pytest.mark.parametrize('count', [1, 2])
def test_notice_to_one_process_ends_all_at_one_saved_step(tmp_path, count):
    tiny.write_data(tmp_path)
    config = jobs.write_config(tmp_path, only='pretrain', **MESH | {
        'pretrain.stop_step': 100_000, 'pretrain.save_every_steps': 50_000, 'pretrain.eval_every_steps': 50_000})
    workdir = tmp_path / 'runs'
    job = jobs.start(config, workdir, count)
    until = time.monotonic() + 400
    def steps() -> list[int]:
        begun = list(workdir.glob('pretrain-*/metrics.jsonl'))
        return [row['step'] for row in rows(workdir, 'pretrain')] if begun else []
    while max(steps(), default=0) < 3:
        if time.monotonic() > until or any(process.poll() is not None for process in job):
            jobs.finish(job, 0)
        time.sleep(0.1)
    job[-1].send_signal(signal.SIGTERM)
    assert jobs.finish(job, 100) == [42] * count, log(workdir, 0) + log(workdir, count - 1)
    last = rows(workdir, 'pretrain')[-1]['step']
    sealed = [int(path.name.split('.')[0]) for path in workdir.glob('pretrain-*/checkpoints/*.manifest.json')]
    assert max(sealed) == last, 'saved where it stopped: nothing is done again'
    assert f'asked to stop and is saved at step {last}' in log(workdir, 0)

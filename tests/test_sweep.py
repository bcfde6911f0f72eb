"""Sweeps: rows from axes; shared parents made once, never by two rows at a time; resumed; told and drawn."""

import collections
import concurrent.futures
import csv
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time
from xml.etree import ElementTree

from hypothesis import given, settings, strategies as st
import pytest

from llm import pipeline, provenance
from llm.errors import UserError
from llm.identity import digest
from llm.manifest import Manifest, write
from llm.run import Result
from tests import tiny
from tests.stages import exactness
from tools import launch, sweep
from tools.sweeps import outcome, schedule
from tools.sweeps.grid import chain, product, zip_
from tools.sweeps.rows import Finished, load_config, read_rows

# ml_collections loads config files in a way that Python 3.12 has no longer.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')

ROOT = pathlib.Path(__file__).parents[1]
SFT = {'stages.sft.optim.learning_rate': [1e-4, 1e-3, 1e-2]}
AXES = SFT, {'stages.reward.seed': [0, 1]}, {'stages.ppo.kl_target': [1.0, 2.0, 4.0, 8.0]}


# Rows from axes.

def test_product_has_every_combination_and_the_last_axis_varies_fastest():
    assert product({'a': [1, 2], 'b': [3, 4]}) == [{'a': a, 'b': b} for a in (1, 2) for b in (3, 4)]
    assert product({'a': [1, 2]}, [{'b': 3, 'c': 4}]) == [{'a': 1, 'b': 3, 'c': 4}, {'a': 2, 'b': 3, 'c': 4}]
    assert product() == [{}]


def test_zip_goes_along_all_axes_together():
    assert zip_({'a': [1, 2], 'b': [3, 4]}) == [{'a': 1, 'b': 3}, {'a': 2, 'b': 4}]
    with pytest.raises(UserError, match='zip_: axes are of different lengths'):
        zip_({'a': [1, 2], 'b': [3]})


def test_chain_follows_one_part_by_the_next_and_has_each_row_once():
    assert chain({'a': [1, 2]}, [{'a': 2}, {'b': 3}]) == [{'a': 1}, {'a': 2}, {'b': 3}]


def test_product_refuses_a_key_that_two_parts_set():
    with pytest.raises(UserError, match='product: a is in two parts'):
        product({'a': [1]}, {'a': [2]})


# When rows run: stand-ins whose stages take so many looks each.

class Machine:
    """Runs rows of stages, each known by a key, and notes what was made, when."""

    def __init__(self, looks: dict[str, int], failing: frozenset[str] = frozenset()):
        self.looks, self.failing = looks, failing
        self.done: set[str] = set()
        self.made: collections.Counter[str] = collections.Counter()
        self.running: dict[tuple, list] = {}
        self.most = 0

    def unfinished(self, row: tuple[str, ...]) -> dict[str, str]:
        return {key: f'stage {depth}' for depth, key in enumerate(row) if key not in self.done}

    def start(self, row: tuple[str, ...]):
        process = type('Process', (), {'code': None, 'poll': lambda self: self.code})()
        self.running[row] = [process, None, 0]
        return process

    def pause(self) -> None:
        self.most = max(self.most, len(self.running))
        for row, state in list(self.running.items()):
            process, key, left = state
            if key is not None and left:
                state[2] -= 1
                continue
            if key in self.failing:
                process.code = 43
            else:
                self.done |= {key} - {None}
                state[1] = next(iter(self.unfinished(row)), None)
                process.code = 0 if state[1] is None else None
            if process.code is not None:
                del self.running[row]
                continue
            self.made[state[1]] += 1
            state[2] = self.looks[state[1]]
        making = [key for _, key, _ in self.running.values() if key is not None]
        assert len(making) == len(set(making)), 'two rows make one stage'

    def run(self, rows: list[tuple[str, ...]], jobs: int) -> dict[tuple[str, ...], str | None]:
        return schedule.run(rows, jobs=jobs, unfinished=self.unfinished, start=self.start, pause=self.pause,
                            say=lambda line: None)


def tree(*widths: int) -> list[tuple[str, ...]]:
    """Rows of as many stages as there are widths; each stage has so many children."""
    return [tuple('/'.join(map(str, path[:depth + 1])) for depth in range(len(widths)))
            for path in itertools.product(*map(range, widths))]


@settings(deadline=None)
@given(st.data())
def test_every_stage_is_made_once_and_by_one_row_at_a_time(data):
    rows = data.draw(st.permutations(tree(1, *data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))))
    keys = sorted({key for row in rows for key in row})
    machine = Machine({key: data.draw(st.integers(0, 4)) for key in keys})
    done = data.draw(st.sets(st.sampled_from(rows)))
    machine.done = set().union(*done)
    jobs = data.draw(st.integers(1, 4))
    assert machine.run(rows, jobs) == dict.fromkeys(rows)
    assert machine.made == collections.Counter(set(keys) - set().union(*done))
    assert machine.most <= jobs


@settings(deadline=None)
@given(st.data())
def test_a_stage_that_failed_is_tried_once_and_stops_only_those_who_need_it(data):
    rows = tree(1, 3, 2)
    keys = sorted({key for row in rows for key in row})
    failing = data.draw(st.frozensets(st.sampled_from(keys)))
    machine = Machine({key: data.draw(st.integers(0, 3)) for key in keys}, failing)
    ended = machine.run(rows, data.draw(st.integers(1, 4)))
    assert {row for row, why in ended.items() if why is None} == {row for row in rows if not failing & set(row)}
    assert max(machine.made.values()) == 1
    machine.failing = frozenset()  # mended: the next call makes the rest
    made = set(machine.done)
    assert machine.run(rows, 2) == dict.fromkeys(rows)
    assert all(machine.made[key] == 1 for key in made)


def test_rows_that_share_no_unfinished_stage_run_side_by_side():
    machine = Machine(collections.defaultdict(lambda: 5))
    machine.run(tree(1, 4), 3)
    assert machine.most == 3
    looks = Machine(collections.defaultdict(lambda: 5))
    looks.done = {'0'}
    looks.run(tree(1, 4), 4)
    assert looks.most == 4


# Rows of the real pipeline: real configs, identities, owners and folders; stages that learn nothing.

class Stub:
    """In place of a module of `llm.stages`."""

    def __init__(self):
        self.runs: list[str] = []
        self.failing: set[str] = set()

    def run(self, run) -> Result:
        self.runs.append(run.name)
        time.sleep(.01)
        if run.name in self.failing:
            raise UserError('no luck')
        stage, folder = run.config.stage, run.folder / 'checkpoints'
        folder.mkdir(exist_ok=True)
        write(folder, Manifest(
            stage=stage, identity=digest(run.identity), model=run.model_config.stored(),
            tokenizer=run.tokenizer.describe(), heads=['scalar' if stage == 'reward' else 'token'], reward=None,
            objective='', data={}, seed=0, mesh={}, packages={}, git_commit='', step=3,
            parents={key: {'fingerprint': parent.manifest.fingerprint} for key, parent in run.parents.items()}))
        return Result(stage, 3, run.config.stop_step, 'stop_step', 'loss', 2.0, 1.0, .1, provenance.code())


@pytest.fixture
def stubbed(tmp_path, monkeypatch):
    """-> config file, stub, call(rows, jobs): what became of rows that ran in threads, each by the real pipeline."""
    stub = Stub()
    monkeypatch.setattr(pipeline, 'STAGES', dict.fromkeys(pipeline.STAGES, stub))
    tiny.write_data(tmp_path)
    config = tmp_path / 'config.py'
    config.write_text('import pathlib\nfrom tests import tiny\n\n\ndef get_config():\n'
                      '    return tiny.pipeline_config(pathlib.Path(__file__).parent)\n')
    lock = threading.Lock()  # of the modules that ml_collections loads

    def main(row) -> int:
        with lock:
            loaded = load_config(str(config), row.overrides)
        try:
            pipeline.run_pipeline(loaded, str(tmp_path / 'runs'), rerun=None, say=lambda line: None,
                                  progress=lambda what, done, total: None)
        except UserError as error:
            return 2 if 'no luck' in str(error) else 1
        return 0

    def call(rows, jobs: int):
        finished = Finished(tmp_path / 'runs')
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            def start(row):
                future = pool.submit(main, row)
                return type('Process', (), {'poll': lambda self: future.result() if future.done() else None})()
            return schedule.run(rows, jobs=jobs, unfinished=finished.unfinished, start=start,
                                pause=lambda: time.sleep(.005), say=lambda line: None)
    return str(config), stub, call


def quietly(what: str, done: int, total: int) -> None:
    """No progress."""


def test_parents_are_made_once_by_identity(stubbed, tmp_path):
    config, stub, call = stubbed
    rows = read_rows(config, product(*AXES), quietly)
    assert len(rows) == 24
    assert call(rows, 3) == dict.fromkeys(rows)
    assert collections.Counter(stub.runs) == {'pretrain': 1, 'sft': 3, 'reward': 6, 'ppo': 24}
    folders = collections.Counter(path.parent.name.rpartition('-')[0]
                                  for path in (tmp_path / 'runs').glob('*/result.json'))
    assert folders == {'pretrain': 1, 'sft': 3, 'reward': 6, 'ppo': 24}
    found = Finished(tmp_path / 'runs')
    assert len({tuple(folder.name for folder, _ in found.of(row).values()) for row in rows}) == 24
    stub.runs.clear()
    assert call(rows, 3) == dict.fromkeys(rows) and stub.runs == []


def test_an_interrupted_sweep_makes_what_is_missing(stubbed, tmp_path):
    config, stub, call = stubbed
    rows = read_rows(config, product(*AXES[1:]), quietly)
    stub.failing = {'ppo'}
    ended = call(rows, 2)
    assert all(why == 'ppo ended with exit code 2' for why in ended.values())
    assert collections.Counter(stub.runs) == {'pretrain': 1, 'sft': 1, 'reward': 2, 'ppo': 8}
    stub.failing = set()
    stub.runs.clear()
    assert call(rows, 2) == dict.fromkeys(rows)
    assert collections.Counter(stub.runs) == {'ppo': 8}
    lost = Finished(tmp_path / 'runs').of(rows[3])['ppo'][0]
    (lost / 'result.json').unlink()
    stub.runs.clear()
    assert call(rows, 2) == dict.fromkeys(rows) and stub.runs == ['ppo']


def test_a_run_that_is_to_be_longer_is_not_finished(stubbed):
    config, stub, call = stubbed
    for stop_step, made in ((4, ['pretrain', 'sft', 'reward', 'ppo']), (8, ['ppo']), (4, [])):
        stub.runs.clear()
        rows = read_rows(config, [{'stages.ppo.stop_step': stop_step}], quietly)
        assert call(rows, 1) == dict.fromkeys(rows) and stub.runs == made


def test_a_parent_that_fails_is_tried_by_one_row(stubbed):
    config, stub, call = stubbed
    rows = read_rows(config, product(*AXES), quietly)
    stub.failing = {'pretrain'}
    ended = call(rows, 4)
    assert stub.runs == ['pretrain'] and all('pretrain ended with exit code 2' in why for why in ended.values())


@pytest.mark.parametrize('rows, line', [
    (product({'stages.sft.log_every_steps': [1, 2]}), 'rows 1 and 2 are the same run'),
    (product({'stages.ppo.exec.mesh.fsdp': [1, 2]}), 'rows 1 and 2 are the same run'),
    (product({'stages.sft.stop_step': [2, 4]}, {'stages.ppo.kl_target': [1.0, 2.0]}),
     'rows 1 and 3 share a run of sft, with stop_step=2 and 4; sweep optim.schedule_steps with it'),
    ([{'stages.sft.seed': 1}, {'stages.sft.sed': 1}], "row 2: {'stages.sft.sed': 1}: "),
    ([{'stages.sft.seed': 'many'}], "row 1: {'stages.sft.seed': 'many'}: "),
    ([{'stages.sft.batch_size': 0}], 'row 1: batch_size=0 is less than 1'),
    ([{'stages.sft.init_from': 'stage:sfd'}], 'row 1: sft.init_from=stage:sfd names no stage'),
])
def test_rows_that_cannot_be_are_refused_before_any_runs(stubbed, rows, line):
    with pytest.raises(UserError, match=re.escape(line)) as error:
        read_rows(stubbed[0], rows, quietly)
    assert '\n' not in str(error.value)


def test_overrides_arrive_as_they_are_in_the_sweep(stubbed):
    overrides = {'stages.sft.optim.learning_rate': 1e-05, 'stages.sft.seed': 7,
                 'stages.sft.init_from': 'stage:pretrain', 'stages.sft.samples.prompts': ('a b', "it's"),
                 'stages.sft.exec.rules.batch': ('data',)}
    row, = read_rows(stubbed[0], [overrides], quietly)
    config = row.stages['sft']
    assert (config.optim.learning_rate, config.seed, config.init_from) == (1e-5, 7, 'stage:pretrain')
    assert (config.samples.prompts, config.exec.rules['batch']) == (('a b', "it's"), ('data',))


def test_a_row_may_be_handed_to_launch(stubbed):
    row = read_rows(stubbed[0], product(*AXES), quietly)[16]
    assert sweep.command(row, 'c.py', 'w', [])[1:] == ['-m', 'llm.main', '--config=c.py', '--workdir=w', *row.flags]
    for flags in ("tpu --pod='2x v5e-256' --zone=z", 'slurm --nodes=2', '--local=2 --supervise'):
        _, _, tool, *words = sweep.command(row, 'configs/' + 'long' * 12 + '.py', 'w', sweep.split(flags))
        arguments, job = launch.parse(words)
        assert tool == 'tools.launch' and arguments.wait and job.name.endswith('-r17')
        assert (job.workdir, list(job.overrides)) == ('w', row.flags)


@pytest.mark.parametrize('words, line', [
    (["--launch=slurm --name='x"], "--launch=slurm --name='x: No closing quotation; write it as for a shell"),
    (['--jobs=0'], '--jobs=0 is less than 1; use 1 or more'), (['--jobs=many'], 'argument --jobs: invalid int value'),
    (['--job'], 'argument --jobs: expected one argument')])
def test_a_mistaken_flag_costs_one_line_before_any_data_is_read(monkeypatch, words, line):
    monkeypatch.setattr(sweep, 'read_rows', lambda *of: pytest.fail('read'))
    monkeypatch.setattr(sys, 'argv', ['sweep', 'experiments/launch_sweep/sweep.py', '--workdir=w', *words])
    with pytest.raises(UserError, match=f'^{re.escape(line)}') as error:
        sweep.main()
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('text, line', [
    ('', "AttributeError: module 'sweep' has no attribute 'CONFIG'"), ('CONFIG =', 'SyntaxError'),
    ("CONFIG, SWEEP = 'c.py', []", 'SWEEP a list of dicts with at least one'),
    ("CONFIG, SWEEP = 'c.py', [3]", 'SWEEP a list of dicts'),
    ("from tools.sweeps.grid import zip_\nzip_({'a': [1], 'b': []})", 'zip_: axes are of different lengths')])
def test_a_file_that_is_no_sweep_costs_one_line(tmp_path, text, line):
    (tmp_path / 'sweep.py').write_text(text)
    with pytest.raises(UserError, match=re.escape(line)):
        sweep.read(str(tmp_path / 'sweep.py'))
    with pytest.raises(UserError, match='nowhere.py: FileNotFoundError'):
        sweep.read(str(tmp_path / 'nowhere.py'))


def test_the_example_is_a_sweep():
    config, rows = sweep.read(str(ROOT / 'experiments/launch_sweep/sweep.py'))
    assert (ROOT / config.partition(':')[0]).exists() and len(rows) == 24
    assert load_config(config, rows[-1]).stages.ppo.kl_target == rows[-1]['stages.ppo.kl_target']


# What a sweep ends in.

@pytest.fixture
def ended(stubbed, tmp_path):
    """Rows and their records, one of them of a row that failed; the names of keys and metrics are hostile to plots."""
    config, stub, call = stubbed
    failing = [{'stages.ppo.seed': 5, 'stages.ppo.samples.prompts': ('$a$', '$\\b$')}]
    rows = read_rows(config, chain(product(SFT, {'stages.ppo.kl_target': [1.0, 8.0]}), failing), quietly)
    reasons, finished = call(rows, 2), Finished(tmp_path / 'runs')
    swept = outcome.all_keys(rows)
    table = [outcome.record(row, swept, reasons[row], finished.of(row)) for row in rows[:-1]]
    return config, rows, [*table, outcome.record(rows[-1], swept, 'ppo ended with exit code 43', {})]


def test_files_of_a_sweep_have_every_row_and_number(ended, tmp_path):
    config, rows, table = ended
    paths = outcome.write(tmp_path, config, rows, table)
    assert [path.name for path in paths] == ['sweep.json', 'sweep.csv', 'sweep.svg']
    stored = json.loads(paths[0].read_text())
    assert stored['config'] == config and len(stored['rows']) == 7
    lines = list(csv.DictReader(io.StringIO(paths[1].read_text())))
    for row, entry, line in zip(rows, stored['rows'], lines, strict=True):
        assert int(line['row']) == entry['row'] == row.number
        assert line['failed'] == (entry['failed'] or '')
        for key, value in row.overrides.items():
            assert line[key] == str(value) and entry['swept'][key] == (
                list(value) if isinstance(value, tuple) else value)
        for name, stage in entry['stages'].items():
            assert (tmp_path / 'runs' / stage['folder'] / 'result.json').exists()
            told = float(line[f'{name}/after']), int(line[f'{name}/step'])
            assert told == (stage['after'], stage['step']) == (1, 3)
    assert not list(tmp_path.glob('partial.*'))


def test_table_has_swept_keys_and_each_stages_number(ended):
    _, _, table = ended
    assert outcome.cells(table[0]) == {
        'row': 1, 'sft learning_rate': '0.0001', 'ppo kl_target': '1', 'ppo seed': '0', 'ppo prompts': '()',
        'pretrain loss': '1 @3 0s', 'sft loss': '1 @3 0s', 'reward loss': '1 @3 0s', 'ppo loss': '1 @3 0s'}
    assert outcome.cells(table[-1]) == {
        'row': 7, 'sft learning_rate': '0.002', 'ppo kl_target': '6', 'ppo seed': '5',
        'ppo prompts': "('$a$', '$\\\\b$')", 'failed': 'ppo ended with exit code 43'}


def test_plot_has_a_panel_for_each_stage_that_the_sweep_changes(ended, tmp_path):
    _, rows, table = ended
    outcome.plot(tmp_path / 'plot.svg', rows, table)
    text = (tmp_path / 'plot.svg').read_text()
    ElementTree.fromstring(text)
    said = re.findall('<!-- (.*?) -->', text)
    assert [line for line in said if line.endswith(' runs')] == ['sft, 3 runs', 'reward, 3 runs', 'ppo, 6 runs']
    assert {'0.0001', '0.001', '0.01', '1', '6', '8', 'sft learning_rate', 'held-out loss'} <= set(said)
    outcome.plot(tmp_path / 'none.svg', rows, [outcome.record(row, [], 'lost', {}) for row in rows])
    assert 'sft, 0 runs' in (tmp_path / 'none.svg').read_text()


def test_axes_of_a_stage_are_its_own_and_its_parents_keys(stubbed):
    rows = read_rows(stubbed[0], product(*AXES), quietly)
    (sft,), (reward,), (ppo,) = AXES
    assert outcome.swept_keys('sft', rows) == [sft]
    assert outcome.swept_keys('reward', rows) == [reward, sft]
    assert outcome.swept_keys('ppo', rows) == [ppo, sft, reward]


@pytest.mark.slow
def test_the_command_runs_what_is_not_finished_and_leaves_parents_alone(finished_pipeline, tmp_path):
    workdir = shutil.copytree(finished_pipeline, tmp_path / 'runs')
    (tmp_path / 'config.py').write_text(
        'import pathlib\nfrom tests import tiny\n\n\ndef get_config():\n'
        f'    return tiny.pipeline_config(pathlib.Path({str(finished_pipeline)!r}))\n')
    (tmp_path / 'sweep.py').write_text(
        'from tools.sweeps.grid import chain, product\n'
        f'CONFIG = {str(tmp_path / "config.py")!r}\n'
        "SWEEP = chain([{}], product({'stages.ppo.kl_target': [1.0]}))\n")
    before = {path: path.stat().st_mtime_ns for path in workdir.glob('*/result.json')}
    command = [sys.executable, '-m', 'tools.sweep', str(tmp_path / 'sweep.py'), f'--workdir={workdir}', '--jobs=2']

    def called() -> str:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                              env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
        assert (done.returncode, done.stderr) == (0, '')
        return done.stdout
    out = called()
    assert '2 rows, of 1 pretrain, 1 sft, 1 reward, 2 ppo' in out and '1 of 2 rows are finished' in out
    after = {path: path.stat().st_mtime_ns for path in workdir.glob('*/result.json')}
    assert before.items() <= after.items() and len(after) == 5
    new, = after.keys() - before.keys()
    assert new.parent.name.startswith('ppo-') and new.parent != exactness.folder_of('ppo', finished_pipeline)
    rows = json.loads((workdir / 'sweep.json').read_text())['rows']
    assert [set(row['stages']) for row in rows] == [set(exactness.NAMES)] * 2
    assert rows[1]['stages']['ppo']['after'] == json.loads(new.read_text())['after']
    assert '2 of 2 rows are finished' in called()
    assert {path: path.stat().st_mtime_ns for path in workdir.glob('*/result.json')} == after

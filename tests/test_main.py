"""Whatever a user mistypes costs one line on standard error and exit code 2, never a traceback."""

import os
import pathlib
import subprocess
import sys

from absl import flags
from absl.testing import flagsaver
import pytest

from llm.main import guarded, main
from tests import tiny

# ml_collections loads config files in a way that Python 3.12 has no longer.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = f'--config={ROOT}/configs/quickstart.py'


@pytest.fixture
def refusal(tmp_path, capfd, monkeypatch):
    """refusal(*flags) -> the line with which `python -m llm.main` refuses them, here within this process."""
    monkeypatch.chdir(ROOT)

    def call(*words: str) -> str:
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            monkeypatch.setattr(sys, 'argv', ['llm.main', *words])  # where ml_collections looks for overrides
            code = guarded(lambda: main(['llm.main', *words]))
        flags.FLAGS.mark_as_parsed()
        out, err = capfd.readouterr()
        assert (code, out) == (2, '')
        assert err.startswith('error: ') and err.endswith('\n') and err.count('\n') == 1
        return err[len('error: '):-1]
    return call


@pytest.mark.parametrize('words, line', [
    ([CONFIG, '--workdri=x'], "Unknown command line flag 'workdri'. Did you mean: workdir ?"),
    ([CONFIG, '--workdir=x', 'and'], "argument 'and' is not a flag; write --name=value"),
    ([CONFIG], '--workdir is missing; e.g. --config='),
    (['--workdir=x'], '--config is missing; e.g. --config='),
    ([CONFIG + ':tinny', '--workdir=x'], "variant 'tinny' is not known; use one of tiny, long, or none"),
    (['--config=nowhere.py', '--workdir=x'], '--config: '),
    ([CONFIG, '--workdir=x', '--config.stages.sft.batch_size=many'], 'many'),
    ([CONFIG, '--workdir=x', '--config.stages.sft.batch_size=0'], 'batch_size=0 is less than 1; use 1 or more'),
    ([CONFIG, '--workdir=x', '--config.stages.sft.exec.mesh.fsdp=3'],
     'stage sft: exec.mesh=(-1, 3, 1, 1) (data, fsdp, tensor, context) does not fit 8 devices; change exec.mesh'),
    ([CONFIG, '--workdir=x', '--config.stages.sft.batch_size=12'],
     'stage sft: batch_size=12 is not divisible by 8 data shards; use a multiple of 8 or change exec.mesh'),
    ([CONFIG, '--workdir=x', '--rerun=sff'], '--rerun=sff is not a stage of this pipeline; did you mean sft?'),
    ([f'--config={ROOT}/configs/sft.py', '--workdir=runs/x'],
     'sft needs a parent and init_from is empty; set init_from to stage:NAME or PATH[@step]'),
    ([f'--config={ROOT}/configs/sft.py', '--workdir=runs/x', '--config.init_from=nowhere'],
     'init_from=nowhere has no checkpoint; name the folder of a run'),
])
def test_mistake_costs_one_line(refusal, words, line, tmp_path):
    assert line in refusal(*[word.replace('--workdir=', f'--workdir={tmp_path}/') for word in words])


def test_mistyped_key_is_told_the_nearest(refusal, tmp_path):
    line = refusal(CONFIG, f'--workdir={tmp_path}', '--config.stages.sft.optim.learning_rat=1')
    assert ': Did you mean "learning_rate" instead of "learning_rat"?; ' in line


@pytest.mark.parametrize('key', ['sft.nonesuch', 'nonesuch.seed'])
def test_unknown_key_is_named_and_told_where_keys_are(refusal, tmp_path, key):
    line = refusal(CONFIG, f'--workdir={tmp_path}', f'--config.stages.{key}=1')
    assert 'nonesuch' in line and line.endswith('names it (configs/base.py lists all keys)')


@pytest.mark.parametrize('text, line', [
    ('raise ValueError("no luck")', 'flags: ValueError: no luck'),
    ('nonesuch()', "--config: NameError: name 'nonesuch' is not defined"),
    ('import nonesuch', "--config: ModuleNotFoundError: No module named 'nonesuch'"),
    ('def get_config(:', '--config: '),
])
def test_broken_config_file_costs_one_line(refusal, tmp_path, text, line):
    (tmp_path / 'mine.py').write_text(text)
    assert refusal(f'--config={tmp_path}/mine.py', f'--workdir={tmp_path}/runs').startswith(line)


def test_workdir_that_cannot_be_made_costs_one_line(refusal, tmp_path):
    (tmp_path / 'file').touch()
    assert refusal(CONFIG, f'--workdir={tmp_path}/file') == (
        f'--workdir={tmp_path}/file cannot be made (File exists); name a folder you may write')


# The same by the command itself. Each costs seconds, so all run side by side.

@pytest.fixture(scope='module')
def commands(finished_pipeline, tmp_path_factory) -> dict[str, subprocess.CompletedProcess]:
    """What became of each command, by the name of its mistake."""
    folder = tmp_path_factory.mktemp('commands')
    (folder / 'file').touch()
    tiny.write_data(folder)
    (folder / 'bad.jsonl').write_text('{"text": "good"}\n{"text": 1}\n')
    pretrain, = finished_pipeline.glob('pretrain-*')
    sft = [f'--config={ROOT}/configs/sft.py:tiny', f'--config.init_from={pretrain}', '--config.exec.mesh.data=1']
    one = "{'mine': base.source(jsonl='%s/%s.jsonl', holdout_percent=20.0)}"

    def recipe(name: str) -> str:
        (folder / f'{name}_recipe.py').write_text(
            'from configs import base, pretrain\n'
            'def get_config():\n'
            "    config = pretrain.get_config('tiny')\n"
            f'    config.data = base.data(**{one % (folder, name)})\n'
            '    return config\n')
        return f'--config={folder}/{name}_recipe.py'
    mistakes = {
        'flag': [CONFIG, '--workdri=x'],
        'data': [recipe('nowhere'), f'--workdir={folder}/runs'],
        'rows': [recipe('bad'), f'--workdir={folder}/runs', '--config.exec.mesh.data=1'],
        'step': [*sft[:1], f'--config.init_from={pretrain}@3', f'--workdir={folder}/runs']}
    running = {name: subprocess.Popen([sys.executable, '-m', 'llm.main', *words], cwd=ROOT, text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                      env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
               for name, words in mistakes.items()}
    return {name: subprocess.CompletedProcess(process.args, process.wait(), *process.communicate())
            for name, process in running.items()}


@pytest.mark.parametrize('name, line', [
    ('flag', "error: flags: Unknown command line flag 'workdri'. Did you mean: workdir ?\n"),
    ('data', 'nowhere.jsonl matches no file; check the path\n'),
    ('rows', '1 of 2 rows are bad, more than data.max_bad_percent=1.0: '),
    ('step', 'is not there: no such sealed step; use one of these: '),
])
def test_command_ends_with_one_line_and_exit_code_2(commands, name, line):
    process = commands[name]
    assert process.returncode == 2
    assert process.stderr.startswith('error: ') and process.stderr.count('\n') == 1
    assert line in process.stderr


def test_a_failed_disk_ends_the_process_though_its_threads_wait():
    code = '''
import threading
from llm.errors import StorageError
from llm.main import leave

def work():
    threading.Thread(target=threading.Event().wait, args=(300,)).start()
    raise StorageError('the disk is full; make room')
leave(work)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stderr) == (44, 'error: the disk is full; make room\n')

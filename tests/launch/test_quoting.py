"""Hostile values arrive as they were given, on every system."""

import pathlib
import re
import subprocess

from hypothesis import given, HealthCheck, settings, strategies as st
import yaml

from tests.launch import jobset_schema
from tests.launch.jobs import job
from tools.targets import gke, local, slurm, tpu
from tools.targets.pods import pod

HOSTILE = ['', ' ', 'a b', "'", '"', '$(touch owned)', '`touch owned`', '; touch owned', '\n touch owned\n', '&& x',
           '-rf', '--', '$HOME', '$(JOBSET_NAME)', '$$(JOBSET_NAME)', '$', '\\', "'; touch owned; '", '*', '~', '{a,b}',
           '!x', '#', '%s', '\t', '\r', '\x01', 'ü漢\U0001f600', '\x85\u2028', 'null', '1e3', ': ', '- x', 'EOF\n',
           "$'\\x41'"]
VALUES = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=['Cs'],
                                                                            exclude_characters='\0'))),
                  max_size=4).map(''.join)
SLOWLY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def expanded(text: str, variables: dict[str, str]) -> str:
    """What Kubernetes makes of a word of a command: $(NAME) is a variable where there is one, $$ is $."""
    return re.sub(r'\$\$|\$\(([^)]*)\)', lambda match: '$' if match[0] == '$$' else variables.get(match[1], match[0]),
                  text, flags=re.DOTALL)


VARIABLES = {'JOBSET_NAME': 'owned', 'HOME': 'owned', 'touch owned': 'owned'}


@SLOWLY
@given(VALUES, VALUES, VALUES)
def test_hosts_of_a_queued_resource_get_every_word_as_it_was_given(system, config, workdir, value):
    mine = job(config, workdir, value, *HOSTILE)
    step, = tpu.steps(mine, pod('v5p-128'), zone=value, project=workdir, spot=True, wait=True)
    code, found = system(step.argv)
    assert code == 0
    python, = (words for words in found if words[:3] == ['python', '-m', 'tools.supervise'])
    assert python == ['python', *mine.supervised('.venv/bin/python')[1:]]
    for words in found:
        if words[0] == 'gcloud':
            assert f'--zone={value}' in words and (not workdir or f'--project={workdir}' in words)


@SLOWLY
@given(VALUES, VALUES, VALUES, VALUES)
def test_tasks_of_slurm_get_every_word_as_it_was_given(system, config, workdir, value, folder):
    mine = job(config, workdir, value, *HOSTILE)
    folder = pathlib.Path.cwd() / folder.replace('/', '_')[:40] / 'source'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a longer name than the disk takes
        folder = pathlib.Path.cwd()
    step, = slurm.steps(mine, nodes=2, time_limit=None, partition=None, folder=str(folder), python='py thon',
                        wait=False)
    code, found = system(['bash'], stdin=step.stdin)
    assert (code, found) == (0, [['srun', '--kill-on-bad-exit=0', *mine.supervised('py thon')]])


@SLOWLY
@given(VALUES, VALUES, VALUES)
def test_pods_of_a_jobset_get_every_word_as_it_was_given(config, workdir, value):
    workdir = '/' + workdir.replace(':', '').replace('..', '')
    mine = job(config, workdir, value, *HOSTILE)
    step, = gke.steps(mine, pod('v5p-128'), image='image', claim='runs', spot=False, wait=False)
    manifest = yaml.safe_load(step.stdin)
    assert jobset_schema.errors(manifest) == []
    slices, = manifest['spec']['replicatedJobs']
    container, = slices['template']['spec']['template']['spec']['containers']
    assert [expanded(word, VARIABLES) for word in container['command']] == mine.supervised('python')
    assert container['volumeMounts'][0]['mountPath'] == workdir


@SLOWLY
@given(VALUES, VALUES, VALUES)
def test_pods_of_xpk_get_every_word_as_it_was_given(system, config, workdir, value):
    mine = job(config, workdir, value, *HOSTILE)
    step, = gke.xpk_steps(mine, pod('v6e-256'), image='image', cluster='c', zone='z', project=None, wait=False)
    command, = (word.removeprefix('--command=') for word in step.argv if word.startswith('--command='))
    manifest = yaml.safe_load(f'command:\n- bash\n- -c\n- |\n  echo Start;\n  ({command}) & PID=$!;\n  wait $PID\n')
    code, found = system([expanded(word, VARIABLES) for word in manifest['command']])
    assert (code, found) == (0, [['python', *mine.supervised('python')[1:]]])


@SLOWLY
@given(VALUES, VALUES)
def test_local_dry_run_is_what_a_shell_would_run(system, config, value):
    variables, commands = local.commands(job(config, '/w', value), 2, supervise=True, environment={})
    for number, command in enumerate(commands):
        line = local.shown(variables, command)
        printed = subprocess.run(['bash', '-c', f"printf '%s\\0' {line}"], capture_output=True).stdout
        assert printed.decode().split('\0')[:-1] == ['JAX_NUM_CPU_DEVICES=4', 'JAX_PLATFORMS=cpu', *command]
        assert command[-2:] == ['--processes=2', f'--process={number}']

"""What is submitted: valid to the API, the same as a dry run prints, and on every chip of a pod."""

import math
import pathlib
import re
import shlex
import subprocess
import sys
import time

import pytest
import yaml

from llm.errors import UserError
from llm.plan.pods import names
from tests.launch import jobset_schema
from tests.launch.jobs import CONFIG, job, WORDS
from tools import launch
from tools.targets import slurm, tpu
from tools.targets.pods import pod


@pytest.mark.parametrize('target', ['tpu', 'gke', 'xpk', 'slurm'])
def test_dry_run_prints_what_is_submitted_and_runs_nothing(system, target, capsys, monkeypatch):
    words = [*WORDS[target], *CONFIG, "--config.stages.sft.seed=a 'b'"]
    done = []
    monkeypatch.setattr(launch.subprocess, 'run', lambda argv, **more: done.append((argv, more['input'])) or (
        subprocess.CompletedProcess(argv, 0)))
    assert launch.main([*words, '--dry_run']) == 0
    printed = capsys.readouterr().out
    assert printed and not done
    assert launch.main(words) == 0
    (argv, stdin), = done
    assert printed == {'tpu': argv[-1], 'xpk': shlex.join(argv) + '\n'}.get(target, stdin)


@pytest.mark.parametrize('target', WORDS)
def test_every_launch_names_config_workdir_and_overrides(target, capsys):
    assert launch.main([*WORDS[target], *CONFIG, '--config.stages.sft.seed=7', '--dry_run']) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in (*CONFIG, '--config.stages.sft.seed=7', 'llm.main'))
    assert ('tools.supervise' in printed) == (target != 'local')


def pod_spec(manifest: dict) -> dict:
    return job_spec(manifest)['template']['spec']


def job_spec(manifest: dict) -> dict:
    return manifest['spec']['replicatedJobs'][0]['template']['spec']


def manifest_of(name: str, *flags: str) -> dict:
    arguments, mine = launch.parse(['gke', f'--pod={name}', '--image=i', '--claim=runs', *CONFIG, *flags])
    return yaml.safe_load(launch.submission(arguments, mine)[0].stdin)


PODS = names()


@pytest.mark.parametrize('name', [*PODS, '2x v5e-256', '8x v5p-128'])
def test_jobset_is_valid_and_takes_every_chip(name):
    manifest = manifest_of(name, '--spot')
    assert jobset_schema.errors(manifest) == []
    spec, replicas = job_spec(manifest), manifest['spec']['replicatedJobs'][0]['replicas']
    assert spec['completionMode'] == 'Indexed' and spec['completions'] == spec['parallelism']
    pods = pod_spec(manifest)
    topology = pods['nodeSelector']['cloud.google.com/gke-tpu-topology']
    chips = math.prod(map(int, topology.split('x')))
    assert spec['completions'] * pods['containers'][0]['resources']['limits']['google.com/tpu'] == chips
    slices, _, one = name.rpartition('x ')
    assert replicas == int(slices or 1)
    assert chips == int(one.split('-')[1]) / (1 if one.startswith(('v5e', 'v6e')) else 2)
    longest = f'{manifest["metadata"]["name"]}-slice-{replicas - 1}-{spec["completions"] - 1}-abcde'
    assert jobset_schema.LABEL.fullmatch(longest)


@pytest.mark.parametrize('where, value', [
    ('spec.network.dnsHostnames', True), ('spec.failurePolicy.maxRestarts', '3'), ('kind', 'Jobset'),
    ('spec.failurePolicy.rules.0.action', 'Fail'), ('spec.replicatedJobs.0.replicas', 1.0), ('metadata.name', 'A_b'),
    ('spec.replicatedJobs.0.template.spec.completionMode', 'indexed'), ('spec.replicatedJobs', []),
    ('spec.replicatedJobs.0.template.spec.template.spec.containers.0.command', 'python'),
    ('spec.replicatedJobs.0.template.spec.template.spec.containers.0.command.0', 1),
    ('spec.replicatedJobs.0.template.spec.template.spec.containers.0.mounts', []),
    ('spec.replicatedJobs.0.template.spec.template.spec.nodeSelector.cloud/x', True)])
def test_schema_finds_what_the_api_would_refuse(where, value):
    manifest = manifest_of('v5p-128')
    *path, last = (int(part) if part.isdigit() else part for part in where.split('.'))
    place = manifest
    for part in path:
        place = place[part]
    place[last] = value
    assert len(jobset_schema.errors(manifest)) == 1


@pytest.mark.parametrize('claim', ['runs', '0', '7-days', 'pvc.team-a.v1', 'a' * 50, '.'.join(['a' * 62] * 4)])
def test_any_name_that_a_claim_may_have_is_taken(claim):
    manifest = manifest_of('v5p-128', f'--claim={claim}')
    assert jobset_schema.errors(manifest) == []
    assert pod_spec(manifest)['volumes'][0]['persistentVolumeClaim']['claimName'] == claim


@pytest.mark.parametrize('code, again', [(42, True), (134, True), (137, True), (1, True), (2, False), (43, False),
                                         (44, False)])
def test_jobset_starts_again_where_that_may_help(code, again):
    manifest = manifest_of('v5p-128')
    assert job_spec(manifest)['backoffLimit'] == 0 and pod_spec(manifest)['restartPolicy'] == 'Never'
    rule, = job_spec(manifest)['podFailurePolicy']['rules']
    assert (rule['action'], rule['onExitCodes']['operator']) == ('FailJob', 'In')
    reason = 'PodFailurePolicy' if code in rule['onExitCodes']['values'] else 'BackoffLimitExceeded'
    policy = manifest['spec']['failurePolicy']
    action = next((rule['action'] for rule in policy['rules'] if reason in rule['onJobFailureReasons']),
                  'RestartJobSet' if policy['maxRestarts'] else 'FailJobSet')
    assert action == ('RestartJobSet' if again else 'FailJobSet')


def test_jobset_tells_each_process_where_its_peers_are():
    manifest = manifest_of('2x v5e-256')
    variables = {item['name']: item.get('value') or item['valueFrom']['fieldRef']['fieldPath']
                 for item in pod_spec(manifest)['containers'][0]['env']}
    assert variables == {
        'JOBSET_NAME': "metadata.annotations['jobset.sigs.k8s.io/jobset-name']",
        'REPLICATED_JOB_NAME': "metadata.annotations['jobset.sigs.k8s.io/replicatedjob-name']",
        'JOB_INDEX': "metadata.annotations['jobset.sigs.k8s.io/job-index']",
        'JOB_COMPLETION_INDEX': "metadata.annotations['batch.kubernetes.io/job-completion-index']",
        'PROCESSES_PER_JOB': '64', 'NUM_JOBS': '2'}
    assert manifest['spec']['network']['enableDNSHostnames'] is True


@pytest.mark.parametrize('name, state', [('v5p-128', 'ACTIVE'), ('2x v5e-256', 'ACTIVE'), ('v5p-128', 'FAILED')])
def test_queued_resource_is_made_filled_and_started(system, name, state):
    step, = tpu.steps(job(), pod(name), zone='z', project=None, spot=False, wait=True)
    code, found = system(step.argv, STATE=state)
    made, *others = [words[3:] for words in found if words[0] == 'gcloud']
    started = [words for words in found if words[:3] == ['python', '-m', 'tools.supervise']]
    nodes = ['mine'] if name == 'v5p-128' else ['mine-0', 'mine-1']
    accelerator = '--accelerator-type=' + {'v5p-128': 'v5p-128', '2x v5e-256': 'v5litepod-256'}[name]
    assert made[:2] == ['queued-resources', 'create'] and accelerator in made and made[2] == 'mine'
    if state == 'FAILED':
        assert (code, len(others), started) == (1, 1, [])
        return
    assert (code, len(started)) == (0, len(nodes))
    copied = [words[-1] for words in others if 'scp' in words]
    assert copied == [f'{node}:' for node in nodes]
    assert {words[2] for words in others if 'ssh' in words} == set(nodes)
    assert all('--worker=all' in words for words in others if 'tpu-vm' in words)


def test_training_outlives_the_command_that_started_it(system):
    step, = tpu.steps(job(), pod('v5p-128'), zone='z', project=None, spot=False, wait=False)
    code, _ = system(step.argv)
    assert code == 0
    until = time.monotonic() + 30
    while not any(b'tools.supervise\0--' in path.read_bytes() and path.read_bytes().startswith(b'python')
                  for path in pathlib.Path('records').iterdir()):
        assert time.monotonic() < until
        time.sleep(.05)


@pytest.mark.parametrize('code', [0, 2, 42, 43, 134])
def test_slurm_queues_again_only_what_saved_itself(system, code):
    step, = slurm.steps(job(), nodes=1, time_limit=None, partition=None, folder='.', python='python', wait=True)
    ended, (task, *more) = system(['bash'], stdin=step.stdin.replace('srun', f'CODE={code} srun'))
    assert (ended, task[0]) == (code, 'srun')
    assert more == ([['scontrol', 'requeue', '77']] if code == 42 else [])
    assert step.argv == ['sbatch', '--wait']


@pytest.mark.parametrize('name', ['', 'v5p', 'v5p-127', 'v5p-130', 'v7-8', '0x v5e-256', 'v5e-256x', 'V5E-256', '-8',
                                  'v5e-٤', 'v5p-128\n', '$(x)'])
def test_pod_that_is_not_known_is_refused(name):
    with pytest.raises(UserError, match='--pod='):
        pod(name)


@pytest.mark.parametrize('words, line', [
    (CONFIG, 'give one target: tpu, gke, xpk, slurm or --local=N'),
    (['slurm', '--local=2', *CONFIG], 'give one target'),
    (['slurm', *CONFIG], '--nodes is missing, which slurm needs'),
    (['slurm', '--nodes=0', *CONFIG], '--nodes=0 is less than 1; use 1 or more'),
    (['slurm', '--nodes=2', '--zone=z', *CONFIG], '--zone means nothing to slurm; leave it out'),
    (['slurm', '--nodes=2', '--time_limit=1\n#SBATCH --wrap=x', *CONFIG], 'is no time of Slurm'),
    (['slurm', '--nodes=2', '--partition=a b', *CONFIG], "--partition='a b' is not a plain word"),
    (['slurm', '--nodes=many', *CONFIG], 'argument --nodes: invalid int value'),
    (['cloud', *CONFIG], "invalid choice: 'cloud'"),
    ([*WORDS['tpu'], '--name=My_Run', *CONFIG], "--name='My_Run' cannot name a job; use at most 40 of a-z, 0-9 and -"),
    ([*WORDS['tpu'], '--name=' + 'a' * 41, *CONFIG], 'cannot name a job'),
    ([*WORDS['tpu'], '--name=a\nb', *CONFIG], 'cannot name a job'),
    ([*WORDS['tpu'], '--config=x'], 'the following arguments are required: --workdir'),
    ([*WORDS['tpu'], *CONFIG, '--rerun=sft'], "argument '--rerun=sft' is not known"),
    ([*WORDS['tpu'], *CONFIG, '--config.x', '3'], "argument '--config.x' is not known"),
    ([*WORDS['tpu'], *CONFIG, '--config.x=a\0b'], 'holds a NUL'),
    ([*WORDS['tpu'], *CONFIG, '--config.x=\udcff'], 'is not UTF-8'),
    (['tpu', '--pod=tpu7x-128', '--zone=z', *CONFIG], '--pod=tpu7x-128 has no TPU VMs; use the target gke or xpk'),
    ([*WORDS['gke'], '--config=x', '--workdir=runs/x'], 'give an absolute path'),
    ([*WORDS['gke'], '--config=x', '--workdir=/a:/b'], 'give an absolute path'),
    (['gke', '--pod=v5p-128', '--image=a b', '--claim=runs', *CONFIG], "--image='a b' is not a plain word"),
    *((['gke', '--pod=v5p-128', '--image=a', f'--claim={claim}', *CONFIG],
       f'--claim={claim!r} cannot name a PersistentVolumeClaim; use at most 253 of a-z, 0-9, - and .')
      for claim in ('../x', '', 'Runs', 'a..b', '-a', 'a-', 'a.-b', 'a_b', 'a\n', 'a' * 254)),
    (['--local=3', *CONFIG], '--local=3 does not divide JAX_NUM_CPU_DEVICES=8; change one of them'),
    (['--local=0', *CONFIG], '--local=0 does not divide'),
])
def test_mistake_costs_one_line(words, line, monkeypatch):
    monkeypatch.delenv('JAX_NUM_CPU_DEVICES', raising=False)
    with pytest.raises(UserError, match=re.escape(line)) as error:
        launch.main([*words, '--dry_run'])
    assert '\n' not in str(error.value)


def test_command_ends_with_one_line_and_exit_code_2():
    done = subprocess.run([sys.executable, '-m', 'tools.launch', 'slurm', *CONFIG], capture_output=True, text=True,
                          cwd=pathlib.Path(__file__).parents[2])
    assert (done.returncode, done.stdout, done.stderr) == (2, '', 'error: --nodes is missing, which slurm needs\n')

"""A GKE JobSet, as YAML for kubectl or by xpk: one Job a slice, one pod a host.

In: a job, a pod, an image that holds the source in its working directory. Out: what is submitted, and to whom.
Left out: the cluster, its node pools and volumes.

A process's exit code decides: what a restart does not mend fails the JobSet; anything else starts all pods again, for
the hosts of a slice only work together.
"""

import re
from typing import Any

import yaml

from llm.errors import Diverged, StorageError, UserError
from tools.targets.job import Job, Step, word
from tools.targets.pods import Pod

_FINAL_CODES = sorted(error.exit_code for error in (UserError, Diverged, StorageError))
_MAX_RESTARTS = 100  # of all pods: a spot slice may be taken that often; `supervise` minds those without progress
_GRACE_SECONDS = 120  # from SIGTERM to SIGKILL: time to save
_COORDINATOR_PORT = 8476
_REPLICATED_JOB = 'slice'
_CLAIM_LENGTH = 253  # of a subdomain of RFC 1123
_JOBSET = 'jobset.sigs.k8s.io'


class _Dumper(yaml.SafeDumper):
    """Quotes whatever any parser of YAML might take for something other than a string."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    'tag:yaml.org,2002:str', text, style=None if re.fullmatch(r'[A-Za-z][A-Za-z./-]{2,}\w*', text) else '"'))


def steps(job: Job, pod: Pod, *, image: str, claim: str, spot: bool, wait: bool) -> list[Step]:
    """Creates the JobSet; with `wait` also stays until it has ended, and fails where it did."""
    text = yaml.dump(jobset(job, pod, image=image, claim=claim, spot=spot), Dumper=_Dumper, sort_keys=False,
                     width=10**6)
    name = f'jobset/{job.name}'
    waiting = [Step(['kubectl', 'wait', name, '--for=jsonpath={.status.terminalState}', '--timeout=-1s']),
               Step(['kubectl', 'wait', name, '--for=condition=Completed', '--timeout=0s'])]
    return [Step(['kubectl', 'create', '--filename=-'], stdin=text), *(waiting if wait else [])]


def jobset(job: Job, pod: Pod, *, image: str, claim: str, spot: bool) -> dict[str, Any]:
    """The manifest; the claim of a volume is mounted at the workdir, which so outlives its pods."""
    if not job.workdir.startswith('/') or ':' in job.workdir or '..' in job.workdir.split('/'):
        raise UserError(f'--workdir={job.workdir!r} is where the volume is mounted; give an absolute path without '
                        f': and ..')
    container = {
        'name': 'main', 'image': word('--image', image),
        'command': [_verbatim(text) for text in job.supervised('python')],
        'env': [*_environment(pod)],
        'ports': [{'containerPort': _COORDINATOR_PORT}],
        'resources': {'limits': {'google.com/tpu': pod.chips_per_host}},
        'volumeMounts': [{'name': 'workdir', 'mountPath': job.workdir}],
    }
    spec = {
        'restartPolicy': 'Never',  # as podFailurePolicy wants it
        'terminationGracePeriodSeconds': _GRACE_SECONDS,
        'nodeSelector': {'cloud.google.com/gke-tpu-accelerator': pod.gke_accelerator,
                         'cloud.google.com/gke-tpu-topology': pod.topology,
                         **({'cloud.google.com/gke-spot': 'true'} if spot else {})},
        'containers': [container],
        'volumes': [{'name': 'workdir', 'persistentVolumeClaim': {'claimName': _claim_name(claim)}}],
    }
    if spot:
        spec['tolerations'] = [{'key': 'cloud.google.com/gke-spot', 'operator': 'Equal', 'value': 'true',
                                'effect': 'NoSchedule'}]
    final = {'action': 'FailJob',
             'onExitCodes': {'containerName': 'main', 'operator': 'In', 'values': _FINAL_CODES}}
    slice_job = {
        'backoffLimit': 0, 'completionMode': 'Indexed', 'completions': pod.hosts, 'parallelism': pod.hosts,
        'podFailurePolicy': {'rules': [final]}, 'template': {'spec': spec}}
    return {
        'apiVersion': 'jobset.x-k8s.io/v1alpha2', 'kind': 'JobSet',
        'metadata': {'name': job.name, 'annotations': {  # a node pool is a slice
            'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'}},
        'spec': {
            'network': {'enableDNSHostnames': True},
            'failurePolicy': {'maxRestarts': _MAX_RESTARTS, 'rules': [
                {'name': 'final', 'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}]},
            'replicatedJobs': [{'name': _REPLICATED_JOB, 'replicas': pod.slices, 'template': {'spec': slice_job}}]}}


def _claim_name(claim: str) -> str:
    """The claim, if Kubernetes lets a thing have that name; raises UserError."""
    part = '[a-z0-9]([-a-z0-9]*[a-z0-9])?'
    if not re.fullmatch(rf'{part}(\.{part})*', claim) or len(claim) > _CLAIM_LENGTH:
        raise UserError(f'--claim={claim!r} cannot name a PersistentVolumeClaim; use at most {_CLAIM_LENGTH} of a-z, '
                        f'0-9, - and ., with a letter or digit first and last and beside each dot')
    return claim


def xpk_steps(job: Job, pod: Pod, *, image: str, cluster: str, zone: str, project: str | None,
              wait: bool) -> list[Step]:
    """The same by xpk, whose JobSet starts again after 42 and 127 to 255; the cluster attaches the volume."""
    where = [f'--cluster={word("--cluster", cluster)}', f'--zone={zone}',
             *([f'--project={project}'] if project else [])]
    command = ' '.join(_one_line(text) for text in job.supervised('python'))
    create = Step(['xpk', 'workload', 'create', *where, f'--workload={job.name}', f'--tpu-type={pod.accelerator_type}',
                   f'--num-slices={pod.slices}', f'--docker-image={word("--image", image)}',
                   f'--max-restarts={_MAX_RESTARTS}', f'--termination-grace-period-seconds={_GRACE_SECONDS}',
                   f'--command={command}'])
    waiting = Step(['xpk', 'workload', 'list', *where, f'--wait-for-job-completion={job.name}'])
    return [create, *([waiting] if wait else [])]


def _environment(pod: Pod):
    """What `llm.main` finds its peers by."""
    for name, field in (('JOBSET_NAME', f"metadata.annotations['{_JOBSET}/jobset-name']"),
                        ('REPLICATED_JOB_NAME', f"metadata.annotations['{_JOBSET}/replicatedjob-name']"),
                        ('JOB_INDEX', f"metadata.annotations['{_JOBSET}/job-index']"),
                        ('JOB_COMPLETION_INDEX', "metadata.annotations['batch.kubernetes.io/job-completion-index']")):
        yield {'name': name, 'valueFrom': {'fieldRef': {'fieldPath': field}}}
    yield {'name': 'PROCESSES_PER_JOB', 'value': str(pod.hosts)}
    yield {'name': 'NUM_JOBS', 'value': str(pod.slices)}


def _verbatim(text: str) -> str:
    """Kubernetes replaces $(NAME) in commands by variables, and $$ by $."""
    return text.replace('$', '$$')


def _one_line(text: str) -> str:
    """A word for bash that survives what lies before it: a line within YAML, and Kubernetes' $(NAME)."""
    if re.fullmatch(r'[\w./:=,@%+-]+', text, re.ASCII):
        return text
    return "$'" + ''.join(chr(byte) if re.fullmatch(r'[\w./:=,@%+-]', chr(byte), re.ASCII) else f'\\x{byte:02x}'
                          for byte in text.encode()) + "'"

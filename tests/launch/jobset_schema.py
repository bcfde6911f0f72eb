"""The part of the public API that our JobSets use: JobSet v1alpha2, Job batch/v1, Pod v1; unknown fields are wrong.

In: a parsed manifest. Out: a list of what is wrong with it. Left out: fields of those kinds that we do not set.
"""

import re
from typing import Any

LABEL = re.compile(r'[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?')  # RFC 1123
_SUBDOMAIN = re.compile(r'(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')  # too
_QUALIFIED = re.compile(r'([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?', re.ASCII)
_LABELS = {_QUALIFIED: re.compile(r'([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?', re.ASCII)}
_IMAGE = re.compile(r'[a-z0-9][\w./:@-]*', re.ASCII)
_ENV_NAME = re.compile(r'[A-Za-z_][A-Za-z0-9_]*')
_FIELD_PATH = re.compile(r"metadata\.(name|namespace|uid|(labels|annotations)\['[\w./-]+'\])|spec\.nodeName", re.ASCII)


def one_of(*values: str) -> re.Pattern:
    return re.compile('|'.join(map(re.escape, values)))


# A type is: a class; a pattern of a whole string; [type]; {pattern: type} of a map; {field: type} of an object, where
# a field with ! must be there.
_CONTAINER = {
    'name!': LABEL, 'image': _IMAGE, 'command': [str], 'args': [str], 'workingDir': str,
    'env': [{'name!': _ENV_NAME, 'value': str, 'valueFrom': {'fieldRef': {'fieldPath!': _FIELD_PATH,
                                                                           'apiVersion': one_of('v1')}}}],
    'ports': [{'containerPort!': int, 'name': LABEL, 'protocol': one_of('TCP', 'UDP', 'SCTP')}],
    'resources': {'limits': {_QUALIFIED: int}, 'requests': {_QUALIFIED: int}},
    'volumeMounts': [{'name!': LABEL, 'mountPath!': re.compile(r'[^:]+', re.DOTALL), 'readOnly': bool, 'subPath': str}]}
_POD = {
    'containers!': [_CONTAINER], 'restartPolicy': one_of('Never', 'OnFailure', 'Always'),
    'terminationGracePeriodSeconds': int, 'nodeSelector': _LABELS, 'serviceAccountName': LABEL, 'subdomain': LABEL,
    'tolerations': [{'key': _QUALIFIED, 'operator': one_of('Exists', 'Equal'), 'value': str,
                     'effect': one_of('NoSchedule', 'PreferNoSchedule', 'NoExecute'), 'tolerationSeconds': int}],
    'volumes': [{'name!': LABEL, 'persistentVolumeClaim': {'claimName!': _SUBDOMAIN, 'readOnly': bool}}]}
_METADATA = {'labels': _LABELS, 'annotations': {_QUALIFIED: str}}
_POLICY = {'rules!': [{
    'action!': one_of('FailJob', 'FailIndex', 'Ignore', 'Count'),
    'onExitCodes': {'containerName': LABEL, 'operator!': one_of('In', 'NotIn'), 'values!': [int]},
    'onPodConditions': [{'type!': str, 'status': one_of('True', 'False', 'Unknown')}]}]}
_JOB = {
    'template!': {'metadata': _METADATA, 'spec!': _POD}, 'backoffLimit': int, 'completions': int, 'parallelism': int,
    'completionMode': one_of('NonIndexed', 'Indexed'), 'podFailurePolicy': _POLICY, 'activeDeadlineSeconds': int,
    'suspend': bool, 'ttlSecondsAfterFinished': int, 'podReplacementPolicy': one_of('TerminatingOrFailed', 'Failed')}
_REASONS = one_of('BackoffLimitExceeded', 'DeadlineExceeded', 'FailedIndexes', 'MaxFailedIndexesExceeded',
                  'PodFailurePolicy')
JOBSET = {
    'apiVersion!': one_of('jobset.x-k8s.io/v1alpha2'), 'kind!': one_of('JobSet'),
    'metadata!': {'name!': LABEL, 'namespace': LABEL, **_METADATA},
    'spec!': {
        'replicatedJobs!': [{'name!': LABEL, 'replicas': int, 'template!': {'metadata': _METADATA, 'spec!': _JOB}}],
        'network': {'enableDNSHostnames': bool, 'subdomain': LABEL, 'publishNotReadyAddresses': bool},
        'successPolicy': {'operator!': one_of('All', 'Any'), 'targetReplicatedJobs': [LABEL]},
        'failurePolicy': {
            'maxRestarts': int, 'restartStrategy': one_of('Recreate', 'BlockingRecreate'),
            'rules': [{'name!': re.compile(r'[A-Za-z]([\w,:]*[\w])?', re.ASCII), 'onJobFailureReasons': [_REASONS],
                       'action!': one_of('FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts'),
                       'targetReplicatedJobs': [LABEL]}]},
        'startupPolicy': {'startupPolicyOrder!': one_of('AnyOrder', 'InOrder')},
        'suspend': bool, 'ttlSecondsAfterFinished': int}}


def errors(value: Any, kind: Any = JOBSET, path: str = '') -> list[str]:
    """One line for each thing that the API would refuse."""
    if isinstance(kind, type):
        return [] if type(value) is kind else [f'{path}={value!r} is no {kind.__name__}']
    if isinstance(kind, re.Pattern):
        return [] if isinstance(value, str) and kind.fullmatch(value) else [f'{path}={value!r} is not {kind.pattern}']
    if isinstance(kind, list):
        if not isinstance(value, list) or not value:
            return [f'{path}={value!r} is no list with items']
        return [line for number, item in enumerate(value) for line in errors(item, kind[0], f'{path}[{number}]')]
    if not isinstance(value, dict):
        return [f'{path}={value!r} is no object']
    if isinstance(next(iter(kind)), re.Pattern):
        (key_kind, item_kind), = kind.items()
        return [line for key, item in value.items()
                for line in errors(key, key_kind, f'{path} key') + errors(item, item_kind, f'{path}.{key}')]
    known = {field.rstrip('!'): item for field, item in kind.items()}
    return ([f'{path}.{field} is missing' for field in kind if field.endswith('!') and field[:-1] not in value]
            + [f'{path}.{field} is unknown' for field in value if field not in known]
            + [line for field, item in value.items() if field in known
               for line in errors(item, known[field], f'{path}.{field}')])

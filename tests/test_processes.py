import contextlib
import socket
import threading
import time

import pytest

from llm import processes
from llm.errors import UserError
from llm.processes import from_environment, join, Place

JOBSET = {'JOBSET_NAME': 'quartet', 'REPLICATED_JOB_NAME': 'slice', 'JOB_INDEX': '1', 'JOB_COMPLETION_INDEX': '3',
          'PROCESSES_PER_JOB': '16', 'NUM_JOBS': '2'}


@pytest.mark.parametrize('environment, place', [
    ({}, None),
    ({'SLURM_JOB_ID': '7'}, None),  # a batch script's own environment: no step, no task
    ({'JAX_COORDINATOR_ADDRESS': '10.0.0.1:99', 'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '2'},
     Place('10.0.0.1:99', 4, 2)),
    (JOBSET, Place('quartet-slice-0-0.quartet:8476', 32, 19)),
    *(({'SLURM_STEP_NODELIST': nodes, 'SLURM_NTASKS': '8', 'SLURM_PROCID': '5'}, Place(f'{first}:8476', 8, 5))
      for nodes, first in [('node001', 'node001'), ('node001,other', 'node001'), ('node[001-015],other', 'node001'),
                           ('node[001,007-015]', 'node001'), ('a-b[1-2]-c', 'a-b1-c'), ('tpu-1,tpu-2', 'tpu-1')])])
def test_place_that_an_environment_says(environment, place):
    assert from_environment(environment) == place


@pytest.mark.parametrize('key', ['JOB_INDEX', 'JOB_COMPLETION_INDEX', 'PROCESSES_PER_JOB', 'NUM_JOBS'])
def test_variable_that_is_no_number_is_named(key):
    with pytest.raises(UserError, match=f"{key}='' in the environment is not a number; unset"):
        from_environment({**JOBSET, key: ''})


@pytest.mark.parametrize('words, line', [
    (('a:1', 2, None), '--coordinator=a:1 --processes=2 --process=None: give all three'),
    ((None, None, 0), 'give all three'),
    (('a', 2, 0), 'is not HOST:PORT with 0 <= process < processes'),
    (('a:b', 2, 0), 'is not HOST:PORT'), (('a:0', 2, 0), 'is not HOST:PORT'), (('a:65536', 2, 0), 'is not HOST:PORT'),
    (('a:1', 2, 2), 'is not HOST:PORT'), (('a:1', 2, -1), 'is not HOST:PORT')])
def test_mistaken_flags_are_refused(words, line):
    with pytest.raises(UserError) as error:
        join(*words)
    assert line in str(error.value)


def test_a_process_alone_joins_nothing(monkeypatch):
    monkeypatch.setattr('jax.distributed.initialize', lambda *words, **named: pytest.fail('joined'))
    join('127.0.0.1:1', 1, 0)
    join(None, None, None)


@pytest.fixture
def joined(monkeypatch):
    """joined(*words) -> what `jax.distributed.initialize` is called with by `join(*words)`; waits for nothing."""
    calls = []
    monkeypatch.setattr(processes, '_PATIENCE_SECONDS', 0)
    monkeypatch.setattr('jax.distributed.initialize', lambda address, **named: calls.append(
        {**named, 'address': address}))

    def call(*words) -> dict:
        join(*words)
        return calls.pop()
    return call


@contextlib.contextmanager
def taken():
    """A port of this machine on which somebody listens."""
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
        door.bind(('127.0.0.1', 0))
        door.listen()
        yield door


@pytest.mark.parametrize('address, index', [('10.0.0.1:99', 1), ('127.0.0.1:8476', 0)])
def test_coordinator_listens_on_its_own_address_alone(joined, address, index):
    assert joined(address, 2, index) == {
        'address': address, 'coordinator_bind_address': address, 'num_processes': 2, 'process_id': index,
        'heartbeat_timeout_seconds': 10}


@pytest.mark.parametrize('workers, index', [('127.0.0.1,127.0.0.2', 0), ('127.0.0.2,127.0.0.1', 1)])
def test_on_a_tpu_pod_it_does_so_too(joined, monkeypatch, workers, index):
    """With JAX's own reading of what a pod's machines are told."""
    monkeypatch.setattr(processes, '_on_tpu_pod', lambda: True)
    monkeypatch.setattr('jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm', True)
    pod = {'TPU_WORKER_HOSTNAMES': workers, 'TPU_WORKER_ID': str(index), 'TPU_SKIP_MDS_QUERY': '1',
           'MEGASCALE_COORDINATOR_ADDRESS': '', 'MEGASCALE_NUM_SLICES': '1', 'MEGASCALE_SLICE_ID': '0'}
    for name, value in pod.items():
        monkeypatch.setenv(name, value)
    called, first = joined(None, None, None), workers.split(',')[0]
    assert called['coordinator_bind_address'] == called['address'] and called['address'].startswith(f'{first}:')
    assert (called['num_processes'], called['process_id']) == (2, index)


def test_a_machine_that_only_looks_like_a_pod_costs_one_line(monkeypatch):
    monkeypatch.setattr(processes, '_on_tpu_pod', lambda: True)
    with pytest.raises(UserError, match='^no TPU is found; set JAX_PLATFORMS'):
        join(None, None, None)


@pytest.mark.parametrize('address, index, why', [
    ('192.0.2.1:8476', 0, 'Cannot assign requested address'),  # of no machine (RFC 5737)
    ('nowhere.invalid:8476', 0, 'Name or service not known'), ('nowhere.invalid:8476', 1, 'Name or service not known'),
    ('a..b:8476', 1, "encoding with 'idna' codec failed")])
def test_an_address_that_cannot_be_costs_one_line(joined, monkeypatch, address, index, why):
    if 'invalid' in address:
        def unknown(*words, **named):  # no resolver of this machine's is asked
            raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')
        monkeypatch.setattr(socket, 'getaddrinfo', unknown)
    with pytest.raises(UserError) as error:
        joined(address, 2, index)
    assert str(error.value).startswith(f'--coordinator={address}: {why}') and 'give an address' in str(error.value)
    assert '\n' not in str(error.value)


def test_a_name_that_a_scheduler_says_is_waited_for_by_jax(joined, monkeypatch):
    for name, value in JOBSET.items():
        monkeypatch.setenv(name, value)
    assert joined(None, None, None)['process_id'] == 19  # `quartet-slice-0-0.quartet` is no name here


def test_a_port_that_is_taken_costs_one_line(joined):
    with taken() as door:
        address = f'127.0.0.1:{door.getsockname()[1]}'
        with pytest.raises(UserError, match=f'^--coordinator={address}: Address already in use; give'):
            joined(address, 2, 0)
        assert joined(address, 2, 1)['address'] == address  # the others go there


def test_a_port_that_becomes_free_is_waited_for(joined, monkeypatch):
    monkeypatch.setattr(processes, '_PATIENCE_SECONDS', 30)
    with taken() as door:
        address = f'127.0.0.1:{door.getsockname()[1]}'
        threading.Timer(0.5, door.close).start()
        began = time.monotonic()
        assert joined(address, 2, 0)['address'] == address
        assert 0.3 < time.monotonic() - began < 25


def test_a_port_of_connections_that_have_ended_is_free(joined):
    with taken() as door:
        address = door.getsockname()
        with socket.create_connection(address) as caller:
            door.accept()[0].close()  # who closes first stays in TIME_WAIT
            assert caller.recv(1) == b''
    with socket.socket() as other, pytest.raises(OSError, match='in use'):
        other.bind(address)
    assert joined(f'127.0.0.1:{address[1]}', 2, 0)['process_id'] == 0


def test_progress_is_said_where_a_supervisor_looks(monkeypatch, tmp_path):
    processes.progress('nobody looks')
    monkeypatch.setenv(processes.PROGRESS_FILE, str(tmp_path / 'progress'))
    processes.progress('ppo 3')
    assert (tmp_path / 'progress').read_text() == 'ppo 3\n'

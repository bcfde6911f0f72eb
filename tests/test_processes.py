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
    (('a:b', 2, 0), 'is not HOST:PORT'), (('a:1', 2, 2), 'is not HOST:PORT'), (('a:1', 2, -1), 'is not HOST:PORT')])
def test_mistaken_flags_are_refused(words, line):
    with pytest.raises(UserError) as error:
        join(*words)
    assert line in str(error.value)


def test_a_process_alone_joins_nothing(monkeypatch):
    monkeypatch.setattr('jax.distributed.initialize', lambda *words, **named: pytest.fail('joined'))
    join('127.0.0.1:1', 1, 0)
    join(None, None, None)


def test_coordinator_listens_on_its_own_address_alone(monkeypatch):
    called = {}
    monkeypatch.setattr('jax.distributed.initialize', lambda address, **named: called.update(named, address=address))
    join('10.0.0.1:99', 2, 1)
    assert called == {'address': '10.0.0.1:99', 'coordinator_bind_address': '10.0.0.1:99', 'num_processes': 2,
                      'process_id': 1, 'heartbeat_timeout_seconds': 10}


def test_progress_is_said_where_a_supervisor_looks(monkeypatch, tmp_path):
    processes.progress('nobody looks')
    monkeypatch.setenv(processes.PROGRESS_FILE, str(tmp_path / 'progress'))
    processes.progress('ppo 3')
    assert (tmp_path / 'progress').read_text() == 'ppo 3\n'

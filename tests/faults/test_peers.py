"""Two processes under a supervisor each: what they listen on, one killed, the coordinator stopped, one asked to stop.

One job outlives all of it, in this order. Times are not held to a limit here, but for a hang.
"""

import random

import psutil
import pytest

from tests.test_sockets import listening, reachable
from tools.faults import peers, preempt

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def crew(tmp_path_factory):
    with peers.Crew(tmp_path_factory.mktemp('crew'), 2) as crew:
        peers.wait_for(lambda: crew.trained_since(0.0), 600)
        yield crew


def test_it_listens_on_no_address_that_others_reach(crew):
    found = [listening(member) for member in crew.members()]
    assert any(found)  # the coordinator's port, at least
    assert [reachable(addresses) for addresses in found] == [set(), set()]


@pytest.mark.parametrize('fault', ['peer killed', 'coordinator stopped'])
def test_a_fault_ends_all_and_the_job_goes_on(crew, fault):
    done = peers.trial(crew, fault, random.Random(0))
    assert 0 < done.noticed_seconds < done.again_seconds
    # Killed, by us or for being stopped; its peer by the coordination service, or by an error of the connection.
    assert 128 + 9 in done.codes and set(done.codes) <= {1, 128 + 6, 128 + 9}


def test_sigterm_to_one_saves_and_ends_all(crew):
    assert preempt.trial(crew, random.Random(0)).right


def test_asked_to_stop_the_supervisors_end_with_42(crew):
    supervisors = [member.parent() for member in crew.members()]
    supervisors[1].terminate()
    assert supervisors[1].wait(120) == 42
    assert 42 in [codes[-1] for codes in crew.codes()]
    assert psutil.pid_exists(supervisors[0].pid)  # its own machine was not asked for: it waits for its peers

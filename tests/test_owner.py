"""Owners of folders: one at a time, whoever died is replaced, whoever lives is not."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from llm import owner as owner_lib
from llm.errors import StorageError, UserError
from llm.owner import Owner

OWNING = """
import sys
from llm.owner import Owner
with Owner(sys.argv[1]):
    print('owns', flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process, which owns tmp_path until it is told to end."""
    process = subprocess.Popen([sys.executable, '-c', OWNING, tmp_path], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'owns\n'
    yield process
    process.kill()
    process.communicate()


def write_owner(folder, *, host=None, pid=None, started=None, age_seconds=0.0):
    path = folder / 'owner.json'
    path.write_text(json.dumps({
        'token': 'theirs', 'host': host or socket.gethostname(), 'pid': pid or os.getpid(),
        'started': started or psutil.Process().create_time()}))
    os.utime(path, (time.time() - age_seconds,) * 2)


def test_live_owner_is_named_and_keeps_the_folder(tmp_path, other):
    with pytest.raises(UserError, match=f'in use by process {other.pid} on ') as caught:
        Owner(tmp_path).__enter__()
    assert '\n' not in str(caught.value)
    assert json.loads((tmp_path / 'owner.json').read_text())['pid'] == other.pid


def test_second_owner_in_the_same_process_is_refused(tmp_path):
    with Owner(tmp_path):
        with pytest.raises(UserError, match='in use'):
            Owner(tmp_path).__enter__()


def test_folder_is_free_after_the_owner_left(tmp_path, other):
    other.communicate('')
    assert not (tmp_path / 'owner.json').exists()
    with Owner(tmp_path):
        pass


def test_killed_owner_is_replaced_at_once_even_before_its_parent_noticed(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    with Owner(tmp_path) as owner:
        owner.check()


def test_process_number_used_again_is_not_the_owner(tmp_path):
    write_owner(tmp_path, started=psutil.Process().create_time() - 100)
    with Owner(tmp_path) as owner:
        owner.check()


def test_owner_on_another_host_that_beats_is_left_alone(tmp_path):
    write_owner(tmp_path, host='elsewhere', pid=2**22 + 1, age_seconds=owner_lib.STALE_SECONDS - 10)
    beat = threading.Timer(0.2, os.utime, [tmp_path / 'owner.json'])
    beat.start()
    with pytest.raises(UserError, match='on elsewhere, last seen 0 s ago'):
        Owner(tmp_path).__enter__()
    beat.join()


def test_owner_on_another_host_that_is_silent_is_waited_for_and_replaced(tmp_path):
    write_owner(tmp_path, host='elsewhere', pid=2**22 + 1, age_seconds=owner_lib.STALE_SECONDS - 1)
    began = time.monotonic()
    with Owner(tmp_path) as owner:
        assert time.monotonic() - began > 0.9
        owner.check()


def test_heartbeat_renews_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(owner_lib, 'BEAT_SECONDS', 0.01)
    with Owner(tmp_path):
        os.utime(tmp_path / 'owner.json', (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / 'owner.json').stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_folder_that_is_gone_is_a_matter_of_storage(tmp_path):
    with Owner(tmp_path / 'run') as owner:
        (tmp_path / 'run').rename(tmp_path / 'elsewhere')
        with pytest.raises(StorageError, match='is gone'):
            owner.check()


def test_owner_that_was_replaced_says_so_and_leaves_the_file_alone(tmp_path):
    with Owner(tmp_path) as owner:
        write_owner(tmp_path, host='elsewhere')
        with pytest.raises(UserError, match='taken over by process .* on elsewhere'):
            owner.check()
    assert json.loads((tmp_path / 'owner.json').read_text())['token'] == 'theirs'


def test_of_many_that_find_a_dead_owner_one_takes_over(tmp_path, monkeypatch):
    read = owner_lib._read

    def read_slowly(path):
        owner = read(path)
        time.sleep(0.02)
        return owner

    monkeypatch.setattr(owner_lib, '_read', read_slowly)
    write_owner(tmp_path, age_seconds=owner_lib.STALE_SECONDS + 10)
    start, refused, owners = threading.Barrier(8), [], []

    def enter():
        owner = Owner(tmp_path)
        start.wait()
        try:
            owners.append(owner.__enter__())
        except UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(owners), len(refused)) == (1, 7)
    owners[0].check()
    owners[0].__exit__()

"""No command listens on an address that other machines reach, unless it is told to: read from the kernel's table.

Tried: `llm.main` alone and by `tools.launch --local`, sample, report, evaluate, supervise; two processes under
supervisors in `tests/faults/test_peers.py`. Left out: the other tools.
"""

import contextlib
import ipaddress
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import psutil
import pytest

from tests import jobs
from tests import tiny
from tests.stages import exactness
from tools.faults.peers import Crew, wait_for

LISTEN = '0A'


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Addresses and ports on which that process and all that it started listen."""
    inodes = set()
    for each in [process, *process.children(recursive=True)]:
        for entry in pathlib.Path(f'/proc/{each.pid}/fd').iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed while it was looked at
                if (target := os.readlink(entry)).startswith('socket:['):
                    inodes.add(target[len('socket:['):-1])
    found = set()
    for table in ('tcp', 'tcp6'):
        for line in pathlib.Path(f'/proc/{process.pid}/net/{table}').read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and fields[9] in inodes:
                address, port = fields[1].split(':')
                found.add((str(decoded(address)), int(port, 16)))
    return found


def decoded(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Of the kernel's table: words of four bytes, in the machine's order."""
    words = [int(address[start:start + 8], 16).to_bytes(4, 'little') for start in range(0, len(address), 8)]
    return ipaddress.ip_address(b''.join(words))


def reachable(addresses: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those that are not of this machine alone."""
    def of_this_machine(address: str) -> bool:
        ip = ipaddress.ip_address(address)
        return (getattr(ip, 'ipv4_mapped', None) or ip).is_loopback
    return {(address, port) for address, port in addresses if not of_this_machine(address)}


@pytest.mark.parametrize('family, address, shown, found', [
    (socket.AF_INET, '127.0.0.1', '127.0.0.1', False), (socket.AF_INET, '0.0.0.0', '0.0.0.0', True),
    (socket.AF_INET6, '::1', '::1', False), (socket.AF_INET6, '::', '::', True),
    (socket.AF_INET6, '::ffff:127.0.0.1', '::ffff:127.0.0.1', False)])
def test_a_listening_socket_is_found(family, address, shown, found):
    with socket.socket(family) as door:
        try:
            door.bind((address, 0))
        except OSError:
            pytest.skip(f'this machine has no {address}')
        port = door.getsockname()[1]
        assert port not in {known for _, known in listening(psutil.Process())}  # bound, and not listening yet
        door.listen()
        mine = {(known, number) for known, number in listening(psutil.Process()) if number == port}
        assert {(str(ipaddress.ip_address(known)), number) for known, number in mine} == {
            (str(ipaddress.ip_address(shown)), port)}
        assert bool(reachable(mine)) == found


@pytest.mark.slow
def test_a_process_alone_listens_nowhere_from_its_start_on(tmp_path):
    seen = set()
    with Crew(tmp_path, 1) as crew:
        member, = crew.members()
        began = time.time()

        def trained() -> bool:
            seen.update(listening(member))
            return crew.trained_since(began) is not None
        wait_for(trained, 600)
        seen |= listening(member)
    assert seen == set()


def seen_of(*words: str) -> tuple[int, set[tuple[str, int]]]:
    """The exit code of a tool, and what it and all that it started listened on, from its start to its end."""
    seen, process = set(), subprocess.Popen([sys.executable, '-m', *words], cwd=jobs.ROOT, stdout=subprocess.DEVNULL,
                                            env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '2'})
    try:
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess, OSError):  # one ended while it was looked at
                seen |= listening(psutil.Process(process.pid))
            time.sleep(0.05)
        return process.returncode, seen
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize('words', [
    ['tools.sample', '{run}', '--prompt=the king'], ['tools.report', '{workdir}'],
    ['tools.supervise', '--', sys.executable, '-m', 'tools.evaluate', '{run}']], ids=lambda words: words[0])
def test_a_tool_listens_nowhere_from_start_to_end(finished_pipeline, tmp_path, words):
    workdir = shutil.copytree(finished_pipeline, tmp_path / 'runs')
    run = exactness.folder_of('pretrain', workdir)
    assert seen_of(*(word.format(run=run, workdir=workdir) for word in words)) == (0, set())


@pytest.mark.slow
def test_processes_of_a_local_launch_listen_for_this_machine_alone(tmp_path):
    tiny.write_data(tmp_path)
    config = jobs.write_config(tmp_path, only='pretrain', **{
        'pretrain.stop_step': 2, 'pretrain.exec.mesh.data': 2, 'pretrain.figures.rows': 0})
    code, seen = seen_of('tools.launch', '--local=2', f'--config={config}', f'--workdir={tmp_path / "runs"}')
    assert code == 0 and seen  # the coordinator's port, at least
    assert reachable(seen) == set()


def test_what_a_tool_listens_on_is_seen(tmp_path):
    (tmp_path / 'serve.py').write_text('import socket, time\nwith socket.socket() as door:\n'
                                       '    door.bind(("127.0.0.1", 0))\n    door.listen()\n    time.sleep(1)\n')
    code, seen = seen_of('tools.supervise', '--', sys.executable, str(tmp_path / 'serve.py'))
    assert code == 0 and [address for address, _ in seen] == ['127.0.0.1'] and reachable(seen) == set()

"""No command listens on an address that other machines reach, unless it is told to: read from the kernel's table."""

import ipaddress
import os
import pathlib
import socket
import time

import psutil
import pytest

from tools.faults.peers import Crew, wait_for

LISTEN = '0A'


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Addresses and ports on which that process and all that it started listen."""
    inodes = set()
    for each in [process, *process.children(recursive=True)]:
        for entry in pathlib.Path(f'/proc/{each.pid}/fd').iterdir():
            if entry.is_symlink() and (target := os.readlink(entry)).startswith('socket:['):
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

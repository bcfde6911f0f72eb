"""Memory on the CPU: what is freed stays, and arrays stand in huge pages where the system has them."""

import ctypes
import json
import pathlib
import subprocess
import sys

import pytest

_SHOWN = '''
import json
import pathlib
import jax
from llm.host_memory import keep_memory

def kib(key):
    lines = pathlib.Path('/proc/self/smaps_rollup').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))

jax.config.update('jax_platforms', 'cpu')
{call}
arrays = [jax.block_until_ready(jax.numpy.ones(2**24)) for _ in range(6)]
huge = kib('AnonHugePages:')
del arrays
print(json.dumps({{'kept': kib('Rss:'), 'huge': huge}}))
'''
_ARRAYS_KIB = 6 * 2**16


@pytest.fixture(scope='module')
def seen():
    """KiB that stay after arrays are freed, and that were in huge pages before: with our memory and with glibc's."""
    if not (hasattr(ctypes.CDLL(None), 'mallopt') and pathlib.Path('/proc/self/smaps_rollup').exists()):
        pytest.skip('this is no Linux with glibc')
    made = [subprocess.run([sys.executable, '-c', _SHOWN.format(call=call)], capture_output=True, text=True, check=True)
            for call in ('keep_memory()', 'pass')]
    return [json.loads(process.stdout) for process in made]


def test_freed_arrays_stay_with_the_process(seen):
    ours, left_alone = seen
    assert ours['kept'] - left_alone['kept'] > 0.9 * _ARRAYS_KIB


def test_arrays_stand_in_huge_pages(seen):
    enabled = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
    if not enabled.exists() or '[madvise]' not in enabled.read_text():
        pytest.skip('this system gives huge pages to all or to none')
    ours, left_alone = seen
    assert ours['huge'] - left_alone['huge'] > 0.5 * _ARRAYS_KIB

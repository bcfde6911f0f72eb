"""The processes of one job: how they find each other, who goes first, where they wait, when they are asked to stop.

In: flags, or the environment of Slurm, of a Kubernetes JobSet or of a TPU pod. Out: a joined `jax.distributed`;
barriers; whether a step is the last one before this machine is taken away.
Left out: what a process does (everything else); starting and restarting it (`tools/launch.py`, `tools/supervise.py`).

Every process runs the same program and comes to the same barriers in the same order. Process 0 alone writes what
people and later runs read; only Orbax writes from all.
"""

from collections.abc import Iterator, Mapping
import contextlib
import errno
import glob
import itertools
import os
import pathlib
import re
import signal
import socket
import threading
import time
from typing import NamedTuple

import jax
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils
import numpy as np

from llm.errors import Diverged, exit_code, Preempted, StorageError, UserError

HEARTBEAT_SECONDS = 10  # a process that is silent for longer counts as dead, and the others end, too
PROGRESS_FILE = 'QUARTET_PROGRESS_FILE'  # environment variable: where a supervisor looks whether there is progress
_ERRORS = {error.exit_code: error for error in (UserError, Diverged, StorageError, Preempted)}
GOES_ON = 'QUARTET_GOES_ON'  # environment variable, which a supervisor sets once there was progress
_BEAT_SECONDS = 5.0
_PORT = 8476  # of process 0, where no flag says one
_PATIENCE_SECONDS = 30  # for a port that a dying process holds, and for a name that is not known yet
_POD_SECONDS = 300  # for the hosts of a TPU pod, as `jax.distributed` waits


class Place(NamedTuple):
    """Where a process stands among those of its job."""

    coordinator: str  # HOST:PORT on which process 0 listens
    count: int
    index: int


def join(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Makes this process one of a job, before anything touches a device; a process alone stays alone.

    Args:
      coordinator: HOST:PORT on which process 0 listens, and on no other address. None, all three: what the
        environment says (`from_environment`), or a TPU pod's metadata.

    Raises UserError where only some of the three are given, or they do not fit each other.
    """
    given = (coordinator, count, index)
    if None in given and any(value is not None for value in given):
        raise UserError(f'--coordinator={coordinator} --processes={count} --process={index}: give all three; or none, '
                        f'on a TPU pod, in a JobSet, under Slurm or alone')
    place = from_environment(os.environ) if coordinator is None else Place(coordinator, count, index)
    if place is None:
        if not _on_tpu_pod():
            return
        place = _of_tpu_pod()
    if (not re.fullmatch(r'([^:]+|\[[^]]+\]):\d+', place.coordinator, re.ASCII)
            or not 0 < int(place.coordinator.rpartition(':')[2]) < 2**16 or not 0 <= place.index < place.count):
        raise UserError(f'--coordinator={place.coordinator} --processes={place.count} --process={place.index} is not '
                        f'HOST:PORT with 0 <= process < processes; e.g. --coordinator=10.0.0.1:{_PORT} --processes=4 '
                        f'--process=0')
    if place.count == 1:
        return
    # The name of a host that a scheduler has not started yet is none yet: there, JAX waits for it.
    if place.index == 0 or coordinator is not None:
        _check(place)
    # Without a bind address it would listen on all that this machine has.
    jax.distributed.initialize(place.coordinator, num_processes=place.count, process_id=place.index,
                               coordinator_bind_address=place.coordinator,
                               heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def _check(place: Place) -> None:
    """Raises UserError where the coordinator's name is not known or, in process 0, its address cannot be listened on.

    JAX ends process 0 with a segmentation fault there.
    """
    host, _, port = place.coordinator.rpartition(':')
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            addresses = socket.getaddrinfo(host.strip('[]'), int(port), type=socket.SOCK_STREAM)
            if place.index == 0:
                _bind(addresses)
            return
        except (OSError, UnicodeError) as error:  # the latter for a name with a part that is empty or too long
            passing = isinstance(error, socket.gaierror) or getattr(error, 'errno', None) == errno.EADDRINUSE
            if not passing or time.monotonic() > until:
                why = getattr(error, 'strerror', None) or str(error)
                raise UserError(f'--coordinator={place.coordinator}: {why}; give an address of the machine of process '
                                f'0 that the others reach, and a port that is free there') from None
        time.sleep(0.2)


def _bind(addresses: list[tuple]) -> None:
    """Raises OSError unless one of them can be bound, as JAX's server, too, is content with one."""
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as door:
                door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a job before left in TIME_WAIT
                door.bind(address)
                return
        except OSError as error:
            failure = error
    raise failure


def _of_tpu_pod() -> Place:
    """What a TPU pod's metadata say: what `jax.distributed` asks, which does not say what it was told."""
    coordinator, count, index, _ = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, _POD_SECONDS)
    if coordinator is None:  # devices like a TPU's, and nobody who says what they are
        raise UserError('no TPU is found; set JAX_PLATFORMS, or give --coordinator, --processes and --process')
    return Place(coordinator, count, index)


def from_environment(environment: Mapping[str, str]) -> Place | None:
    """What JAX's own variables, a JobSet (as `tools/launch.py` writes it) or Slurm say; None where none of them is.

    Raises UserError where a variable is missing or no number.
    """
    def number(key: str) -> int:
        value = environment.get(key, '')
        if not value.isdecimal():
            raise UserError(f'{key}={value!r} in the environment is not a number; unset what says that this process is '
                            f'one of several, or give --coordinator, --processes and --process')
        return int(value)
    if 'JAX_COORDINATOR_ADDRESS' in environment:
        return Place(environment['JAX_COORDINATOR_ADDRESS'], number('JAX_NUM_PROCESSES'), number('JAX_PROCESS_ID'))
    if 'JOBSET_NAME' in environment:
        each, jobset = number('PROCESSES_PER_JOB'), environment['JOBSET_NAME']
        first = f'{jobset}-{environment.get("REPLICATED_JOB_NAME", "")}-0-0.{jobset}'
        return Place(f'{first}:{_PORT}', each * number('NUM_JOBS'),
                     number('JOB_INDEX') * each + number('JOB_COMPLETION_INDEX'))
    if 'SLURM_STEP_NODELIST' in environment and 'SLURM_PROCID' in environment:
        # The first of 'node001,other', 'node[001-015],other' or 'node[001,007-015]-x'.
        first = re.match(r'([^,[]*)(?:\[(\w+)[^]]*\])?([^,[]*)', environment['SLURM_STEP_NODELIST'])
        return Place(f'{"".join(filter(None, first.groups()))}:{_PORT}', number('SLURM_NTASKS'),
                     number('SLURM_PROCID'))
    return None


def choose_platform() -> None:
    """Without a TPU in this machine the CPU is used, and libtpu, where it is installed, does not look for one."""
    if 'JAX_PLATFORMS' not in os.environ and not _tpu_chips():
        jax.config.update('jax_platforms', 'cpu')


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_then_others(what: str) -> Iterator[None]:
    """Process 0 does what is in the context, and the others wait for it; then they do, and find it done.

    Where process 0 fails, so do the others, with the same exit code: a supervisor treats all alike.
    """
    if jax.process_count() == 1:
        yield
    elif is_first():
        code = 0
        try:
            yield
        except BaseException as error:
            code = exit_code(error)
            raise
        finally:
            multihost_utils.broadcast_one_to_all(np.int32(code))
    else:
        with _patience(what):
            code = int(multihost_utils.broadcast_one_to_all(np.int32(0)))
        if code:
            raise _ERRORS.get(code, RuntimeError)(f'{what}: process 0 failed; its line says why')
        yield


@contextlib.contextmanager
def _patience(what: str) -> Iterator[None]:
    """While this process waits, its supervisor hears that it does: whoever it waits for has one of its own."""
    over = threading.Event()

    def beat():
        while not over.wait(_BEAT_SECONDS):
            progress(f'waits for process 0: {what}')
    thread = threading.Thread(target=beat, name='patience', daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def barrier(name: str) -> None:
    """Waits until all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def progress(text: str) -> None:
    """Says to whoever supervises this process that it is alive and what it does."""
    path = os.environ.get(PROGRESS_FILE)
    if path:
        with contextlib.suppress(OSError):  # it is only told how it goes
            pathlib.Path(path).write_text(text + '\n')


class Notice(contextlib.AbstractContextManager):
    """Hears SIGTERM, by which machines say that they will be taken away, in any process of the job.

    As a context it listens; among several processes `jax.distributed` has listened since they joined.
    """

    _calls = itertools.count(1)  # of this process, not a step's number: the next stage begins again at 0

    def __init__(self):
        self._asked = False

    def __enter__(self) -> 'Notice':
        self._before = None
        # Python hears signals in its main thread alone; where a pipeline runs in another one, that one is its caller's.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *error) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, number, frame) -> None:
        self._asked = True

    def now(self) -> bool:
        """Whether to stop at this step, the same in all processes; called after every step by all of them."""
        return multihost_utils.reached_preemption_sync_point(next(self._calls)) or self._asked


def _tpu_chips() -> bool:
    return bool(glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*'))


def _on_tpu_pod() -> bool:
    return _tpu_chips() and os.environ.get('JAX_PLATFORMS', 'tpu') != 'cpu'

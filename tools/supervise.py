"""Runs a command, and runs it again when it dies.

    python -m tools.supervise [--restarts=3] [--hang_seconds=600] -- COMMAND ...

In: a command that goes on where it was when it is started again, as llm.main does. One supervisor for each process.
Out: the command's exit code, or 128 + N where signal N ended it; a line for each start and end.
Left out: which process runs where (`tools/launch.py`), what a run saves (`llm/checkpoint.py`).

    0             done
    2, 43         passed on: bad input or a run that diverges would end so again
    42            preempted: started again at once, unless this supervisor was asked to stop (SIGTERM, SIGINT), which it
                  passes on to the command; the end then is final, and 42 too where the signal itself ended the command
    others        started again: a signal, an error, 44 for a disk that may have room by now

The first restart comes at once. Where a job's process died, its peers may wait for the heartbeat to tell them; that a
second one joins under its number ends them within a second (tried: 3 processes trained again 4 s after a SIGKILL), and
it waits at the door until they are back, too. A restart in vain is followed by longer and longer pauses.

It gives up after some restarts in a row without progress. The command says what it does in the file that
QUARTET_PROGRESS_FILE names, a line with the step in it. A step beyond all before is progress; a change of the file is a
sign of life, and a command without one for far longer than ever before hangs: it is killed, with all that it started.
So is one that somebody stopped (SIGSTOP).
"""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import psutil

from llm.errors import Diverged, Preempted, StorageError, UserError
from tools.flags import ended, Parser

# As in llm/processes.py, whose imports a supervisor can do without.
PROGRESS_FILE = 'QUARTET_PROGRESS_FILE'
GOES_ON = 'QUARTET_GOES_ON'  # a workdir that is empty by now has lost its disk
FINAL = {0, UserError.exit_code, Diverged.exit_code}
POLL_SECONDS = 0.2
STOPPED_SECONDS = 3.0  # longer than a debugger or a snapshot takes; far shorter than the heartbeat of its peers
SLOWER = 5  # times the longest wait for a sign of life so far, before a command counts as hanging
PAUSE_SECONDS = 5.0  # after a first restart in vain; twice as long after the second


class Progress:
    """What the command said in its progress file, over all its restarts."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._furthest: dict[str, tuple[int, ...]] = {}  # by what is done: the numbers said with it
        self._stamp = 0
        self.longest_seconds = 0.0
        self.idle_seconds = 0.0
        self.beyond = False  # since the last restart
        self.ever = False

    def restart(self) -> None:
        self.idle_seconds, self.beyond = 0.0, False

    def look(self, seconds: float) -> None:
        """Called every `seconds`, the time that the command had."""
        self.idle_seconds += seconds
        try:
            stamp, text = self.path.stat().st_mtime_ns, self.path.read_text()
        except FileNotFoundError:
            return
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self.longest_seconds = max(self.longest_seconds, self.idle_seconds)
        self.idle_seconds = 0.0
        what, numbers = re.sub(r'\d+', '', text), tuple(map(int, re.findall(r'\d+', text)))
        if numbers > self._furthest.get(what, ()):
            self._furthest[what], self.beyond, self.ever = numbers, True, True


class Supervisor:
    """Runs one command until it is done, gives up on it, or is asked to stop."""

    def __init__(self, command: list[str], *, restarts: int, hang_seconds: float):
        self._command, self._restarts, self._hang_seconds = command, restarts, hang_seconds
        self._child: subprocess.Popen | None = None
        self._asked = False

    def run(self) -> int:
        for number in signal.SIGTERM, signal.SIGINT:
            signal.signal(number, self._stop)
        with tempfile.TemporaryDirectory() as folder:
            progress = Progress(pathlib.Path(folder) / 'progress')
            in_vain = 0  # restarts since there was progress
            while True:
                code = self._once(progress)
                in_vain = 0 if progress.beyond else in_vain
                if self._asked and code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
                    code = Preempted.exit_code  # it ended before it had begun with what needs saving
                if code in FINAL or self._asked:
                    say(f'ended with {code}')
                    return code
                if in_vain == self._restarts:
                    say(f'ended with {code}; given up after {in_vain} restarts without progress')
                    return code
                in_vain += 1
                # A disk needs a moment; so does whatever failed a second time.
                times = in_vain if code == StorageError.exit_code else in_vain - 1
                pause = 0.0 if code == Preempted.exit_code else PAUSE_SECONDS * times
                say(f'ended with {code}; started again in {pause:g} s, restart {in_vain} of {self._restarts}')
                if not self._pause(pause):
                    return Preempted.exit_code

    def _once(self, progress: Progress) -> int:
        """Runs the command once, and ends whatever it leaves behind."""
        progress.restart()
        if self._asked:
            return Preempted.exit_code
        # A session of its own: a terminal's Ctrl-C comes here alone, and what the command starts ends with it.
        goes_on = {GOES_ON: '1'} if progress.ever else {}
        variables = os.environ | goes_on | {PROGRESS_FILE: str(progress.path)}
        try:
            self._child = subprocess.Popen(self._command, env=variables, start_new_session=True)
        except OSError as error:
            raise UserError(f'COMMAND={self._command[0]} cannot be started ({error.strerror}); give a program and its '
                            f'words after --') from None
        if self._asked:  # between the last look and the start
            self._child.terminate()
        say(f'started {self._command[0]} as process {self._child.pid}')
        try:
            self._watch(progress)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            code = self._child.wait()
            self._child = None
            progress.look(0.0)
        return code if code >= 0 else 128 - code

    def _watch(self, progress: Progress) -> None:
        """Returns when the command has ended, hangs or is stopped."""
        stopped_seconds = 0.0
        while self._child.poll() is None:
            time.sleep(POLL_SECONDS)
            # Polls, not the clock, are counted: a machine that was suspended as a whole has not hung.
            progress.look(POLL_SECONDS)
            stopped_seconds = stopped_seconds + POLL_SECONDS if _stopped(self._child.pid) else 0.0
            if stopped_seconds > STOPPED_SECONDS:
                say(f'killed: it was stopped {stopped_seconds:.0f} s ago')
                return
            if progress.idle_seconds > max(self._hang_seconds, SLOWER * progress.longest_seconds):
                say(f'killed: no sign of life for {progress.idle_seconds:.0f} s; the longest wait before was '
                    f'{progress.longest_seconds:.0f} s')
                return

    def _pause(self, seconds: float) -> bool:
        """Waits, and returns whether to go on."""
        end = time.monotonic() + seconds
        while not self._asked and time.monotonic() < end:
            time.sleep(min(POLL_SECONDS, seconds))
        return not self._asked

    def _stop(self, number: int, frame) -> None:
        """Passes the signal on; the command saves itself, and is not started again."""
        self._asked = True
        if self._child is not None:
            self._child.send_signal(number)


def _stopped(pid: int) -> bool:
    """Whether that process, or one that it started, is stopped."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return any(each.status() == psutil.STATUS_STOPPED for each in [process, *process.children(recursive=True)])
    return False


def say(line: str) -> None:
    print(f'supervise  {line}', file=sys.stderr, flush=True)


def main() -> int:
    parser = Parser(prog='tools.supervise', description=__doc__.splitlines()[0])
    parser.add_argument('--restarts', type=int, default=3, help='in a row without progress')
    parser.add_argument('--hang_seconds', type=float, default=600.0,
                        help='without a sign of life; more where a step or compiling took longer before')
    parser.add_argument('command', nargs='+', metavar='COMMAND', help='after --')
    arguments = parser.parse_args()
    return Supervisor(arguments.command, restarts=arguments.restarts, hang_seconds=arguments.hang_seconds).run()


if __name__ == '__main__':
    sys.exit(ended(main))

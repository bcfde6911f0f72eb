"""One process works on a run's folder at a time.

In: a run's folder.
Out: `<folder>/owner.json` while its process works; UserError where another one does.
Left out: processes of one job (the caller lets process 0 own the folder for all of them).

An owner that died is recognised by its process, on the same host, or by a heartbeat (the file's time of
change) that is older than a minute.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
import uuid

import psutil

from llm.errors import StorageError, UserError

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
_LOOK_SECONDS = 0.5


class Owner:
    """Owns a folder, as a context.

    Raises UserError on entry if another live process owns it; takes over from a dead one.
    """

    def __init__(self, folder: str | os.PathLike):
        self._folder = pathlib.Path(folder)
        self._path = self._folder / 'owner.json'
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()

    def __enter__(self) -> 'Owner':
        me = psutil.Process()
        mine = {'token': self._token, 'host': socket.gethostname(), 'pid': me.pid,
                'started': me.create_time()}
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._folder, os.O_RDONLY)
        try:
            # Two processes that find the same dead owner must not both take over.
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._refuse_if_alive()
            beside = self._path.with_suffix('.tmp')
            beside.write_text(json.dumps(mine))
            os.replace(beside, self._path)
        finally:
            os.close(lock)
        self._thread = threading.Thread(target=self._beat, name='owner', daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._stop.set()
        self._thread.join()
        if _read(self._path).get('token') == self._token:
            with contextlib.suppress(OSError):  # a disk that is read-only by now; it will be seen that nobody is left
                self._path.unlink()

    def check(self) -> None:
        """Raises UserError if another process took the folder, as it may while this one is suspended.

        Raises StorageError if the folder is there no longer, so that what is saved does not go to an empty one.
        """
        owner = _read(self._path)
        if not owner:
            raise StorageError(f'{self._folder} is gone, or cannot be read; bring it back and start again, which '
                               f'continues from the last sealed step')
        if owner.get('token') != self._token:
            raise UserError(f'{self._folder} was taken over by {_name(owner)} while this process was '
                            f'suspended; let that one go on')

    def _refuse_if_alive(self) -> None:
        """Of another host only the heartbeat tells: it is waited for, so that a job that moved goes on by itself."""
        last_seen = None
        while (owner := _read(self._path)) and owner['age_seconds'] < STALE_SECONDS:
            if owner['host'] == socket.gethostname() and _dead(owner['pid'], owner['started']):
                return
            if owner['host'] == socket.gethostname() or last_seen not in (None, owner['seen']):
                raise UserError(f'{self._folder} is in use by {_name(owner)}, last seen '
                                f'{owner["age_seconds"]:.0f} s ago; wait for it or give another --workdir')
            last_seen = owner['seen']
            time.sleep(_LOOK_SECONDS)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # moved away or read-only by now: `check` and the save say so
                if _read(self._path).get('token') == self._token:
                    os.utime(self._path)


def _read(path: pathlib.Path) -> dict:
    """The owner's own words, and how long ago it was seen; nothing where there is none, or half a file."""
    try:
        seen = path.stat().st_mtime
        return json.loads(path.read_text()) | {'seen': seen, 'age_seconds': time.time() - seen}
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _name(owner: dict) -> str:
    return f'process {owner["pid"]} on {owner["host"]}' if owner else 'nobody'


def _dead(pid: int, started: float) -> bool:
    """Whether the process that began at that time is gone; its number may have gone to another process."""
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - started) > 2
    except psutil.NoSuchProcess:
        return True

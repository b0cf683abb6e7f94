"""Exclusive locks on files, so that two processes never write the same run. Imports no torch."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

#: in a run folder: held by the process that trains there
RUN_LOCK = ".lock"
#: what file systems without locks answer
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


class Lock:
    """An exclusive lock, held until ``release``; ``take`` makes one.

    The operating system drops it with its process, however that dies, so there are no stale locks; forked workers that outlive the process
    for a moment do not inherit it. Machines that share the folder respect it where their file system has locks; on one that has
    none every ``take`` succeeds.
    """

    def __init__(self, path: Path, wait: float):
        self._path, self._lock = path, FileLock(path, timeout=wait, poll_interval=0.02, thread_local=False)

    @classmethod
    def take(cls, path: Path, *, wait: float = 0.2) -> Lock | None:
        """The lock, or None where it is held for ``wait`` seconds more. Makes the folder. Raises ``OSError`` if it cannot write."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = cls(path, wait)
        try:
            lock._lock.acquire()
        except Timeout:
            return None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        with suppress(OSError):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        return lock

    def release(self) -> None:
        """The file is removed, too; whoever opened it in the meantime notices that it is no longer the one in the folder."""
        with suppress(OSError):
            self._path.unlink()
        self._lock.release()


def holder(path: Path) -> str:
    """Who holds a lock that could not be taken, for a message: "process 7 on host"."""
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").strip() or "another process"
    return "another process"


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock. To see, it is taken for an instant, which ``take`` waits for."""
    lock = Lock.take(path, wait=0) if path.exists() else None
    if lock is not None:
        lock.release()
    return lock is None and path.exists()

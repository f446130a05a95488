"""File locks by which processes agree who holds a server, who guards it, and whether it lives.

``flock`` and not ``fcntl`` locks: they belong to the open file, so that a child process inherits them (the server's
processes keep the lock ``server`` for as long as one of them lives), and two holders in one process do not mix.
The kernel gives them back whatever way a process ends.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

if sys.platform != "win32":
    import fcntl


class FileLock:
    """An open lock file. It is created if needed, never through a symbolic link, readable by its owner only.

    :param path: the lock file
    :param create: whether a missing file is created. Defaults to ``True``.
    :raises FileNotFoundError: if it is missing and not to be created
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        self._fd = os.open(path, flags, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        return self._fd

    def lock_nowait(self, *, shared: bool = False) -> bool:
        """Take the lock if it is free.

        :return: whether it was taken
        """
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lock(self, *, shared: bool = False, timeout: float) -> bool:
        """Take the lock, waiting for it. Looks again and again, because a blocking ``flock`` has no deadline.

        :param timeout: maximum time to wait (in seconds)
        :return: whether it was taken
        """
        deadline = time.monotonic() + timeout
        pause = 0.005
        while not self.lock_nowait(shared=shared):
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)
        return True

    def wait_exclusive(self) -> None:
        """Take the lock alone, waiting for ever (costs nothing while waiting)."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def unlock(self) -> None:
        """Give the lock back, also on behalf of child processes that share the open file."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file. The lock is given back when the last process that shares the open file has closed it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_held(path: Path) -> bool:
    """Whether some process has the lock of this file alone. A missing file is not held."""
    try:
        lock = FileLock(path, create=False)
    except FileNotFoundError:
        return False
    with lock:
        return not lock.lock_nowait(shared=True)

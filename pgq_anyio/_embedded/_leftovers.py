"""What is left of a server whose guardian was killed: a running server, a stale pid file.

The lock ``server`` says whether any process of the server lives: all of them have inherited it. A process id alone says
nothing, it may be in use again by a stranger.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from ._locks import FileLock
from ._status import ServerStartError, is_listening, read_status

#: How long each attempt to stop an orphan may take before the next, harder one (in seconds).
STOP_TIMEOUT = 10.0


def stop_orphan(room: Path, alive: FileLock) -> None:
    """Stop a server whose guardian was killed. The caller has made sure that there is no guardian.

    :param room: the server's directory
    :param alive: the open lock ``server``; it is taken
    :raises ServerStartError: if the server does not end
    """
    data = room / "data"
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        if alive.lock_nowait():
            return
        status = read_status(data)
        if status is not None and _works_in(status.pid, data):
            with contextlib.suppress(ProcessLookupError):
                os.kill(status.pid, number)
        if alive.lock(timeout=STOP_TIMEOUT):
            return
    raise ServerStartError(f"a server left over in {str(room)!r} does not end; see its 'data/postmaster.pid'")


def remove_stale_pid_file(data: Path) -> None:
    """Remove the pid file of a server that crashed: a stranger who has its process id now would stop PostgreSQL.

    The caller holds the lock ``server``, so that no server of ours lives. One that somebody started by hand answers on
    the socket that it wrote down; then nothing is removed, and PostgreSQL itself refuses to start.
    """
    status = read_status(data)
    if status is not None and status.socket_directory and not is_listening(status.socket_directory, status.port):
        (data / "postmaster.pid").unlink(missing_ok=True)


def _works_in(pid: int, data: Path) -> bool:
    """Whether a process has this current directory, as a server has its data directory. Unknown means yes."""
    try:
        return Path(f"/proc/{pid}/cwd").samefile(data)
    except FileNotFoundError:
        return not Path("/proc/self/cwd").exists()
    except OSError:
        return True

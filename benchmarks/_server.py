"""The PostgreSQL server that everything is measured on: embedded, with room, and synced to disk like a real one."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import psycopg

from pgq_anyio._embedded import EmbeddedServer

#: An ephemeral server does not sync unless it is told to.
OPTIONS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_connections": "50",
}
PACKAGES = ("pgq_anyio", "anyio", "trio", "uvloop", "psycopg")


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


def describe(dsn: str) -> dict[str, str]:
    """Versions of everything involved, and the settings that matter; read from the server, not assumed."""
    found = {"python": platform.python_version(), "cpus": str(os.cpu_count()), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    with psycopg.connect(dsn, autocommit=True) as conn:
        for setting in ("server_version", "shared_buffers", "max_wal_size", "fsync", "synchronous_commit"):
            found[setting] = conn.execute("select current_setting(%s)", [setting]).fetchone()[0]  # type: ignore[index]
    return found


def settle(dsn: str) -> None:
    """Leave the next measurement nothing of the last one to clean up."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("vacuum analyze")
        conn.execute("checkpoint")

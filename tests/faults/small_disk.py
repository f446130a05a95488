"""A server whose disk can be filled: all of it is on a file system in memory, which root can mount."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import psycopg
import pytest

from pgq_anyio._embedded import PostgresBinaries
from tests.worker.own_server import OPTIONS, OwnServer

#: Of the file system. A fresh server with small segments takes half of it.
SIZE = "96m"


@attrs.define(eq=False)
class SmallDisk:
    """The file system of a server."""

    root: Path

    @property
    def _ballast(self) -> Path:
        return self.root / "ballast"

    def fill(self) -> None:
        """Leave nothing free, down to the last block."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (2**20, 2**12):
                with suppress(OSError):
                    while file.write(b"\0" * size) == size:
                        pass

    def free(self) -> None:
        """Make room again."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def _mounted(root: Path) -> Iterator[None]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root on Linux, to mount a small file system")
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "pgq-small-disk", str(root)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"needs to mount a small file system: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


@contextmanager
def open_server_on_a_small_disk(dsn: str) -> Iterator[tuple[OwnServer, SmallDisk]]:
    """A running server of the same binaries as the one of ``dsn``. Its log lies elsewhere."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute("select setting from pg_config where name = 'BINDIR'").fetchone()
    assert row is not None
    options = {**OPTIONS, "log_statement": "none", "min_wal_size": "2MB", "max_wal_size": "4MB"}
    root = Path(tempfile.mkdtemp(prefix="pgq-disk-"))
    root.chmod(0o711)
    server = OwnServer(PostgresBinaries(Path(row[0])), root / "data", options)
    try:
        server.data.mkdir()
        server.log.touch()
        with _mounted(server.data):
            server.binaries.initdb(server.data, sync=False, options=["--wal-segsize=1"])
            try:
                server.start()
                yield server, SmallDisk(server.data)
            finally:
                server.stop("immediate")
    finally:
        shutil.rmtree(root, ignore_errors=True)

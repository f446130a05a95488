"""A PostgreSQL server from an installed PostgreSQL of any major version, for the length of a test run."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pgq_anyio._embedded import PostgresBinaries


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def installed_server(bin_dir: Path, options: Mapping[str, str]) -> Iterator[str]:
    """Run a server that listens on a unix socket only, and remove its data afterwards.

    :param bin_dir: directory of the programs, such as ``/usr/lib/postgresql/15/bin``
    :param options: server settings
    :return: the DSN
    """
    directory = Path(tempfile.mkdtemp(prefix="pgq-test-"))
    directory.chmod(0o711)  # as root the server has an account of its own, which must get through to its data
    data = directory / "data"
    binaries = PostgresBinaries(bin_dir)
    try:
        binaries.initdb(data, sync=False)
        server = binaries.start(data, socket_directory=data, options=options)
        try:
            yield f"host={data} user=postgres dbname=postgres"
        finally:
            binaries.stop(server)
    finally:
        shutil.rmtree(directory)

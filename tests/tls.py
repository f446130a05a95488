"""A PostgreSQL server with TLS, and a throw-away CA that has signed its certificate."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
import trustme

from pgq_anyio._embedded import PostgresBinaries
from pgq_anyio._embedded._account import hand_over
from tests.servers import free_port
from tools.machine import find_postgres


@attrs.frozen
class TlsServer:
    """Where it is, and whom to trust."""

    port: int
    #: the certificate of the CA
    ca: Path
    #: that of another CA
    other_ca: Path
    has_tls: bool

    def dsn(self, *, host: str = "localhost", **options: object) -> str:
        """The DSN of a client; without options it trusts the CA and checks the name."""
        given = {"sslmode": "verify-full", "sslrootcert": self.ca, **options}
        rest = " ".join(f"{name}='{value}'" for name, value in given.items() if value is not None)
        return f"host={host} port={self.port} user=postgres dbname=postgres {rest}"


@contextmanager
def open_tls_server(*, tls: bool = True) -> Iterator[TlsServer]:
    """A server on loopback whose certificate is for ``localhost``, of the newest PostgreSQL that is installed: the
    embedded one is built without TLS. Where there is none the test is skipped.

    :param tls: whether it is switched on
    """
    installed = find_postgres()
    if not installed:
        pytest.skip("needs an installed PostgreSQL that was built with TLS")
    binaries = PostgresBinaries(Path(installed[max(installed)]))
    directory = Path(tempfile.mkdtemp(prefix="pgq-tls-"))
    directory.chmod(0o711)
    ca, other = trustme.CA(), trustme.CA()
    certificate = ca.issue_cert("localhost")
    keys = directory / "keys"
    keys.mkdir(mode=0o700)
    certificate.cert_chain_pems[0].write_to_path(keys / "server.crt")
    certificate.private_key_pem.write_to_path(keys / "server.key")
    (keys / "server.key").chmod(0o600)
    for path in (keys / "server.key", keys / "server.crt", keys):
        hand_over(path, binaries.account)
    server = TlsServer(free_port(), directory / "ca.pem", directory / "other.pem", tls)
    ca.cert_pem.write_to_path(server.ca)
    other.cert_pem.write_to_path(server.other_ca)
    options = {"fsync": "off"}
    if tls:
        options |= {"ssl": "on", "ssl_cert_file": f"{keys}/server.crt", "ssl_key_file": f"{keys}/server.key"}
    try:
        (directory / "log").touch()
        binaries.initdb(directory / "data", sync=False)
        process = binaries.start(
            directory / "data", port=server.port, listen="localhost", options=options, log=directory / "log"
        )
        try:
            yield server
        finally:
            binaries.stop(process, "immediate")
    finally:
        shutil.rmtree(directory, ignore_errors=True)

"""A server of one's own, with TCP and TLS, which tests may stop, kill and start again; and a proxy that goes silent."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import psycopg
import pytest

from pgq_anyio._embedded import PostgresBinaries
from pgq_anyio._embedded._binaries import STOP_SIGNALS
from tests.servers import free_port


@attrs.define(eq=False)
class OwnServer:
    """A PostgreSQL server on loopback TCP."""

    binaries: PostgresBinaries
    data: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    def start(self) -> None:
        if self.process is None or self.process.poll() is not None:
            self.process = self.binaries.start(
                self.data, port=self.port, listen="127.0.0.1", options={"fsync": "off"}, log=self.data.parent / "log"
            )

    def stop(self, mode: str) -> None:
        """Stop it without waiting for its end."""
        assert self.process is not None
        self.process.send_signal(STOP_SIGNALS[mode])

    def end(self) -> None:
        if self.process is not None:
            self.binaries.stop(self.process, "immediate")

    def ask(self, query: str, *params: object) -> list[tuple[object, ...]]:
        """Execute a statement on a connection of its own."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            cursor = conn.execute(query.encode(), params or None)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="session")
def _own_server(server_dsn: str) -> Iterator[OwnServer]:
    """Uses the binaries of the server that runs already."""
    with psycopg.connect(server_dsn) as conn:
        row = conn.execute("select setting from pg_config where name = 'BINDIR'").fetchone()
    assert row is not None
    directory = Path(tempfile.mkdtemp(prefix="pgq-db-test-"))
    directory.chmod(0o711)
    server = OwnServer(PostgresBinaries(Path(row[0])), directory / "data", free_port())
    try:
        (directory / "log").touch()
        server.binaries.initdb(server.data, sync=False)
        yield server
    finally:
        server.end()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def own_server(_own_server: OwnServer) -> OwnServer:
    """A running server that the test may break."""
    _own_server.start()
    return _own_server


@attrs.define(eq=False)
class Proxy:
    """A TCP proxy that can go silent without closing anything, as a broken network does."""

    target: tuple[str, int]
    stalled: bool = False
    _listener: socket.socket = attrs.field(factory=socket.socket)
    _sockets: list[socket.socket] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def dsn(self) -> str:
        return f"host=127.0.0.1 port={self._listener.getsockname()[1]} user=postgres dbname=postgres"

    def close(self) -> None:
        for one in (self._listener, *self._sockets):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(client)
            if self.stalled:
                continue
            server = socket.create_connection(self.target)
            self._sockets.append(server)
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if not self.stalled:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@pytest.fixture
def proxy(own_server: OwnServer) -> Iterator[Proxy]:
    proxy = Proxy(("127.0.0.1", own_server.port))
    yield proxy
    proxy.close()

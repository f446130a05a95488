"""TLS with ``sslmode=verify-full``: a good certificate works, another one is refused with the fix."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from pgq_anyio import PgQueuer, SyncQueries
from pgq_anyio._cli.messages import explain
from pgq_anyio._db import Connection, PsycopgDriver, is_transient
from pgq_anyio._store.migrations import migrate
from pgq_anyio.testing import drain
from tests.tls import TlsServer, open_tls_server

pytestmark = pytest.mark.anyio

FIXES = {
    "wrong name": "the server's certificate is for 'localhost': write host=localhost in the DSN",
    "wrong CA": "name the certificate of its CA with sslrootcert=FILE in the DSN",
    "no CA": "or write sslrootcert=system for the CAs that this machine trusts",
    "no TLS": "the server has TLS switched off: set ssl = on there",
}


@pytest.fixture(scope="module")
def server() -> Iterator[TlsServer]:
    with open_tls_server() as server:
        yield server


@pytest.fixture(scope="module")
def bare_server() -> Iterator[TlsServer]:
    with open_tls_server(tls=False) as server:
        yield server


@pytest.fixture
def bad_dsn(request: pytest.FixtureRequest, server: TlsServer, bare_server: TlsServer) -> str:
    """A DSN that cannot work, for the reason that the test names."""
    return {
        "wrong name": server.dsn(host="127.0.0.1"),
        "wrong CA": server.dsn(sslrootcert=server.other_ca),
        "no CA": server.dsn(sslrootcert="/nowhere/ca.pem"),
        "no TLS": bare_server.dsn(),
    }[request.param]


async def test_every_connection_is_encrypted(server: TlsServer) -> None:
    """A worker with all its connections, a pool, and blocking code."""
    schema = "tls"
    async with PsycopgDriver(server.dsn()) as driver, driver.connection() as conn:
        await migrate(conn, schema)
        app = PgQueuer(driver, schema=schema)
        unencrypted = (
            "select application_name from pg_stat_activity join pg_stat_ssl using (pid) where usename is not null"
        )
        seen: list[list[tuple[object, ...]]] = []

        @app.entrypoint("look", concurrency_limit=1)
        async def look(job: object) -> None:
            seen.append(await (await conn.execute(f"{unencrypted} and not ssl".encode())).fetchall())
            seen.append(await (await conn.execute(f"{unencrypted} and ssl".encode())).fetchall())

        with SyncQueries(server.dsn(), schema=schema) as queries:
            queries.enqueue("look")
            await drain(app)
    assert [] == seen[0]
    assert {"pgq_anyio heartbeat", "pgq_anyio listen", "pgq_anyio dispatch limited"} <= {row[0] for row in seen[1]}


@pytest.mark.promise(39)
@pytest.mark.parametrize(("bad_dsn", "fix"), FIXES.items(), ids=FIXES, indirect=["bad_dsn"])
async def test_a_bad_certificate_is_refused_with_the_fix(bad_dsn: str, fix: str) -> None:
    """No retry mends it, so it is told at once: to programs as a note, on the command line in the message."""
    with pytest.raises(psycopg.OperationalError) as caught:
        await Connection.connect(bad_dsn)
    assert [True] == [fix in note for note in caught.value.__notes__]
    assert not is_transient(caught.value)
    with pytest.raises(psycopg.OperationalError) as raised:
        await PgQueuer(bad_dsn).run()
    said = explain(raised.value, database="the database").message
    assert said.startswith("the database cannot be reached safely: ")
    assert 1 == said.count(fix)
    with pytest.raises(psycopg.OperationalError) as blocking:
        psycopg.connect(bad_dsn)
    assert fix in explain(blocking.value).message


async def test_what_is_not_about_certificates_gets_no_such_advice(server: TlsServer) -> None:
    """The advice of other errors stays what it was."""
    with pytest.raises(psycopg.OperationalError) as caught:
        await Connection.connect(server.dsn(), dbname="nowhere")
    assert not hasattr(caught.value, "__notes__")
    assert "create it (createdb)" in explain(caught.value).message

"""A server that is gone without a word: a blocking producer ends with an error, and works again when it is back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql

from pgq_anyio import SyncQueries
from pgq_anyio._db.defaults import DEFAULTS
from tests.client.conftest import Look
from tests.worker.fleet import wait_until
from tests.worker.proxy import VANISHES, Proxy, open_proxy

#: The smallest that libpq knows, so that the test is short.
SHORT = {
    "connect_timeout": "2",
    "keepalives_idle": "1",
    "keepalives_interval": "1",
    "keepalives_count": "2",
    "tcp_user_timeout": "2000",
}
#: Within which time a call has ended, on a busy machine (in seconds).
BOUND = 20.0


@contextmanager
def open_bounded_proxy(dsn: str) -> Iterator[Proxy]:
    """A proxy that cuts what has not ended within ``BOUND``: that gives another error than the expected one."""
    with open_proxy(dsn) as proxy:
        timer = threading.Timer(BOUND, proxy.cut)
        timer.start()
        try:
            yield proxy
        finally:
            timer.cancel()


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    with open_bounded_proxy(dsn) as proxy:
        yield proxy


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SHORT.items():
        monkeypatch.setitem(DEFAULTS, name, value)


def test_defaults_unless_said_otherwise(dsn: str, schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the DSN, or by libpq's variables."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "7")
    with SyncQueries(f"{dsn} keepalives_idle=8", schema=schema) as queries:
        queries.enqueue("fetch")
        assert queries._own is not None
        found = queries._own.info.get_parameters()
    expected = {**DEFAULTS, "connect_timeout": "7", "keepalives_idle": "8"}
    assert expected == {name: found[name] for name in expected}


@pytest.mark.usefixtures("short")
def test_a_server_that_does_not_answer(proxy: Proxy, schema: str, look: Look) -> None:
    """It accepts the connection and says nothing."""
    proxy.silence()
    with SyncQueries(proxy.dsn, schema=schema) as queries:
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            queries.enqueue("fetch")
        proxy.forget()
        queries.enqueue("fetch")
    assert [(1,)] == look("select count(*) from {schema}.queued")


@VANISHES
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("moment", ["before the call", "while it waits for the answer"])
def test_a_server_that_is_gone(proxy: Proxy, dsn: str, schema: str, look: Look, moment: str) -> None:
    """The error comes from the network, and the next call opens another connection."""
    with (
        SyncQueries(proxy.dsn, schema=schema) as queries,
        ThreadPoolExecutor(1) as thread,
        psycopg.connect(dsn) as locker,
    ):
        queries.enqueue("fetch")
        if moment == "before the call":
            proxy.vanish()
            call = thread.submit(queries.enqueue, "lost")
        else:
            locker.execute(sql.SQL("lock table {}.queued").format(sql.Identifier(schema)))
            call = thread.submit(queries.enqueue, "lost")
            waiting = "select 1 from pg_locks where not granted and relation = '{schema}.queued'::regclass"
            wait_until(lambda: bool(look(waiting)))
            proxy.vanish()
        # libpq closes the socket if it is writing when the time is up, and psycopg tells of that.
        with pytest.raises(psycopg.OperationalError, match=r"timed out|socket closed"):
            call.result()
        locker.rollback()
        proxy.forget()
        queries.enqueue("fetch")
        assert 2 == queries.queue_size()["fetch"]

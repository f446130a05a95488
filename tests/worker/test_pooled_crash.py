"""The server crashes behind PgBouncer, and is back so soon that no connection of the worker notices."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import anyio
import psycopg
import pytest
from psycopg import sql

from pgq_anyio import CancelReason, Context, Job, PgQueuer, PsycopgDriver, Queries
from pgq_anyio._strict_hints import StrictHints
from pgq_anyio.testing import running_worker
from tests.poolers import PgBouncer, open_pgbouncer
from tests.worker.fleet import wait_until
from tests.worker.own_server import OwnServer

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]


@pytest.fixture
def pooler(own_server: OwnServer) -> Iterator[PgBouncer]:
    """Before the server that the test may kill."""
    with open_pgbouncer(own_server.dsn) as pooler:
        yield pooler


@pytest.fixture
async def driver(anyio_backend: object, pooler: PgBouncer) -> AsyncIterator[PsycopgDriver]:
    """Producers come through the pooler as well."""
    async with PsycopgDriver(pooler.dsn) as driver:
        yield driver


def connect(server: OwnServer) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection of the test's own, to the server itself, as soon as it lets anybody in."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return psycopg.connect(server.dsn, autocommit=True)
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # it can only be tried


def crash(server: OwnServer) -> None:
    """Kill a session: the postmaster ends all others, forgets what was not on disk, and goes on with new ones.

    The event loop stands still meanwhile: the worker asks nothing before the server answers again.
    """
    active = "select 1 from pg_stat_activity where state <> 'idle' and pid <> pg_backend_pid()"
    with connect(server) as connection, connect(server) as witness:
        for _ in range(3):  # what the worker has sent may have got no further than the pooler
            time.sleep(0.05)
            wait_until(lambda: not connection.execute(active).fetchall())
        os.kill(connection.info.backend_pid, signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            # Not the killed session: that one ends before the postmaster knows, which goes on letting sessions in, and
            # ends them in a moment. Once it has ended this one, it lets nobody in until the restart is over.
            witness.execute("select pg_sleep(20)")
    connect(server).close()


def beat(server: OwnServer, schema: str) -> int:
    """How many heartbeats the worker has made."""
    with connect(server) as connection:
        query = sql.SQL("select max(beat) from {}").format(sql.Identifier(schema, "worker"))
        ((number,),) = connection.execute(query).fetchall()
    return int(number)


async def wait_for(fact: Callable[[], object], *, within: float = 30) -> None:
    """Look at a fact of this process until it is true."""
    with anyio.fail_after(within):
        while not fact():  # noqa: ASYNC110  (it can only be looked at)
            await anyio.sleep(0.005)


@pytest.mark.promise(14, 15)
async def test_a_claim_that_a_crash_has_undone_is_noticed_with_the_next_heartbeat(
    own_server: OwnServer, pooler: PgBouncer, driver: PsycopgDriver, empty_schema: str
) -> None:
    """Though the heartbeat's connection lasts, and the postmaster too: the first run is cancelled, and one goes on."""
    app = PgQueuer(pooler.dsn, schema=empty_schema)
    seen: list[object] = []
    runs: list[anyio.Event] = []

    @app.entrypoint("fetch")
    async def fetch(job: Job, context: Context) -> None:
        runs.append(release := anyio.Event())
        try:
            await release.wait()
        finally:
            seen.append(context.cancel_reason)

    async with running_worker(app, lease=30, dequeue_timeout=3600, shutdown_grace=3600):
        worker = app._worker
        assert worker is not None
        assert worker.term is not None
        term = worker.term
        while True:
            # A claim is lost in a crash unless something that is waited for, as a heartbeat, is written after it.
            beats = beat(own_server, empty_schema)
            term.heart.beat_soon()
            await wait_for(lambda beats=beats: beat(own_server, empty_schema) > beats)  # type: ignore[misc]
            before = len(runs)
            await Queries(driver, schema=empty_schema).enqueue("fetch")
            term.claimer.bell.ring()
            await wait_for(lambda before=before: len(runs) > before)  # type: ignore[misc]
            opened = {line.role: line.opened for line in term.lines.all()}
            crash(own_server)
            with connect(own_server) as connection:
                query = sql.SQL("select count(*) from {}").format(sql.Identifier(empty_schema, "queued"))
                if connection.execute(query).fetchall() != [(0,)]:
                    break
        await wait_for(lambda: CancelReason.LEASE_LOST in seen)
        await wait_for(lambda: len(runs) > before + 1)
        assert [CancelReason.LEASE_LOST] == seen
        assert opened == {line.role: line.opened for line in term.lines.all()}
        for release in runs:
            release.set()


@pytest.mark.promise(15, 20)
async def test_the_place_of_a_serialized_job_may_go_back_with_a_crash(
    own_server: OwnServer, pooler: PgBouncer, driver: PsycopgDriver, empty_schema: str
) -> None:
    """Places are allotted anew, left of where the next job was to be: it is found all the same."""
    app = PgQueuer(pooler.dsn, schema=empty_schema)
    ran: list[int] = []

    @app.entrypoint("one", serialized_dispatch=True)
    async def one(job: Job) -> None:
        ran.append(job.id)

    queries = Queries(driver, schema=empty_schema)

    def place(number: int) -> None:
        with connect(own_server) as connection:
            name = sql.Identifier(empty_schema, "queued_seq").as_string(connection)
            connection.execute("select setval(%s, %s)", [name, number])

    place(1000)
    async with running_worker(app, lease=3, dequeue_timeout=0.2):
        assert app._worker is not None
        assert app._worker.term is not None
        hints = app._worker.term.limited.names["one"].hints
        assert isinstance(hints, StrictHints)
        with anyio.fail_after(30):
            while not hints._safe:
                (job_id,) = await queries.enqueue("one")
                await wait_for(partial(ran.__contains__, job_id))
                await anyio.sleep(0.1)
        crash(own_server)
        place(1)
        (job_id,) = await queries.enqueue("one")
        await wait_for(partial(ran.__contains__, job_id))

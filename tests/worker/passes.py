"""One registration of a worker without its loops, and a deed at one of the awaits of a pass that a test makes.

The term, its wiring and the completer are the worker's own; claimers, heartbeat, promoter, rescuer and scheduler do
what the test asks for, one pass at a time.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import Any, Final, TypeVar

import anyio
import attrs
import psycopg
from psycopg import sql

from pgq_anyio import PgQueuer, PsycopgDriver
from pgq_anyio._db import Connection, is_transient, retrying
from pgq_anyio._db.line import Line
from pgq_anyio._models import JobId
from pgq_anyio._retention import check_retention
from pgq_anyio._run_settings import RunSettings
from pgq_anyio._services.completer import COMPLETION_SETTINGS, CompleterShield, run_completer
from pgq_anyio._services.heartbeat import beat_once
from pgq_anyio._stop import Stop
from pgq_anyio._store._sql import Store
from pgq_anyio._term import Term, Worker
from tests.db.steps import at_suspension
from tests.store.scenes import rows, value

T = TypeVar("T")

#: More suspensions than any pass has.
ENOUGH: Final = 100

SETTINGS: Final = RunSettings(
    dequeue_timeout=30.0,
    batch_size=10,
    max_concurrency=10,
    mode="continuous",
    lease=30.0,
    on_lease_lost="cancel",
    shutdown_grace=30.0,
    cancel_grace=5.0,
    signals=(),
    block_warning=None,
    retention=check_retention(3600.0),
    exit_process=False,
)

_TABLES: Final = (
    *("deferred", "queued", "running", "finished", "attempt_error", "worker", "schedule"),
    *("limiter", "limiter_state", "limiter_refund", "cancel_request"),
)


@attrs.define(eq=False)
class Passes:
    """A registered worker, and the database as somebody else sees it."""

    worker: Worker
    term: Term
    completion: Line
    conn: Connection
    #: the server processes of all connections there have been
    _pids: dict[int, Connection] = attrs.field(factory=dict, init=False)

    @property
    def store(self) -> Store:
        return self.worker.store

    async def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return await rows(self.conn, self.store, query, *parameters)

    async def value(self, query: str, *parameters: Any) -> Any:
        return await value(self.conn, self.store, query, *parameters)

    # -- interruptions ---------------------------------------------------------------------------------------------

    async def interrupt(self, deed: str, k: int, line: Line, work: Callable[[], Coroutine[Any, Any, object]]) -> bool:
        """Do the deed when ``work`` suspends for the ``k``-th time; whether it came to that.

        What the database then says is settled: no server process is at work for this worker any more.
        """
        is_done = False
        with anyio.fail_after(30), anyio.CancelScope() as scope:

            def interrupt() -> None:
                nonlocal is_done
                is_done = True
                self._note_connections()
                if deed == "cancel":
                    scope.cancel()
                elif line._conn is not None and not line._conn.closed:
                    _BREAKS[deed](line._conn)

            try:
                await at_suspension(work(), k, interrupt)
            except psycopg.Error as error:
                if deed == "cancel" or not is_transient(error):
                    raise AssertionError("a cancellation is no error, and others pass by themselves") from error
        await self._wait_settled()
        return is_done

    async def again(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Make a pass as its service does: the connection may turn out to be broken only now."""
        return await retrying(work, what="a pass")

    def _note_connections(self) -> None:
        lines = (*self.term.lines.all(), self.completion)
        for line in lines:
            if line._conn is not None and not line._conn.closed:
                self._pids[line._conn.info.backend_pid] = line._conn

    async def _wait_settled(self) -> None:
        """Wait until nothing is under way. What a closed connection has sent may not even have been read yet."""
        self._note_connections()
        gone = [pid for pid, conn in self._pids.items() if conn.closed]
        query = (
            "select exists (select from pg_stat_activity where pid = any (%s) and (pid = any (%s) or state <> 'idle'))"
        )
        with anyio.fail_after(30):
            while await self.value(query, list(self._pids), gone):  # noqa: ASYNC110  (a fact of the server)
                await anyio.sleep(0.002)

    # -- what holds ------------------------------------------------------------------------------------------------

    async def check_jobs(self, ids: set[JobId], where: str) -> None:
        """Each job is in exactly one table, and none is held by a claim that the worker has forgotten."""
        found = await self.rows(
            "select job_id from {schema}.deferred union all select job_id from {schema}.queued"
            " union all select job_id from {schema}.running union all select job_id from {schema}.finished"
        )
        assert dict.fromkeys(ids, 1) == dict(Counter(row[0] for row in found)), where
        holdings = self.term.holdings
        unknown = await self.owned() - holdings.known()
        assert all(claim_no in holdings.unresolved for _, claim_no in unknown), where
        assert holdings.max_concurrency - len(holdings.running()) == holdings.free, f"slots are leaked, {where}"

    async def owned(self) -> set[tuple[JobId, int]]:
        """(job id, claim number) of what the database holds for this worker."""
        query = "select job_id, claim_no from {schema}.running where worker_id = %s"
        return {(row[0], row[1]) for row in await self.rows(query, self.term.worker_id)}

    async def beat(self, where: str) -> None:
        """The next heartbeat: from then on the worker and the database agree."""
        assert await self.again(lambda: beat_once(self.term.heart)), where
        assert self.term.holdings.known() == await self.owned(), where


def _reset(conn: Connection) -> None:
    """As a network does it; the request may have arrived, and the answer may be on its way."""
    with socket.socket(fileno=os.dup(conn.pgconn.socket)) as same:
        same.shutdown(socket.SHUT_RDWR)


def _terminate(conn: Connection) -> None:
    """As an operator does it; what was not committed is rolled back."""
    with psycopg.connect(conn.info.dsn, autocommit=True) as killer:
        killer.execute("select pg_terminate_backend(%s, 10000)", [conn.info.backend_pid])


_BREAKS: Final = {"reset": _reset, "terminate": _terminate}
DEEDS: Final = ("cancel", *_BREAKS)


@asynccontextmanager
async def open_passes(app: PgQueuer, driver: PsycopgDriver, conn: Connection) -> AsyncIterator[Passes]:
    """Register a worker on empty tables. In the end its handlers are cancelled and their outcomes stored."""
    store = app._store
    for table in _TABLES:
        await conn.execute(sql.SQL("delete from {}").format(sql.Identifier(store.schema, table)))
    worker = Worker(
        registry=app._registry, driver=driver, store=store, settings=SETTINGS, stop=Stop(), lifespan=nullcontext
    )
    term = worker.term = Term(worker)
    completion = Line(driver, "completion", COMPLETION_SETTINGS, cleanup_timeout=1.0)
    complete = partial(
        run_completer, on_stored=worker.on_stored, leaving=lambda: worker.stop.requested, heard=worker.heard
    )
    try:
        async with anyio.create_task_group() as services:
            services.start_soon(complete, completion, store, worker.endings, CompleterShield())
            try:
                await term.registration.register()
                term.handlers.open_tools(None)
                with term.lease.scope, term.stop_scope:
                    async with anyio.create_task_group() as jobs:
                        term.handlers.open(jobs)
                        yield Passes(worker, term, completion, conn)
                        term.stop_scope.cancel()
            finally:
                worker.endings.close()
    finally:
        term.lines.close()


async def try_everywhere(
    deed: str,
    app: PgQueuer,
    driver: PsycopgDriver,
    conn: Connection,
    scene: Callable[[Passes, str, int], Coroutine[Any, Any, bool]],
) -> int:
    """Play a scene again and again, each time on a worker of its own, with the deed at the first suspension of its
    pass, at the second, and so on until the pass ends before that.

    :param scene: called with the worker, the deed and the number; whether the deed was done
    :return: at how many suspensions it was
    """
    for k in range(1, ENOUGH):
        with anyio.fail_after(60):
            async with open_passes(app, driver, conn) as passes:
                is_done = await scene(passes, deed, k)
            await _check_left_alone(passes, f"{deed} at await {k}")
        if not is_done:
            return k - 1
    raise AssertionError(f"still not at its end after {ENOUGH} suspensions")


async def _check_left_alone(passes: Passes, where: str) -> None:
    """With the outcomes stored, nothing is held by the worker, and what it had not ended has lost no attempt."""
    assert set() == await passes.owned(), where
    assert [] == await passes.rows(
        "select job_id from {schema}.queued where attempt > 1 and entrypoint <> 'crashed'"
    ), where

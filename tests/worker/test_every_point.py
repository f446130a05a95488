"""A worker is cancelled, stopped, or loses a connection, at each of its waits for the server in turn.

The first run is left alone; then the same run is repeated with the deed at the first wait, the second, and so on,
until a run ends before its deed. A second worker then finishes what is left. Together they have to end every job as if
nothing had been: the queued ones, the deferred one, and the one that a worker has left behind. (Claims, outcomes,
heartbeats, promotion, rescue, registration and farewell all lie in such a run.)
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any

import anyio
import attrs
import psycopg
import pytest
from anyio import CancelScope
from psycopg import errors

from pgq_anyio import Job, PgQueuer
from pgq_anyio._db import Connection
from pgq_anyio._db._core import WaitingConnection
from pgq_anyio._models import JobId
from pgq_anyio._retry import RetryPolicy
from pgq_anyio._services import claimer, drain
from pgq_anyio._store._sql import Store
from pgq_anyio._store.queued import Claim
from pgq_anyio._store.worker import mark_left
from tests.store.scenes import add_jobs, add_worker, claim, rows

pytestmark = pytest.mark.anyio

#: More waits than a run has; a run that never ends before its deed would go on for ever.
ENOUGH = 300
#: So many runs have to end before their deed: one may happen to have fewer waits than others.
IN_A_ROW = 3


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


def reset_connection(conn: Connection) -> None:
    """Let the connection break, as a server or network does; the request may have arrived."""
    with socket.socket(fileno=os.dup(conn.pgconn.socket)) as same:
        same.shutdown(socket.SHUT_RDWR)


def lose_answer(conn: Connection) -> None:
    """The server has answered, and nobody hears it."""
    conn.abort()
    raise errors.OperationalError("the connection broke before the answer came")


@attrs.define(eq=False)
class Saboteur:
    """Counts the waits for the server, and does one deed at one of them."""

    at: int
    before: Callable[[Connection], None] | None = None
    after: Callable[[Connection], None] | None = None
    count: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = WaitingConnection._drive

        async def drive(conn: Any, gen: Any, want: Any) -> Any:
            if not (conn.pgconn.parameter_status(b"application_name") or b"").startswith(b"pgq_anyio "):
                return await original(conn, gen, want)
            self.count += 1
            chosen = self.count == self.at
            if chosen and self.before is not None:
                self.before(conn)
            result = await original(conn, gen, want)
            if chosen and self.after is not None:
                self.after(conn)
            return result

        monkeypatch.setattr(WaitingConnection, "_drive", drive)


def make_saboteur(deed: str, at: int, scope: CancelScope, app: PgQueuer) -> Saboteur:
    match deed:
        case "cancel before":
            return Saboteur(at, before=lambda _: scope.cancel())
        case "cancel after":
            return Saboteur(at, after=lambda _: scope.cancel())
        case "stop":
            return Saboteur(at, before=lambda _: app.stop())
        case "reset":
            return Saboteur(at, before=reset_connection)
        case _:
            return Saboteur(at, after=lose_answer)


async def prepare(conn: Connection, store: Store) -> set[JobId]:
    """Two queued jobs, one that is due soon, and one of a worker that has left."""
    (left_behind,) = await add_jobs(conn, store)
    await add_worker(conn, store)
    assert [left_behind] == [held.job.id for held in await claim(conn, store)]
    await mark_left(conn, store, worker_id=11)
    await rows(conn, store, "select {schema}.enqueue('fetch', execute_after => interval '30 ms')")
    await add_jobs(conn, store, 2)
    found = await rows(
        conn,
        store,
        "select job_id from {schema}.queued union select job_id from {schema}.deferred"
        " union select job_id from {schema}.running",
    )
    return {row[0] for row in found}


async def left_over(conn: Connection, store: Store) -> int:
    """How many jobs have not ended."""
    ((number,),) = await rows(
        conn,
        store,
        "select (select count(*) from {schema}.queued) + (select count(*) from {schema}.deferred)"
        " + (select count(*) from {schema}.running)",
    )
    return int(number)


@pytest.mark.promise(15, 17, 36)
@pytest.mark.parametrize("deed", ["cancel before", "cancel after", "stop", "reset", "lose answer"])
async def test_nothing_is_lost_whatever_happens_at_any_wait(
    dsn: str, schema: str, conn: Connection, monkeypatch: pytest.MonkeyPatch, deed: str
) -> None:
    """Every job's handler has ended once, every job has one record, and no row of any other kind is left."""
    store = Store(schema)
    ended: Counter[int] = Counter()
    app = PgQueuer(dsn, schema=schema)
    # Runs differ by where the deed happens, not by how long they pause before they look again.
    monkeypatch.setattr(drain, "PAUSE", 0.02)
    monkeypatch.setattr(import_module("pgq_anyio._db.retrying"), "_POLICY", RetryPolicy(initial_delay=0.01))

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        await anyio.lowlevel.checkpoint()
        ended[job.id] += 1

    with anyio.fail_after(120):
        missed = 0
        for at in range(ENOUGH):
            jobs = await prepare(conn, store)
            with CancelScope() as scope, monkeypatch.context() as patch:
                saboteur = make_saboteur(deed, at, scope, app)
                saboteur.install(patch)
                try:
                    with anyio.fail_after(20):
                        await app.run(mode="drain", lease=6, batch_size=1)
                except psycopg.OperationalError:
                    assert deed in ("reset", "lose answer"), f"at wait {at}"
            if await left_over(conn, store):
                await app.run(mode="drain", lease=6)
            where = f"{deed!r} at wait {at}"
            assert dict.fromkeys(jobs, 1) == dict(ended), where
            assert [(job_id, "successful", 1, 0) for job_id in sorted(jobs)] == await rows(
                conn, store, "select job_id, status, attempt, crashes from {schema}.finished order by job_id"
            ), where
            for table in ("queued", "deferred", "running", "worker"):
                assert [] == await rows(conn, store, f"select * from {{schema}}.{table}"), f"{table}, {where}"
            ended.clear()
            await rows(conn, store, "delete from {schema}.finished")
            missed = missed + 1 if saboteur.count < at else 0
            if missed == IN_A_ROW:
                return
    raise AssertionError("a run never ended before its deed")


@pytest.mark.promise(34, 36)
@pytest.mark.parametrize("ending", ["cancel", "stop"])
async def test_the_claim_under_way_is_the_last_one(
    dsn: str, schema: str, conn: Connection, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """A worker that is to end while there is a backlog does not go on claiming what it gives back."""
    store = Store(schema)
    app = PgQueuer(dsn, schema=schema)
    claim_rows, claims = claimer._claim, 0

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        await anyio.sleep_forever()

    async def claim_and_end(*arguments: Any) -> Claim:
        nonlocal claims
        claims += 1
        if claims == 3:
            if ending == "cancel":
                scope.cancel()
            else:
                app.stop()
        return await claim_rows(*arguments)

    monkeypatch.setattr(claimer, "_claim", claim_and_end)
    jobs = await add_jobs(conn, store, 20)
    with anyio.fail_after(20), CancelScope() as scope:
        await app.run(batch_size=1, shutdown_grace=0.1)
    assert 3 == claims
    assert [(job_id,) for job_id in jobs] == await rows(conn, store, "select job_id from {schema}.queued order by seq")

"""A worker is cancelled, stopped, or loses a connection, at each of its waits for the server in turn.

The same run is repeated with the deed at another wait each time, until a run ends before its deed. A second worker then
finishes what is left. Together they have to end every job as if nothing had been: the queued ones, limited ones, one in
a thread, one that is cancelled while it runs, the deferred one, and the one that a worker has left behind; and the
occurrence of a schedule that was missed. (Claims of both kinds, outcomes, heartbeats, cancel requests, promotion,
rescue, schedules, registration and farewell all lie in such a run.)

The deed is done at every few waits, at others for each deed and backend; ``--hypothesis-profile=long`` tries all.
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

from pgq_anyio import Job, PgQueuer, Schedule
from pgq_anyio._db import Connection
from pgq_anyio._db._core import WaitingConnection
from pgq_anyio._models import JobId
from pgq_anyio._retry import RetryPolicy
from pgq_anyio._services import claimer, drain
from pgq_anyio._store._sql import Store
from pgq_anyio._store.queued import Claim
from pgq_anyio._store.worker import mark_left
from tests.profiles import scaled
from tests.store.scenes import add_jobs, add_worker, cancel, claim, rows

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]

DEEDS = ("cancel before", "cancel after", "stop", "reset", "lose answer")
#: Every so many waits.
STEP = 1 if scaled(1).max_examples > 1 else len(DEEDS)
#: More waits than a run has; a run that never ends before its deed would go on for ever.
ENOUGH = 1000
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


@attrs.define(eq=False)
class Handlers:
    """What the app runs, and what of it came to its end."""

    conn: Connection
    store: Store
    ended: Counter[int] = attrs.field(factory=Counter)
    occurrences: int = 0
    #: how many jobs of the limited name run, and whether there were ever two
    inside: int = 0
    exceeded: bool = False

    async def fetch(self, job: Job) -> None:
        await anyio.lowlevel.checkpoint()
        self.ended[job.id] += 1

    async def narrow(self, job: Job) -> None:
        self.inside += 1
        self.exceeded |= self.inside > 1
        try:
            await self.fetch(job)
        finally:
            self.inside -= 1

    def thread(self, job: Job) -> None:
        self.ended[job.id] += 1

    async def doomed(self, job: Job) -> None:
        """Somebody cancels it as soon as it runs."""
        with CancelScope(shield=True):
            await cancel(self.conn, self.store, [job.id])
        await anyio.sleep_forever()

    async def tick(self, schedule: Schedule) -> None:
        await anyio.lowlevel.checkpoint()
        self.occurrences += 1

    def register(self, app: PgQueuer) -> None:
        app.entrypoint("fetch")(self.fetch)
        app.entrypoint("narrow", concurrency_limit=1)(self.narrow)
        app.entrypoint("thread")(self.thread)
        app.entrypoint("doomed")(self.doomed)
        app.schedule("tick", "@daily")(self.tick)

    async def prepare(self) -> dict[JobId, str]:
        """Enqueue jobs, one of which is due soon and one of which belongs to a worker that has left; let the schedule
        have missed an occurrence. How each job is to end.
        """
        conn, store = self.conn, self.store
        (left_behind,) = await add_jobs(conn, store)
        await add_worker(conn, store)
        assert [left_behind] == [held.job.id for held in await claim(conn, store)]
        await mark_left(conn, store, worker_id=11)
        await rows(conn, store, "select {schema}.enqueue('fetch', execute_after => interval '30 ms')")
        for name, number in (("fetch", 1), ("narrow", 2), ("thread", 1), ("doomed", 1)):
            await add_jobs(conn, store, number, name=name)
        await rows(conn, store, "delete from {schema}.schedule")
        await rows(
            conn,
            store,
            "insert into {schema}.schedule (name, expression, timezone, last_due_at)"
            " values ('tick', '@daily', 'UTC', clock_timestamp() - interval '1 day')",
        )
        found = await rows(
            conn,
            store,
            "select job_id, entrypoint from {schema}.queued union select job_id, entrypoint from {schema}.deferred"
            " union select job_id, entrypoint from {schema}.running",
        )
        return {job_id: "cancelled" if name == "doomed" else "successful" for job_id, name in found}

    async def is_left(self) -> bool:
        """Whether a job or the occurrence has not ended."""
        ((is_left,),) = await rows(
            self.conn,
            self.store,
            "select exists (select from {schema}.queued) or exists (select from {schema}.deferred)"
            " or exists (select from {schema}.running)"
            " or exists (select from {schema}.schedule where last_status is distinct from 'successful')",
        )
        return bool(is_left)

    async def check(self, jobs: dict[JobId, str], where: str) -> None:
        """Everything has ended once, as it should, and nothing else is left."""
        assert {one: 1 for one, status in jobs.items() if status == "successful"} == dict(self.ended), where
        assert 1 == self.occurrences, where
        assert not self.exceeded, where
        finished = await rows(
            self.conn, self.store, "delete from {schema}.finished returning job_id, status, attempt, crashes"
        )
        assert [(job_id, status, 1, 0) for job_id, status in sorted(jobs.items())] == sorted(finished), where
        for table in ("queued", "deferred", "running", "worker", "attempt_error"):
            assert [] == await rows(self.conn, self.store, f"select * from {{schema}}.{table}"), f"{table}, {where}"
        query = "select worker_id, given_back_due_at, last_status from {schema}.schedule"
        assert [(None, None, "successful")] == await rows(self.conn, self.store, query), where
        self.ended.clear()
        self.occurrences = 0


@pytest.mark.timeout(0 if STEP == 1 else 60)
@pytest.mark.promise(15, 17, 36, 44)
@pytest.mark.parametrize("deed", DEEDS)
async def test_nothing_is_lost_whatever_happens_at_any_wait(
    dsn: str, schema: str, conn: Connection, monkeypatch: pytest.MonkeyPatch, anyio_backend: str, deed: str
) -> None:
    """Every job and the occurrence has ended once, and no row of any other kind is left."""
    app = PgQueuer(dsn, schema=schema)
    handlers = Handlers(conn, Store(schema))
    handlers.register(app)
    # Runs differ by where the deed happens, not by how long they pause before they look again.
    monkeypatch.setattr(drain, "PAUSE", 0.02)
    monkeypatch.setattr(import_module("pgq_anyio._db.retrying"), "_POLICY", RetryPolicy(initial_delay=0.01))

    first = (2 * DEEDS.index(deed) + (anyio_backend == "trio")) % STEP
    missed = 0
    for at in range(first, ENOUGH, STEP):
        where = f"{deed!r} at wait {at}"
        with anyio.fail_after(40):
            jobs = await handlers.prepare()
            with CancelScope() as scope, monkeypatch.context() as patch:
                saboteur = make_saboteur(deed, at, scope, app)
                saboteur.install(patch)
                try:
                    with anyio.fail_after(20):
                        await app.run(mode="drain", lease=6, batch_size=1)
                except psycopg.OperationalError:
                    assert deed in ("reset", "lose answer"), where
            while await handlers.is_left():
                await app.run(mode="drain", lease=6)
            await handlers.check(jobs, where)
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

"""What a worker does for all, and its farewell, cancelled or cut off from the database at each await in turn."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from pgq_anyio import Job, PgQueuer, PsycopgDriver
from pgq_anyio._db import Connection
from pgq_anyio._lifecycle import GIVEN_BACK, SUCCEEDED
from pgq_anyio._models import Held
from pgq_anyio._services.promoter import promote_once
from pgq_anyio._services.rescuer import rescue_once
from pgq_anyio._store.worker import Peer, mark_left
from pgq_anyio._worker import _say_farewell
from tests.store.scenes import add_jobs, add_worker, cancel, claim
from tests.worker.passes import DEEDS, Passes, try_everywhere

pytestmark = [pytest.mark.anyio, pytest.mark.promise(15, 17, 36), pytest.mark.heavy]

#: Every job of a test: (name, state, attempt, crashes).
JOBS = """
select entrypoint, state, attempt, crashes from (
    select entrypoint, 'deferred' as state, attempt, crashes from {schema}.deferred
    union all select entrypoint, 'queued', attempt, crashes from {schema}.queued
    union all select entrypoint, 'running', attempt, crashes from {schema}.running
    union all select entrypoint, status, attempt, crashes from {schema}.finished
) as j order by 1, 2, 3, 4
"""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture
def app(dsn: str, schema: str) -> PgQueuer:
    """Runs nothing: what its worker does for others is looked at."""
    app = PgQueuer(dsn, schema=schema)

    @app.entrypoint("rated", requests_per_second=0.001)
    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None: ...

    return app


async def own_schedule(passes: Passes, name: str, worker_id: int) -> None:
    """Let a worker run a schedule."""
    await passes.rows(
        "insert into {schema}.schedule (name, expression, timezone, worker_id, claim_no, due_at)"
        " values (%s, '@daily', 'UTC', %s, 1, 'epoch')",
        name,
        worker_id,
    )


async def schedules(passes: Passes) -> list[tuple[Any, ...]]:
    """(name, owner, whether its run is to be made again)."""
    return await passes.rows(
        "select name, worker_id, given_back_due_at is not null from {schema}.schedule order by name"
    )


@pytest.mark.parametrize("deed", DEEDS)
async def test_promotion(deed: str, app: PgQueuer, driver: PsycopgDriver, conn: Connection) -> None:
    """Jobs are deferred or queued, and the next look moves the rest of those that are due."""

    async def scene(passes: Passes, deed: str, k: int) -> bool:
        promoter = passes.term.promoter
        await passes.rows(
            "insert into {schema}.deferred (run_at, entrypoint)"
            " select clock_timestamp() + n * interval '1 hour', 'fetch' from unnest(array[-3, -2, -1, 1]) as n"
        )
        ids = {row[0] for row in await passes.rows("select job_id from {schema}.deferred")}
        is_done = await passes.interrupt(deed, k, promoter.line, lambda: promote_once(promoter))
        await passes.check_jobs(ids, f"{deed} at await {k}")
        await passes.again(lambda: promote_once(promoter))
        await passes.check_jobs(ids, f"{deed} at await {k}")
        expected = [("fetch", "deferred", 1, 0), *[("fetch", "queued", 1, 0)] * 3]
        assert expected == await passes.rows(JOBS), f"{deed} at await {k}"
        return is_done

    assert 1 <= await try_everywhere(deed, app, driver, conn, scene)


@pytest.mark.promise(12)
@pytest.mark.parametrize("deed", DEEDS)
async def test_rescue(deed: str, app: PgQueuer, driver: PsycopgDriver, conn: Connection) -> None:
    """A dead worker, one that has left, and a job of nobody: each job is taken over, each crash counted once."""
    dead, gone, unknown = 1, 2, 3

    async def scene(passes: Passes, deed: str, k: int) -> bool:
        rescuer, store = passes.term.rescuer, passes.store
        names = ["plain", "cancelled", "crashed"]
        for worker_id in (dead, gone):
            await add_worker(conn, store, worker_id, names, max_crashes=1 if worker_id == dead else 5)
        await add_worker(conn, store, unknown, ["orphan"])
        for worker_id, name in [(dead, "crashed"), (dead, "cancelled"), (gone, "plain"), (unknown, "orphan")]:
            await add_jobs(conn, store, name=name)
            (held,) = await claim(conn, store, worker_id=worker_id, name=name)
            if name == "cancelled":
                await cancel(conn, store, [held.job.id])
            await own_schedule(passes, name, worker_id)
        await mark_left(conn, store, worker_id=gone)
        await passes.rows("delete from {schema}.worker where worker_id = %s", unknown)
        ids = {row[0] for row in await passes.rows("select job_id from {schema}.running")}
        peers = [Peer(dead, 0, 30.0, 0.0, False), Peer(gone, 0, 30.0, 0.0, True)]
        now = anyio.current_time()
        for ago in (45.0, 30.0, 15.0, 0.0):  # one who looks rarely does not judge
            rescuer.sightings.observe(peers, clock=-ago, now=now - ago)

        is_done = await passes.interrupt(deed, k, rescuer.line, lambda: rescue_once(rescuer))
        await passes.check_jobs(ids, f"{deed} at await {k}")
        await passes.again(lambda: rescue_once(rescuer))
        await passes.check_jobs(ids, f"{deed} at await {k}")
        expected = [
            ("cancelled", "cancelled", 1, 1),
            ("crashed", "failed", 1, 1),
            ("orphan", "queued", 1, 1),
            ("plain", "queued", 1, 0),
        ]
        assert expected == await passes.rows(JOBS), f"{deed} at await {k}"
        released = [
            ("cancelled", None, False),
            ("crashed", None, False),
            ("orphan", None, False),
            ("plain", None, True),
        ]
        assert released == await schedules(passes), f"{deed} at await {k}"
        assert [(passes.term.worker_id,)] == await passes.rows("select worker_id from {schema}.worker")
        return is_done

    assert 1 <= await try_everywhere(deed, app, driver, conn, scene)


async def claim_in_vain(passes: Passes) -> None:
    """Let the database believe that the worker runs some jobs, one of them to be cancelled, and a schedule."""
    store, worker_id = passes.store, passes.term.worker_id
    await add_jobs(conn := passes.conn, store, 2)
    for name in ("cancelled", "rated"):
        await add_jobs(conn, store, name=name)
        (held,) = await claim(conn, store, 2**40, worker_id=worker_id, name=name)
        if name == "cancelled":
            await cancel(conn, store, [held.job.id])
    await claim(conn, store, 2**40, worker_id=worker_id)
    await own_schedule(passes, "daily", worker_id)


LEFT = [
    ("cancelled", "cancelled", 1, 0),
    ("fetch", "queued", 1, 0),
    ("fetch", "queued", 1, 0),
    ("rated", "queued", 1, 0),
]


async def check_gone(passes: Passes, where: str) -> None:
    """Nothing is left of the worker, and nothing is lost: not even the token of a job that never started."""
    assert [] == await passes.rows("select worker_id from {schema}.worker"), where
    assert LEFT == await passes.rows(JOBS), where
    assert [("daily", None, True)] == await schedules(passes), where
    assert [("rated", 1)] == await passes.rows("select entrypoint, tokens from {schema}.limiter_refund"), where


@pytest.mark.promise(21)
@pytest.mark.parametrize("deed", DEEDS)
async def test_leaving(deed: str, app: PgQueuer, driver: PsycopgDriver, conn: Connection) -> None:
    """The registration and all that hangs on it go together; who repeats it changes nothing more."""

    async def scene(passes: Passes, deed: str, k: int) -> bool:
        where, term = f"{deed} at await {k}", passes.term
        await claim_in_vain(passes)
        is_done = await passes.interrupt(deed, k, term.lines.heartbeat, term.registration.leave)
        if await passes.rows("select worker_id from {schema}.worker"):
            assert 4 == await passes.value("select count(*) from {schema}.running"), where
            assert [("daily", term.worker_id, False)] == await schedules(passes), where
        else:
            await check_gone(passes, where)
        await passes.again(term.registration.leave)
        await check_gone(passes, where)
        return is_done

    assert 1 <= await try_everywhere(deed, app, driver, conn, scene)


@pytest.mark.promise(21)
@pytest.mark.parametrize("broken", ["heartbeat", "completion"])
@pytest.mark.parametrize("deed", DEEDS)
async def test_farewell(deed: str, broken: str, app: PgQueuer, driver: PsycopgDriver, conn: Connection) -> None:
    """It is said whatever happens, after the outcomes that were on their way have been stored."""

    async def scene(passes: Passes, deed: str, k: int) -> bool:
        where, term = f"{deed} at await {k}", passes.term
        await claim_in_vain(passes)
        ended: list[Held] = []
        for name in ("back", "done"):
            await add_jobs(conn, passes.store, name=name)
            ended += await claim(conn, passes.store, 2**41, worker_id=term.worker_id, name=name)
        line = term.lines.heartbeat if broken == "heartbeat" else passes.completion
        await line.connection()

        async def end_and_leave() -> None:
            back, done = ended
            passes.worker.endings.put(back, GIVEN_BACK)
            passes.worker.endings.put(done, SUCCEEDED)
            await _say_farewell(term)

        is_done = await passes.interrupt(deed, k, line, end_and_leave)
        for query, name in (
            ("delete from {schema}.finished where status = 'successful' returning entrypoint", "done"),
            ("delete from {schema}.queued where entrypoint = 'back' and attempt = 1 returning entrypoint", "back"),
        ):
            assert [(name,)] == await passes.rows(query), where
        await check_gone(passes, where)
        return is_done

    assert 1 <= await try_everywhere(deed, app, driver, conn, scene)

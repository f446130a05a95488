"""Claims, and what gives lost ones back, cancelled or cut off from the database at each of their awaits in turn."""

from __future__ import annotations

from collections import Counter

import anyio
import pytest

from pgq_anyio import Job, PgQueuer, PsycopgDriver
from pgq_anyio._db import Connection
from pgq_anyio._models import JobId
from pgq_anyio._services.claimer import claim_once
from pgq_anyio._services.heartbeat import beat_once
from pgq_anyio._services.limited.claiming import claim_limited_once
from tests.store.scenes import add_jobs, claim
from tests.worker.passes import DEEDS, Passes, try_everywhere

pytestmark = [pytest.mark.anyio, pytest.mark.promise(15, 17, 36), pytest.mark.heavy]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture
def started(app: PgQueuer) -> list[JobId]:
    """The jobs whose handler has begun, in order; ``fetch`` has no limits, the other names have."""
    began: list[JobId] = []

    async def handle(job: Job) -> None:
        began.append(job.id)
        await anyio.sleep_forever()

    app.entrypoint("fetch")(handle)
    app.entrypoint("narrow", concurrency_limit=2)(handle)
    app.entrypoint("serial", serialized_dispatch=True)(handle)
    app.entrypoint("rated", requests_per_second=0.001)(handle)
    return began


async def wait_started(started: list[JobId], ids: set[JobId], where: str) -> None:
    """Wait until these handlers have begun, each once, and see that no other has."""
    with anyio.fail_after(10):
        while len(started) < len(ids):  # noqa: ASYNC110  (the handlers fill a list)
            await anyio.sleep(0.001)
    assert dict.fromkeys(ids, 1) == dict(Counter(started)), where


@pytest.mark.parametrize("deed", DEEDS)
async def test_claim(deed: str, app: PgQueuer, driver: PsycopgDriver, conn: Connection, started: list[JobId]) -> None:
    """What a claim took is run, or given back with the next heartbeat; the next claims run all jobs, each once."""

    async def scene(passes: Passes, deed: str, k: int) -> bool:
        where = f"{deed} at await {k}"
        claimer = passes.term.claimer
        passes.term.holdings.end_turn()  # the claimer of limited names has nothing to do
        started.clear()
        ids = set(await add_jobs(conn, passes.store, 3))
        is_done = await passes.interrupt(deed, k, claimer.line, lambda: claim_once(claimer))
        await passes.check_jobs(ids, where)
        await passes.beat(where)
        with anyio.fail_after(10):
            while await passes.value("select exists (select from {schema}.queued)"):
                claimer.hints.sweep_next()
                await passes.again(lambda: claim_once(claimer))
        await wait_started(started, ids, where)
        await passes.check_jobs(ids, where)
        return is_done

    assert 1 <= await try_everywhere(deed, app, driver, conn, scene)


@pytest.mark.promise(18, 20, 21)
@pytest.mark.parametrize("deed", DEEDS)
async def test_limited_claim(
    deed: str, app: PgQueuer, driver: PsycopgDriver, conn: Connection, started: list[JobId]
) -> None:
    """The same with limits, which hold at every moment and leave no slot or token behind that nobody has."""

    async def scene(passes: Passes, deed: str, k: int) -> bool:
        where = f"{deed} at await {k}"
        limited = passes.term.limited
        started.clear()
        by_name = {
            name: await add_jobs(conn, passes.store, number, name=name)
            for name, number in [("narrow", 3), ("serial", 2), ("rated", 1), ("fetch", 1)]
        }
        ids = {one for jobs in by_name.values() for one in jobs}
        allowed = {*by_name["narrow"][:2], by_name["serial"][0], *by_name["rated"], *by_name["fetch"]}

        async def check_limits() -> None:
            running = {row[0] for row in await passes.rows("select job_id from {schema}.running")}
            assert running <= allowed, where

        is_done = await passes.interrupt(
            deed, k, limited.line, lambda: claim_limited_once(limited, list(limited.names.values()))
        )
        await passes.check_jobs(ids, where)
        await check_limits()
        await passes.beat(where)
        with anyio.fail_after(10):
            while allowed - set(started):  # one that failed makes the next one wary: it takes one job at a time
                limited.wake(None, in_front=True)
                await passes.again(lambda: claim_limited_once(limited, limited.due()))
                await check_limits()
                await anyio.lowlevel.checkpoint()
        await wait_started(started, allowed, where)
        await passes.check_jobs(ids, where)
        return is_done

    assert 1 <= await try_everywhere(deed, app, driver, conn, scene)


@pytest.mark.parametrize("deed", DEEDS)
async def test_reconcile(
    deed: str, app: PgQueuer, driver: PsycopgDriver, conn: Connection, started: list[JobId]
) -> None:
    """After a reconnect: a row that the worker does not know goes back, and a job without a row ends. The heartbeat
    that follows one that failed, on a connection of its own, sees to what that one has left.
    """

    async def scene(passes: Passes, deed: str, k: int) -> bool:
        where = f"{deed} at await {k}"
        term = passes.term
        term.holdings.end_turn()
        started.clear()
        await passes.again(lambda: beat_once(term.heart))  # a worker's first beat comes before its first claim
        (undone,) = await add_jobs(conn, passes.store)
        await claim_once(term.claimer)
        await wait_started(started, {undone}, where)
        await passes.rows("delete from {schema}.running")  # as if a crash of the server had undone the claim
        (stray,) = await add_jobs(conn, passes.store)
        await claim(conn, passes.store, 2**40, worker_id=term.worker_id)
        term.lines.heartbeat.close()
        is_done = await passes.interrupt(deed, k, term.lines.heartbeat, lambda: beat_once(term.heart))
        if is_done:
            term.lines.heartbeat.close()
            assert await passes.again(lambda: beat_once(term.heart)), where
        with anyio.fail_after(10):
            while term.holdings.running():  # noqa: ASYNC110  (its handler is ending)
                await anyio.sleep(0.001)
        assert set() == await passes.owned(), where
        assert [(stray, 1, 0)] == await passes.rows("select job_id, attempt, crashes from {schema}.queued"), where
        return is_done

    assert 1 <= await try_everywhere(deed, app, driver, conn, scene)

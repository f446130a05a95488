"""Registering, taking and releasing scheduled runs, cancelled or cut off at each of their awaits in turn."""

from __future__ import annotations

from datetime import datetime

import anyio
import pytest

from pgq_anyio import PgQueuer, PsycopgDriver, Schedule
from pgq_anyio._db import Connection
from pgq_anyio._lifecycle import SUCCEEDED, Outcome
from pgq_anyio._services.completer import store_batch
from pgq_anyio._services.scheduler import look_once, register_once
from pgq_anyio._store.schedule import fire_schedules, read_schedules
from pgq_anyio._timetable import HeldSchedule, Wanted
from tests.store.scenes import add_worker, rows
from tests.worker.passes import DEEDS, Passes, try_everywhere

pytestmark = [pytest.mark.anyio, pytest.mark.promise(36, 42), pytest.mark.heavy]

KEY = ("report", "@daily")
RIVAL = 1
#: No worker makes so many claims.
CLAIM = 2**40
OWNER = "select worker_id, last_status, given_back_due_at is not null from {schema}.schedule"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture
def started(app: PgQueuer) -> list[datetime]:
    """The occurrences whose run has begun."""
    began: list[datetime] = []

    @app.schedule(*KEY)
    async def report(schedule: Schedule) -> None:
        began.append(schedule.due_at)
        await anyio.sleep_forever()

    return began


async def make_due(passes: Passes) -> None:
    """The schedule is known, and its last occurrence was missed."""
    await register_once(passes.term.scheduler)
    await passes.rows("update {schema}.schedule set last_due_at = last_due_at - interval '1 day'")
    passes.term.scheduler.look()


@pytest.mark.parametrize("deed", DEEDS)
async def test_registering(
    deed: str, app: PgQueuer, driver: PsycopgDriver, conn: Connection, started: list[datetime]
) -> None:
    """It can be done again, and is then known to worker and database."""

    async def scene(passes: Passes, deed: str, k: int) -> bool:
        scheduler = passes.term.scheduler
        is_done = await passes.interrupt(deed, k, scheduler.line, lambda: register_once(scheduler))
        await passes.again(lambda: register_once(scheduler))
        assert [KEY] == await passes.rows("select name, expression from {schema}.schedule"), f"{deed} at await {k}"
        assert [(["report"],)] == await passes.rows("select schedule_names from {schema}.worker"), (
            f"{deed} at await {k}"
        )
        return is_done

    assert 1 <= await try_everywhere(deed, app, driver, conn, scene)
    assert [] == started


@pytest.mark.parametrize("deed", DEEDS)
async def test_taking(
    deed: str, app: PgQueuer, driver: PsycopgDriver, conn: Connection, started: list[datetime]
) -> None:
    """An occurrence that was taken runs here, or is given back and taken again: it is run once, and after that its row
    says so.
    """

    async def scene(passes: Passes, deed: str, k: int) -> bool:
        where, scheduler = f"{deed} at await {k}", passes.term.scheduler
        started.clear()
        await make_due(passes)
        scheduler.line.close()  # opening a connection is part of the way
        is_done = await passes.interrupt(deed, k, scheduler.line, lambda: look_once(scheduler))
        ((owner, *_),) = await passes.rows(OWNER)
        assert owner in (None, passes.term.worker_id), where
        assert owner is None or scheduler.running() or scheduler._unresolved, f"taken and forgotten, {where}"
        # The next heartbeat has it read the rows again; before that, it is due in any case.
        with anyio.fail_after(10):
            while not scheduler.running():
                await passes.beat(where)
                await passes.again(lambda: look_once(scheduler))
            while not started:  # noqa: ASYNC110  (the handler is about to begin)
                await anyio.sleep(0.001)
        for _ in range(2):
            await passes.beat(where)
            await passes.again(lambda: look_once(scheduler))
        assert 1 == len(started), where
        assert [(passes.term.worker_id,)] == await passes.rows("select worker_id from {schema}.schedule"), where
        return is_done

    assert 1 <= await try_everywhere(deed, app, driver, conn, scene)
    assert [(None, "given_back", True)] == await rows(conn, app._store, OWNER), (
        "the last one was interrupted by the end"
    )


@pytest.mark.parametrize("deed", DEEDS)
async def test_giving_back(
    deed: str, app: PgQueuer, driver: PsycopgDriver, conn: Connection, started: list[datetime]
) -> None:
    """What was taken without an answer is given back when the rows are read, and then run, once."""

    async def scene(passes: Passes, deed: str, k: int) -> bool:
        where, scheduler = f"{deed} at await {k}", passes.term.scheduler
        started.clear()
        await make_due(passes)
        assert await take(conn, passes, passes.term.worker_id), where
        is_done = await passes.interrupt(deed, k, scheduler.line, lambda: look_once(scheduler))
        with anyio.fail_after(10):
            while not started:
                await passes.again(lambda: look_once(scheduler))
                await anyio.lowlevel.checkpoint()
        assert 1 == len(started), where
        assert [(passes.term.worker_id, "given_back", False)] == await passes.rows(OWNER), where
        return is_done

    assert 1 <= await try_everywhere(deed, app, driver, conn, scene)


@pytest.mark.parametrize("deed", DEEDS)
async def test_releasing(
    deed: str, app: PgQueuer, driver: PsycopgDriver, conn: Connection, started: list[datetime]
) -> None:
    """The end of a run is stored; who sends it again takes nothing from the next owner, who may have come meanwhile."""

    async def scene(passes: Passes, deed: str, k: int) -> bool:
        where, store = f"{deed} at await {k}", passes.store
        await add_worker(conn, store, RIVAL)
        await make_due(passes)
        held = HeldSchedule(*KEY, passes.term.worker_id, CLAIM)
        assert await take(conn, passes, held.worker_id), where
        batch: list[tuple[HeldSchedule, Outcome]] = [(held, SUCCEEDED)]
        is_done = await passes.interrupt(
            deed, k, passes.completion, lambda: store_batch(passes.completion, store, batch)
        )
        await passes.rows("update {schema}.schedule set last_due_at = last_due_at - interval '1 day'")
        rival_came = await take(conn, passes, RIVAL)
        await passes.again(lambda: store_batch(passes.completion, store, batch))
        expected = (RIVAL if rival_came else None, "successful", False)
        assert [expected] == await passes.rows(OWNER), where
        return is_done

    assert 1 <= await try_everywhere(deed, app, driver, conn, scene)


async def take(conn: Connection, passes: Passes, worker_id: int) -> bool:
    """Try to take the occurrence that is due; whether it was free."""
    (state,) = (await read_schedules(conn, passes.store, [KEY])).states
    wanted = Wanted(state, await passes.value("select last_due_at from {schema}.schedule"))
    return bool((await fire_schedules(conn, passes.store, [wanted], worker_id=worker_id, claim_no=CLAIM)).fired)

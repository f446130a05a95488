"""One heartbeat and one batch of outcomes, cancelled at each of their awaits in turn: the next one mends everything."""

from __future__ import annotations

import anyio
import pytest

from pgq_anyio import Job, PsycopgDriver
from pgq_anyio._db import Connection
from pgq_anyio._db.line import Line
from pgq_anyio._holdings import Holdings
from pgq_anyio._lease import Lease
from pgq_anyio._lifecycle import GIVEN_BACK, SUCCEEDED, Outcome
from pgq_anyio._models import Held
from pgq_anyio._services.completer import store_batch
from pgq_anyio._services.heartbeat import Heart, beat_once
from pgq_anyio._store._sql import Store
from tests.db.steps import cancel_everywhere
from tests.store.scenes import WORKER, add_jobs, add_worker, claim, rows

pytestmark = [pytest.mark.anyio, pytest.mark.promise(15, 36)]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


def hold_nothing() -> Holdings:
    return Holdings(
        worker_id=WORKER,
        max_concurrency=10,
        cancel_grace=5.0,
        unstored=lambda: 0,
        on_room=lambda: None,
        on_lost_claim=lambda: None,
        on_cancelled=lambda _: None,
    )


async def test_outcomes(driver: PsycopgDriver, schema: str, conn: Connection) -> None:
    """A batch that is sent again after that ends each job once, whatever of the first arrived."""
    store, line = Store(schema), Line(driver, f"probe {schema}")
    batch: list[tuple[Held, Outcome]] = []
    number = 0

    async def prepare() -> None:
        nonlocal number
        number += 1
        done, back = await claim(conn, store, number)
        batch[:] = [(done, SUCCEEDED), (back, GIVEN_BACK)]

    async def check(k: int, cancelled: bool) -> None:
        where = f"cancelled at await {k}"
        await store_batch(line, store, batch)
        (done, _), (back, _) = batch
        assert [(done.job.id, "successful")] == await rows(
            conn, store, "select job_id, status from {schema}.finished"
        ), where
        assert [(back.job.id,)] == await rows(conn, store, "select job_id from {schema}.queued"), where
        assert [] == await rows(conn, store, "select job_id from {schema}.running"), where
        await rows(conn, store, "delete from {schema}.finished")
        await add_jobs(conn, store)
        await prepare()

    await add_worker(conn, store)
    await add_jobs(conn, store, 2)
    await prepare()
    try:
        assert 1 <= await cancel_everywhere(lambda: store_batch(line, store, batch), check)
    finally:
        line.close()


async def test_heartbeat(driver: PsycopgDriver, schema: str, conn: Connection) -> None:
    """The next heartbeat gets through, the lease counts from it, and what a lost claim took has gone back."""
    store, line, holdings = Store(schema), Line(driver, f"probe {schema}"), hold_nothing()
    heart = Heart(
        line=line,
        store=store,
        worker_id=WORKER,
        holdings=holdings,
        lease=Lease(30.0, 5.0),
        on_pulse=lambda *_: None,
        on_new_session=lambda: None,
    )
    lost: list[Job] = []

    async def lose() -> None:
        number = holdings.open_claim(1)
        lost[:] = [held.job for held in await claim(conn, store, number)]
        holdings.lose_claim(number)

    async def check(k: int, cancelled: bool) -> None:
        where = f"cancelled at await {k}"
        asked_at = anyio.current_time()
        assert await beat_once(heart), where
        assert heart.lease.scope.deadline >= asked_at + 25.0, where
        assert [(lost[0].id, 1)] == await rows(conn, store, "select job_id, attempt from {schema}.queued"), where
        assert [] == await rows(conn, store, "select job_id from {schema}.running"), where
        await lose()

    await add_worker(conn, store)
    await add_jobs(conn, store)
    await lose()
    try:
        assert 1 <= await cancel_everywhere(lambda: beat_once(heart), check)
    finally:
        line.close()

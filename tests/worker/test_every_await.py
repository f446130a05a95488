"""One heartbeat and one batch of outcomes, cancelled at each of their awaits in turn, the batch cut off from the
database as well: the next one mends everything.
"""

from __future__ import annotations

from typing import Final

import anyio
import pytest

from pgq_anyio import Job, PgQueuer, PsycopgDriver
from pgq_anyio._db import Connection
from pgq_anyio._db.line import Line
from pgq_anyio._holdings import Holdings
from pgq_anyio._lease import Lease
from pgq_anyio._lifecycle import (
    GIVEN_BACK,
    SUCCEEDED,
    UNSTARTED_GIVEN_BACK,
    Again,
    Cancelled,
    ErrorText,
    Failed,
    Outcome,
)
from pgq_anyio._services.completer import store_batch
from pgq_anyio._services.heartbeat import Heart, beat_once
from pgq_anyio._store._sql import Store
from tests.db.steps import cancel_everywhere
from tests.store.scenes import WORKER, add_jobs, add_worker, cancel, claim, rows
from tests.worker.passes import DEEDS, Passes, try_everywhere

pytestmark = [pytest.mark.anyio, pytest.mark.promise(15, 36)]

RIVAL: Final = 1
#: No worker makes so many claims.
CLAIM: Final = 2**40
ERROR: Final = ErrorText("ValueError", "no", None)
#: The jobs of a batch by their names. Somebody has asked to cancel ``asked``, and ``rated`` was never started.
OUTCOMES: Final[dict[str, Outcome]] = {
    "done": SUCCEEDED,
    "asked": SUCCEEDED,
    "failed": Failed(ERROR),
    "again": Again(0.0, counted=True, error=ERROR),
    "later": Again(3600.0, counted=True, error=ERROR),
    "snoozed": Again(3600.0, counted=False, error=None),
    "cancelled": Cancelled("by its handler"),
    "back": GIVEN_BACK,
    "rated": UNSTARTED_GIVEN_BACK,
}
#: Where each of them is then: the state, the attempt, and what is recorded with it.
AFTERWARDS: Final[dict[str, tuple[str, int, str | None]]] = {
    "done": ("successful", 1, None),
    "asked": ("cancelled", 1, "test"),
    "failed": ("failed", 1, "no"),
    "again": ("queued", 2, None),
    "later": ("deferred", 2, None),
    "snoozed": ("deferred", 1, None),
    "cancelled": ("cancelled", 1, "by its handler"),
    "back": ("queued", 1, None),
    "rated": ("queued", 1, None),
}
STATES: Final = """
select entrypoint, 'deferred', attempt, null from {schema}.deferred
union all select entrypoint, 'queued', attempt, null from {schema}.queued
union all select entrypoint, 'running', attempt, worker_id::text from {schema}.running
union all select entrypoint, status, attempt, coalesce(error_message, cancel_reason) from {schema}.finished
"""


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


async def states(passes: Passes) -> dict[str, tuple[str, int, str | None]]:
    """Where each job of the batch is; it is in one place."""
    found = await passes.rows(STATES)
    assert sorted(OUTCOMES) == sorted(row[0] for row in found)
    return {name: (state, attempt, detail) for name, state, attempt, detail in found}


async def places(passes: Passes) -> dict[str, int]:
    """The places in the queue that jobs have, or had when they were claimed."""
    return dict(
        await passes.rows(
            "select entrypoint, seq from {schema}.queued union all select entrypoint, seq from {schema}.running"
        )
    )


@pytest.mark.heavy
@pytest.mark.parametrize("deed", DEEDS)
async def test_outcomes(deed: str, app: PgQueuer, driver: PsycopgDriver, conn: Connection) -> None:
    """A batch that is sent again after that ends each job once, whatever of the first arrived; and it takes nothing
    from the next owner of a job that had gone back, who may have come meanwhile.
    """

    @app.entrypoint("rated", requests_per_second=0.001)
    async def rated(job: Job) -> None: ...

    async def scene(passes: Passes, deed: str, k: int) -> bool:
        where, store, worker_id = f"{deed} at await {k}", passes.store, passes.term.worker_id
        await add_worker(conn, store, RIVAL, list(OUTCOMES))
        batch, names = [], {}
        for name, outcome in OUTCOMES.items():
            await add_jobs(conn, store, name=name)
            (held,) = await claim(conn, store, CLAIM, worker_id=worker_id, name=name)
            batch.append((held, outcome))
            names[held.job.id] = name
        await cancel(conn, store, [job_id for job_id, name in names.items() if name == "asked"])
        old_places = await places(passes)
        passes.completion.close()  # opening a connection is part of the way

        is_done = await passes.interrupt(
            deed, k, passes.completion, lambda: store_batch(passes.completion, store, batch)
        )
        for name, state in (await states(passes)).items():
            assert state in (("running", 1, str(worker_id)), AFTERWARDS[name]), f"{name}, {where}"
        expected = dict(AFTERWARDS)
        for name in ("again", "back"):
            if await claim(conn, store, CLAIM, worker_id=RIVAL, name=name):
                expected[name] = ("running", AFTERWARDS[name][1], str(RIVAL))
        await passes.again(lambda: store_batch(passes.completion, store, batch))
        assert expected == await states(passes), where
        new_places = await places(passes)
        assert all(old_places[name] == new_places[name] for name in ("back", "rated")), where
        assert max(old_places.values()) < new_places["again"], where
        noted = await passes.rows("select job_id, attempt, error_message from {schema}.attempt_error order by job_id")
        assert [("again", 1, "no"), ("later", 1, "no")] == [(names[row[0]], *row[1:]) for row in noted], where
        assert [("rated", 1)] == await passes.rows("select entrypoint, tokens from {schema}.limiter_refund"), where
        await passes.rows("delete from {schema}.queued")  # what is left there is looked at: no attempt is to be lost
        return is_done

    assert 1 <= await try_everywhere(deed, app, driver, conn, scene)


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

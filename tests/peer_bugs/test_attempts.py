"""The number of an attempt has 32 bits, and a handler may ask for any number of retries."""

from __future__ import annotations

from typing import Final

import anyio
import pytest

from pgq_anyio import Job, PgQueuer, PsycopgDriver, Retry, RetryPolicy, Snooze
from pgq_anyio._db import Connection
from pgq_anyio._db.line import Line
from pgq_anyio._lifecycle import GIVEN_BACK, SUCCEEDED, Again, ErrorText, Failed, Outcome
from pgq_anyio._models import Held
from pgq_anyio._services.completer import COMPLETION_SETTINGS, store_batch
from pgq_anyio._store._sql import Store
from tests.store.conftest import store
from tests.store.scenes import add_worker, claim, rows

__all__ = ["store"]

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]

LAST: Final = 2**31 - 1
AT_ONCE: Final = RetryPolicy(initial_delay=0)
ADD: Final = "insert into {schema}.queued (entrypoint, attempt) values (%s, %s)"
FINISHED: Final = "select entrypoint, status, attempt, error_message from {schema}.finished order by entrypoint"


@pytest.mark.promise(29, 31)
@pytest.mark.parametrize("delay", [0.0, 3600.0])
async def test_one_attempt_too_many_in_a_batch(dsn: str, store: Store, conn: Connection, delay: float) -> None:
    """Its job fails, and says why; the other outcomes of the batch are stored as they are."""
    outcomes: dict[str, Outcome] = {
        "again": Again(delay, counted=True, error=ErrorText.of(ValueError("once more"))),
        "back": GIVEN_BACK,
        "done": SUCCEEDED,
        "failed": Failed(ErrorText.of(ValueError("no"))),
        "snoozed": Again(0.0, counted=False, error=None),
    }
    await add_worker(conn, store, names=list(outcomes))
    batch: list[tuple[Held, Outcome]] = []
    for name, outcome in outcomes.items():
        await rows(conn, store, ADD, name, LAST)
        batch += [(held, outcome) for held in await claim(conn, store, name=name)]
    async with PsycopgDriver(dsn) as driver:
        line = Line(driver, "completion", dict(COMPLETION_SETTINGS))
        try:
            assert len(outcomes) == await store_batch(line, store, batch)
        finally:
            line.close()
    (name, status, attempt, why), *others = await rows(conn, store, FINISHED)
    assert ("again", "failed", LAST) == (name, status, attempt)
    assert "out of range" in why
    assert [("done", "successful", LAST, None), ("failed", "failed", LAST, "no")] == others
    queued = await rows(conn, store, "select entrypoint, attempt from {schema}.queued order by entrypoint")
    assert [("back", LAST), ("snoozed", LAST)] == queued
    for table in ("running", "deferred", "attempt_error"):
        assert [] == await rows(conn, store, f"select * from {{schema}}.{table}")


@pytest.mark.promise(29, 31)
async def test_the_last_attempt_that_can_be_counted(dsn: str, store: Store, conn: Connection) -> None:
    """A job that asks for one more fails, and says why. Others end as they would have, and the worker goes on."""
    app = PgQueuer(dsn, schema=store.schema)
    seen: list[tuple[str, int]] = []
    #: they end together
    all_here = anyio.Event()

    async def meet(job: Job) -> None:
        seen.append((job.entrypoint, job.attempt))
        if len(seen) == 4:
            all_here.set()
        await all_here.wait()

    @app.entrypoint("ask")
    async def ask(job: Job) -> None:
        await meet(job)
        raise Retry(0, "once more")

    @app.entrypoint("fail", max_attempts=LAST, retry_policy=AT_ONCE)
    async def fail(job: Job) -> None:
        await meet(job)
        raise ValueError("no")

    @app.entrypoint("snooze")
    async def snooze(job: Job) -> None:
        await meet(job)
        if seen.count(("snooze", LAST)) == 1:
            raise Snooze(0)

    @app.entrypoint("work")
    async def work(job: Job) -> None:
        await meet(job)

    for name, attempt in (("ask", LAST), ("fail", LAST - 1), ("snooze", LAST), ("work", LAST)):
        await rows(conn, store, ADD, name, attempt)
    with anyio.fail_after(30):
        await app.run(mode="drain")
    assert [("ask", LAST), ("fail", LAST - 1), ("fail", LAST), ("snooze", LAST), ("snooze", LAST), ("work", LAST)] == (
        sorted(seen)
    )
    (name, status, attempt, why), *others = await rows(conn, store, FINISHED)
    assert ("ask", "failed", LAST) == (name, status, attempt)
    assert "out of range" in why
    assert [
        ("fail", "failed", LAST, "no"),
        ("snooze", "successful", LAST, None),
        ("work", "successful", LAST, None),
    ] == others

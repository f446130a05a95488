"""``serialized_dispatch``: one job at a time in the whole fleet, in order."""

from __future__ import annotations

import signal

import anyio
import pytest

from pgq_anyio import Job, PgQueuer, PsycopgDriver, Queries
from pgq_anyio.testing import running_worker
from tests.worker.fleet import BACKENDS, Fleet, wait_until
from tests.worker.limited_fleet import count_ended, enqueue, highest_overlap, pids, start, trickle, wait_for

pytestmark = pytest.mark.heavy


@pytest.mark.promise(20)
@BACKENDS
def test_serialized_jobs_run_one_by_one_in_order(fleet: Fleet, backend: str) -> None:
    """By priority and then in the order of enqueueing, over three workers, each of which runs some; the one that is
    given back comes next.
    """
    first, *_ = start(fleet, backend, 1, {"serialized_dispatch": True}, shutdown_grace=0.05)
    (holder,) = enqueue(fleet, [b"hold"], [9])
    wait_until(lambda: fleet.events(holder))
    others = start(fleet, backend, 3, {"serialized_dispatch": True})
    priorities = [number % 3 for number in range(150)]
    ids = enqueue(fleet, [b""] * 150, priorities)
    first.signal(signal.SIGTERM)
    wait_until(lambda: 3 == len(fleet.events(holder)))
    # It is given back to its old place and started again before all others; cancelled, it lets them run.
    wait_until(lambda: fleet.rows("update {schema}.running set cancel_requested_at = clock_timestamp() returning 1"))
    wait_until(lambda: 151 == count_ended(fleet), timeout=45)
    later = trickle(fleet, 60, runners=[first, *others])
    wait_until(lambda: 151 + len(later) == count_ended(fleet))
    assert 1 == highest_overlap(fleet)
    assert {first.pid, *(one.pid for one in others)} == pids(fleet)
    ordered = [job_id for _, job_id in sorted(zip((-p for p in priorities), ids, strict=True))]
    assert [holder, holder, *ordered, *later] == [
        row[0] for row in fleet.rows("select job_id from {log} where event = 'start' order by at")
    ]


@pytest.mark.anyio
@pytest.mark.promise(20)
async def test_a_serialized_job_that_commits_late_is_next(
    app: PgQueuer, queries: Queries, driver: PsycopgDriver
) -> None:
    """It was enqueued before jobs that have run already, in a transaction that commits only now: nothing overtakes it
    any more.
    """
    ran: list[bytes | None] = []
    release = anyio.Event()

    @app.entrypoint("one", serialized_dispatch=True)
    async def one(job: Job) -> None:
        ran.append(job.payload)
        if job.payload == b"holder":
            await release.wait()

    async with running_worker(app):
        connection = await driver.connect(role="caller")
        async with connection.transaction():
            await queries.enqueue("one", b"late", connection=connection)
            await queries.enqueue("one", [b"first", b"holder", b"last"])
            await wait_for(lambda: [b"first", b"holder"] == ran)
        connection.abort()
        release.set()
        await wait_for(lambda: 4 == len(ran))
    assert [b"first", b"holder", b"late", b"last"] == ran

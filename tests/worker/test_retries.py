"""Another attempt: soon after its delay, and whatever becomes of the worker."""

from __future__ import annotations

import signal
import statistics
from itertools import pairwise

import anyio
import pytest

from pgq_anyio import Job, PgQueuer, Queries, Retry, RetryPolicy
from pgq_anyio.testing import running_worker
from tests.bounds import Within
from tests.worker.fleet import EVERY_LOOP, Fleet, wait_until

DELAY = 0.2


@pytest.mark.promise(31)
@pytest.mark.anyio
@pytest.mark.parametrize("asked", [True, False], ids=["Retry", "max_attempts"])
async def test_an_attempt_comes_soon_after_its_delay(
    app: PgQueuer, queries: Queries, asked: bool, within: Within
) -> None:
    """On an idle worker with a poll interval of 30 s: never before the delay, and within 100 ms after it. That is a
    median: somebody may have the processors for a moment.
    """
    began_at: list[float] = []
    ended = anyio.Event()
    policy = RetryPolicy(initial_delay=DELAY, multiplier=1, jitter=False)

    @app.entrypoint("flaky", max_attempts=1 if asked else 6, retry_policy=policy)
    async def flaky(job: Job) -> None:
        began_at.append(anyio.current_time())
        if job.attempt == 6:
            ended.set()
        elif asked:
            raise Retry(delay=DELAY)
        else:
            raise ValueError

    async with running_worker(app, dequeue_timeout=30):
        await queries.enqueue("flaky")
        with anyio.fail_after(40):
            await ended.wait()
    pauses = [after - before for before, after in pairwise(began_at)]
    assert 5 == len(pauses)
    assert min(pauses) >= DELAY
    assert statistics.median(pauses) < within(DELAY + 0.1)


@pytest.mark.promise(31)
@EVERY_LOOP
def test_an_attempt_survives_the_worker(fleet: Fleet, backend: str) -> None:
    """The worker is killed while the job waits: another one makes the next attempt, without waiting for a lease."""
    first = fleet.start(backend)
    (job,) = fleet.enqueue("again", b"1.0")
    wait_until(lambda: fleet.rows("select 1 from {schema}.deferred where job_id = %s and attempt = 2", job))
    first.signal(signal.SIGKILL)
    second = fleet.start(backend)
    wait_until(lambda: "successful" == fleet.status(job), timeout=25)  # its lease is 30 s
    assert [("attempt 1", first.pid), ("attempt 2", second.pid)] == fleet.events(job)
    assert [(2, 0, None)] == fleet.rows("select attempt, crashes, error_type from {schema}.finished")

"""A handler that blocks the event loop is named."""

from __future__ import annotations

import logging
import math
import time

import anyio
import attrs
import pytest

from pgq_anyio import Job, JobStatus, PgQueuer, Queries
from pgq_anyio._services.watchdog import INTERVAL, Watchdog
from pgq_anyio.testing import drain

anyio_test = pytest.mark.anyio


@anyio_test
async def test_a_blocked_loop_is_reported_with_its_stack(
    app: PgQueuer, queries: Queries, caplog: pytest.LogCaptureFixture
) -> None:
    """Once per block, while it lasts, with the name of the function that blocks."""

    @app.entrypoint("block")
    async def block_the_loop(job: Job) -> None:
        deadline = time.monotonic() + 10
        while "block_the_loop" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)  # noqa: ASYNC251  # the point of the test

    (job_id,) = await queries.enqueue("block")
    with caplog.at_level(logging.WARNING, "pgq_anyio.watchdog"), anyio.fail_after(20):
        await drain(app, block_warning=0.2)
    assert {job_id: JobStatus.SUCCESSFUL} == await queries.job_status([job_id])
    assert 1 == len([record for record in caplog.records if record.name == "pgq_anyio.watchdog"])
    assert "block_the_loop" in caplog.text


@anyio_test
async def test_a_loop_that_runs_is_not_reported(
    app: PgQueuer, queries: Queries, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiting is no blocking."""

    @app.entrypoint("wait")
    async def wait(job: Job) -> None:
        await anyio.sleep(2.5)

    await queries.enqueue("wait")
    with caplog.at_level(logging.WARNING, "pgq_anyio.watchdog"), anyio.fail_after(20):
        await drain(app, block_warning=2)
    assert "event loop has been blocked" not in caplog.text


@attrs.define
class Loop:
    """A clock that only the thread's pauses move, and a loop that stamps the time while it is not blocked."""

    watchdog: Watchdog
    #: from when to when the loop is blocked (in seconds)
    blocked: tuple[float, float]
    #: how much longer than asked for the pause takes in which this time passes (in seconds)
    stopped: tuple[float, float] = (math.inf, 0.0)
    now: float = 0.0
    pauses: int = 0

    def monotonic(self) -> float:
        return self.now

    def wait(self, pause: float) -> bool:
        """The thread's pause; true at the end of the play."""
        self.pauses += 1
        at, longer = self.stopped
        end = self.now + pause + (longer if self.now <= at < self.now + pause else 0.0)
        since, until = self.blocked
        while (due_at := max(self.watchdog.stamped_at + INTERVAL, self.now)) < end:
            if since <= due_at < until:
                if until >= end:
                    break
                due_at = until
            self.now = self.watchdog.stamped_at = due_at
        self.now = end
        return end > 20


@pytest.mark.parametrize(
    ("blocked", "stopped", "times"),
    [
        pytest.param((30, 30), (math.inf, 0), 0, id="never"),
        pytest.param((10.01, 11), (math.inf, 0), 0, id="for less than the limit"),
        pytest.param((10.49, 12), (math.inf, 0), 1, id="for half as long again"),
        pytest.param((10, 20), (math.inf, 0), 1, id="for long: once"),
        pytest.param((10.01, 15.9), (10.2, 4.5), 0, id="with the whole process"),
    ],
)
def test_what_counts_as_blocked(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    blocked: tuple[float, float],
    stopped: tuple[float, float],
    times: int,
) -> None:
    """With a limit of a second: by the clock, and with few looks."""
    dog = Watchdog(1.0)
    dog.stamped_at = 0.0
    loop = Loop(dog, blocked, stopped)
    monkeypatch.setattr("pgq_anyio._services.watchdog.time", loop)
    monkeypatch.setattr(dog, "ended", loop)
    with caplog.at_level(logging.WARNING, "pgq_anyio.watchdog"):
        dog.watch()
    assert times == len(caplog.records)
    assert loop.pauses <= (20 if blocked[0] > 20 else 40)

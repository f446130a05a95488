"""A handler that blocks the event loop is named."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import attrs
import pytest

from pgq_anyio import Job, JobStatus, PgQueuer, Queries, Schedule
from pgq_anyio._services.watchdog import INTERVAL, Watchdog
from pgq_anyio.testing import drain

anyio_test = pytest.mark.anyio

LOGGER = "pgq_anyio.watchdog"

#: Blocks the event loop until the log names this; fails if it never does.
Block = Callable[[str], None]


@pytest.fixture
def block(caplog: pytest.LogCaptureFixture) -> Iterator[Block]:
    def block(name: str) -> None:
        deadline = time.monotonic() + 10
        while not any(name in record.getMessage() for record in caplog.records if record.name == LOGGER):
            assert time.monotonic() < deadline, f"{name} was not named"
            time.sleep(0.01)

    with caplog.at_level(logging.WARNING, LOGGER):
        yield block


@anyio_test
async def test_a_blocked_loop_is_reported_with_its_stack(
    app: PgQueuer, queries: Queries, block: Block, caplog: pytest.LogCaptureFixture
) -> None:
    """Once per block, while it lasts, with the name of the function that blocks."""

    @app.entrypoint("block")
    async def block_the_loop(job: Job) -> None:
        block("block_the_loop")

    (job_id,) = await queries.enqueue("block")
    with anyio.fail_after(20):
        await drain(app, block_warning=0.2)
    assert {job_id: JobStatus.SUCCESSFUL} == await queries.job_status([job_id])
    assert 1 == len([record for record in caplog.records if record.name == LOGGER])


@anyio_test
async def test_a_loop_that_runs_is_not_reported(
    app: PgQueuer, queries: Queries, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiting is no blocking."""

    @app.entrypoint("wait")
    async def wait(job: Job) -> None:
        await anyio.sleep(2.5)

    await queries.enqueue("wait")
    with caplog.at_level(logging.WARNING, LOGGER), anyio.fail_after(20):
        await drain(app, block_warning=2)
    assert "event loop has been blocked" not in caplog.text


@pytest.fixture
def rested(monkeypatch: pytest.MonkeyPatch) -> anyio.Event:
    """Set when a watchdog of this test has gone to sleep for the first time."""
    rested, rest = anyio.Event(), Watchdog.rest

    async def tell_and_rest(watchdog: Watchdog) -> None:
        rested.set()
        await rest(watchdog)

    monkeypatch.setattr(Watchdog, "rest", tell_and_rest)
    return rested


@anyio_test
async def test_the_first_handler_after_a_rest_is_watched(
    app: PgQueuer, queries: Queries, rested: anyio.Event, block: Block
) -> None:
    """Nothing wakes while nothing runs; and a job that blocks at once, before any other task has its turn, is named."""

    @app.entrypoint("block")
    async def first_after_a_rest(job: Job) -> None:
        block("first_after_a_rest")
        app.stop()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            await tasks.start(partial(app.run, block_warning=0.2))
            await rested.wait()
            await queries.enqueue("block")


@anyio_test
async def test_the_first_scheduled_run_after_a_rest_is_watched(
    app: PgQueuer, rested: anyio.Event, block: Block
) -> None:
    """As a job is."""

    @app.schedule("block", "* * * * * *")
    async def scheduled_after_a_rest(schedule: Schedule) -> None:
        if rested.is_set():
            block("scheduled_after_a_rest")
            app.stop()

    with anyio.fail_after(20):
        await app.run(block_warning=0.2)


@anyio_test
async def test_a_lifespan_is_watched(dsn: str, schema: str, rested: anyio.Event, block: Block) -> None:
    """While it opens, and while it closes after a rest."""
    limit = 0.2

    def open_resources() -> None:
        block("open_resources")

    def close_resources() -> None:
        block("close_resources")

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        open_resources()
        yield
        await anyio.sleep(3 * limit)  # by then it rests again, if nobody says that it is needed
        close_resources()

    app = PgQueuer(dsn, schema=schema, lifespan=lifespan)
    app.entrypoint("any")(lambda job: None)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            await tasks.start(partial(app.run, block_warning=limit))
            await rested.wait()
            app.stop()


@attrs.define
class Loop:
    """A clock that only the thread's pauses move, and a loop that stamps the time while it is not blocked."""

    watchdog: Watchdog
    #: from when to when the loop is blocked (in seconds)
    blocked: tuple[float, float]
    #: how much longer than asked for the pause takes in which this time passes (in seconds)
    stopped: tuple[float, float] = (math.inf, 0.0)
    #: from when to when nothing runs and the loop stamps no time (in seconds)
    rests: tuple[float, float] = (0.0, 0.0)
    now: float = 0.0
    pauses: int = 0

    def monotonic(self) -> float:
        return self.now

    def set(self) -> None:
        """End the pause; ``wait`` tells that it has."""

    def clear(self) -> None:
        """The next pause is a pause."""

    def wait(self, pause: float | None = None) -> bool:
        """The thread's pause; true if it was ended from outside."""
        self.pauses += 1
        at, longer = self.stopped
        end = self.rests[1] if pause is None else self.now + pause
        end += longer if self.now <= at < end else 0.0
        is_woken = self.rests[0] < self.rests[1] <= end and self.watchdog._rests
        self._run(end)
        if end > 20:
            self.watchdog.end()
        return is_woken

    def _run(self, end: float) -> None:
        """Let the time pass."""
        since, until = self.blocked
        while (due_at := max(self.watchdog.stamped_at + INTERVAL, self.now)) < end:
            if self.watchdog._rests:
                if self.rests[1] > end:
                    break
                self.now = self.rests[1]
                self.watchdog.wake()
                if self.now == since:
                    self.now = min(until, end)
                continue
            if since <= due_at < until:
                if until >= end:
                    break
                due_at = until
            self.now = due_at
            self.watchdog.stamp()
            self.watchdog._rests = self.rests[0] <= self.now < self.rests[1]
        self.now = end


@pytest.mark.parametrize(
    ("blocked", "stopped", "rests", "times", "pauses"),
    [
        pytest.param((30, 30), (math.inf, 0), (0, 0), 0, 20, id="never"),
        pytest.param((30, 30), (math.inf, 0), (2, 18), 0, 6, id="never, and nothing runs for long"),
        pytest.param((10.01, 11), (math.inf, 0), (0, 0), 0, 40, id="for less than the limit"),
        pytest.param((10, 10.99), (math.inf, 0), (2, 10), 0, 40, id="after a rest, for less than the limit"),
        pytest.param((10.49, 12), (math.inf, 0), (0, 0), 1, 40, id="for half as long again"),
        pytest.param((10, 11.51), (math.inf, 0), (2, 10), 1, 40, id="after a rest, for half as long again"),
        pytest.param((10, 20), (math.inf, 0), (0, 0), 1, 40, id="for long: once"),
        pytest.param((10.01, 15.9), (10.2, 4.5), (0, 0), 0, 40, id="with the whole process"),
    ],
)
def test_what_counts_as_blocked(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    blocked: tuple[float, float],
    stopped: tuple[float, float],
    rests: tuple[float, float],
    times: int,
    pauses: int,
) -> None:
    """With a limit of a second: by the clock, and with few looks."""
    dog = Watchdog(1.0, bool)
    loop = Loop(dog, blocked, stopped, rests)
    monkeypatch.setattr("pgq_anyio._services.watchdog.time", loop)
    monkeypatch.setattr(dog, "_alarm", loop)
    dog.stamp()
    with caplog.at_level(logging.WARNING, LOGGER):
        dog.watch()
    assert times == len(caplog.records)
    assert loop.pauses <= pauses


def test_a_rest_that_begins_as_the_thread_falls_asleep(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread has seen the last stamp, and not yet that it is the last."""
    dog = Watchdog(1.0, bool)

    class Rest(Loop):
        def wait(self, pause: float | None = None) -> bool:
            assert pause is not None
            dog._rests = True
            self.now += pause
            dog.end()
            return False

    loop = Rest(dog, (30, 30))
    monkeypatch.setattr("pgq_anyio._services.watchdog.time", loop)
    monkeypatch.setattr(dog, "_alarm", loop)
    dog.stamp()
    with caplog.at_level(logging.WARNING, LOGGER):
        dog.watch()
    assert [] == caplog.records

"""Handlers that leave a cancel scope or a task group open, as an async generator does that is left in the middle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
import sniffio

from pgq_anyio import Job, JobStatus, PgQueuer, Queries, Schedule
from pgq_anyio.testing import drain, running_worker

pytestmark = [pytest.mark.anyio, pytest.mark.promise(29)]

SAID = "has left a cancel scope or a task group open"


class Leaks:
    """Generators that are never closed, and what became of the tasks in them."""

    def __init__(self) -> None:
        self.kept: list[AsyncIterator[None]] = []
        self.scopes: list[anyio.CancelScope] = []
        self.cancelled = 0

    async def scope(self) -> AsyncIterator[None]:
        with anyio.CancelScope():
            yield

    async def deadline(self) -> AsyncIterator[None]:
        with anyio.CancelScope() as scope:
            self.scopes.append(scope)
            yield

    async def shield(self) -> AsyncIterator[None]:
        with anyio.CancelScope(shield=True), anyio.CancelScope():
            yield

    async def group(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._wait)
            yield

    async def _wait(self) -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise

    async def failing(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._fail_at_the_end)
            tasks.start_soon(self._wait)
            yield

    async def _fail_at_the_end(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("nobody hears me")

    async def leave_one_open(self, kind: str) -> None:
        generator: Callable[[], AsyncIterator[None]] = getattr(self, kind)
        self.kept.append(generator())
        async for _ in self.kept[-1]:
            return

    def set_deadlines(self) -> None:
        """Let the scopes expire soon. The last thing that a handler does: no wait of it is to be ended by them."""
        for scope in self.scopes:
            scope.deadline = anyio.current_time() + 0.05

    async def drop_one(self) -> None:
        async for _ in self.slow_group():
            return

    async def slow_group(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tidy)
            yield

    async def _tidy(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.move_on_after(10, shield=True):
                await anyio.sleep(0.1)
                self.cancelled += 1


@pytest.mark.parametrize("options", [{}, {"own_task": True}, {"timeout": 60.0}], ids=["shared", "own task", "timeout"])
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "waits"])
@pytest.mark.parametrize("kind", ["scope", "deadline", "shield", "group"])
async def test_it_touches_no_other_job(
    app: PgQueuer, queries: Queries, caplog: pytest.LogCaptureFixture, kind: str, waits: bool, options: dict[str, Any]
) -> None:
    """What is left open is cancelled and closed, others run for longer than its deadline, and the worker goes on."""
    leaks = Leaks()

    @app.entrypoint("leave", **options)
    async def leave(job: Job) -> None:
        await leaks.leave_one_open(kind)
        if waits:
            await anyio.sleep(0.001)
        leaks.set_deadlines()

    @app.entrypoint("other")
    async def other(job: Job) -> None:
        await anyio.sleep(0.2)

    (left,) = await queries.enqueue("leave")
    others = await queries.enqueue("other", [None] * 5)
    with anyio.fail_after(20):
        await drain(app)
        assert set((await queries.job_status(others)).values()) == {JobStatus.SUCCESSFUL}
        while kind == "group" and not leaks.cancelled:  # noqa: ASYNC110  (as below)
            await anyio.sleep(0.01)
    assert f"job {left} of 'leave' {SAID}" in caplog.text
    assert {left: JobStatus.SUCCESSFUL} == await queries.job_status([left])


async def test_the_errors_of_its_tasks_are_logged(
    app: PgQueuer, queries: Queries, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is left to whom they could be raised; the job has the outcome of its handler."""
    leaks = Leaks()

    @app.entrypoint("leave")
    async def leave(job: Job) -> None:
        await leaks.leave_one_open("failing")
        await anyio.sleep(0.001)

    (left,) = await queries.enqueue("leave")
    with anyio.fail_after(20):
        await drain(app)
    assert {left: JobStatus.SUCCESSFUL} == await queries.job_status([left])
    assert 1 == caplog.text.count("tasks in a task group that a handler has left open have failed")
    assert "ValueError: nobody hears me" in caplog.text


@contextmanager
def unheard() -> Iterator[None]:
    """What asyncio says of generators that it closes in vain is no failure of a test."""
    if sniffio.current_async_library() != "asyncio":
        yield
        return
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda loop, context: None)
    try:
        yield
    finally:
        loop.set_exception_handler(before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
async def test_a_generator_that_is_dropped(app: PgQueuer, queries: Queries) -> None:
    """The event loop closes it, too, while its tasks end, which it complains of: nobody waits for ever."""
    leaks = Leaks()

    @app.entrypoint("leave")
    async def leave(job: Job) -> None:
        await leaks.drop_one()

    ids = await queries.enqueue("leave", [None] * 3)
    with unheard(), anyio.fail_after(20):
        await drain(app)
    assert {JobStatus.SUCCESSFUL} == set((await queries.job_status(ids)).values())
    assert 3 == leaks.cancelled


@pytest.mark.parametrize("kind", ["scope", "group"])
async def test_a_job_that_is_interrupted_then(
    app: PgQueuer, queries: Queries, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A cancel request ends it, and a stop gives it back, as any other."""
    leaks = Leaks()
    started = 0

    @app.entrypoint("leave")
    async def leave(job: Job) -> None:
        nonlocal started
        await leaks.leave_one_open(kind)
        started += 1
        await anyio.sleep_forever()

    ids = await queries.enqueue("leave", [None] * 2)
    with anyio.fail_after(20):
        async with running_worker(app, shutdown_grace=0):
            while started < 2:  # noqa: ASYNC110  (as below)
                await anyio.sleep(0.01)
            await queries.mark_job_as_cancelled(ids[:1])
            while (await queries.job_status(ids[:1]))[ids[0]] is not JobStatus.CANCELLED:  # noqa: ASYNC110  (as below)
                await anyio.sleep(0.01)
    assert {ids[0]: JobStatus.CANCELLED, ids[1]: JobStatus.QUEUED} == await queries.job_status(ids)
    assert 2 == caplog.text.count(SAID)


async def test_a_run_of_a_schedule(app: PgQueuer, queries: Queries, caplog: pytest.LogCaptureFixture) -> None:
    leaks = Leaks()

    @app.schedule("leave", "0 0 1 1 *")
    async def leave(schedule: Schedule) -> None:
        await leaks.leave_one_open("deadline")
        leaks.set_deadlines()

    with caplog.at_level(logging.WARNING), anyio.fail_after(20):
        async with running_worker(app):
            await queries.run_schedule("leave")
            # A fact of the database: it can only be looked at.
            while (await queries.schedules())[0].last_status != JobStatus.SUCCESSFUL:  # noqa: ASYNC110
                await anyio.sleep(0.01)
    assert f"schedule 'leave' (0 0 1 1 *) {SAID}" in caplog.text

"""Apps that the tests of the command line run. Where their database is, the command line says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from pgq_anyio import Job, PgQueuer, ProcessExecutor, Retry, Schedule
from tests.worker import apps as worker_apps

#: The handlers of the worker's tests.
app = worker_apps.app

#: How an error can leave a handler or one of its child tasks.
ERRORS = {b"exit": SystemExit(3), b"interrupt": KeyboardInterrupt(), b"error": ValueError("no")}


def throw_in_process(job: Job) -> None:
    """At the top level, so that a child finds it."""
    raise ERRORS[job.payload or b""]


def throwing() -> PgQueuer:
    """Handlers whose errors must not end the worker."""
    app = PgQueuer()

    async def throw(job: Job) -> None:
        await anyio.lowlevel.checkpoint()
        raise ERRORS[job.payload or b""]

    @app.entrypoint("itself")
    async def itself(job: Job) -> None:
        await throw(job)

    @app.entrypoint("thread")
    def thread(job: Job) -> None:
        raise ERRORS[job.payload or b""]

    app.entrypoint("process", executor_factory=ProcessExecutor)(throw_in_process)

    @app.entrypoint("child")
    async def child(job: Job) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(throw, job)
            await anyio.sleep(60)

    @app.entrypoint("grandchild")
    async def grandchild(job: Job) -> None:
        async def inner() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(throw, job)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(inner)

    @app.entrypoint("from_thread")
    async def from_thread(job: Job) -> None:
        await anyio.to_thread.run_sync(anyio.from_thread.run, throw, job)

    @app.entrypoint("native")
    async def native(job: Job) -> None:
        await asyncio.create_task(throw(job))

    @app.entrypoint("native_group")
    async def native_group(job: Job) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(throw(job))

    @app.entrypoint("unstarted")
    async def unstarted(job: Job) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(throw, job)
            tasks.cancel_scope.cancel()

    @app.entrypoint("quick")
    async def quick(job: Job) -> None:
        pass

    return app


@asynccontextmanager
async def slow_to_open() -> AsyncIterator[PgQueuer]:
    """An app that is not there before somebody loses patience."""
    try:
        print("opening", flush=True)
        await anyio.sleep(3600)
        yield PgQueuer()
    finally:
        print("closed again", flush=True)


@asynccontextmanager
async def left_open() -> AsyncIterator[PgQueuer]:
    """An app whose own code takes long to close."""
    yield PgQueuer()
    try:
        print("closing", flush=True)
        await anyio.sleep(3600)
    finally:
        print("closed at last", flush=True)


def retrying() -> PgQueuer:
    """A handler that needs a second attempt, and some time."""
    app = PgQueuer()

    @app.entrypoint("again", max_attempts=2)
    async def again(job: Job) -> None:
        if job.attempt == 1:
            raise Retry(delay=0.5)

    return app


def one_of_each() -> PgQueuer:
    """A name for every service that may fail, and a handler that ignores its cancellation."""
    app = PgQueuer()

    @app.entrypoint("quick")
    async def quick(job: Job) -> None: ...

    @app.entrypoint("limited", concurrency_limit=1)
    async def limited(job: Job) -> None: ...

    @app.entrypoint("deaf")
    def deaf(job: Job) -> None:
        worker_apps.log(job.id, "start")
        time.sleep(3600)

    @app.schedule("tick", "* * * * * *")
    async def tick(schedule: Schedule) -> None: ...

    return app


def slow_to_close() -> PgQueuer:
    """A lifespan whose exit takes two seconds, whatever is cancelled."""
    return _closing_in(2)


def never_open() -> PgQueuer:
    """A lifespan that waits for something that does not come."""

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        print("opening", flush=True)
        try:
            await anyio.sleep_forever()
        finally:
            print("given up", flush=True)
        yield

    return PgQueuer(lifespan=lifespan)


def printing() -> PgQueuer:
    """A handler that has printed something, which waits in a buffer, and ends when the process does."""
    app = PgQueuer()

    @app.entrypoint("print")
    def write(job: Job) -> None:
        print("printed", job.id)
        worker_apps.log(job.id, "start")
        time.sleep(3600)

    return app


def broken() -> PgQueuer:
    """A lifespan that raises."""

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        resources: dict[str, None] = {}
        yield resources["missing"]

    return PgQueuer(lifespan=lifespan)


def hanging() -> PgQueuer:
    """A lifespan whose exit hangs."""
    return _closing_in(3600)


def _closing_in(delay: float) -> PgQueuer:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        try:
            yield
        finally:
            print("closing", flush=True)
            with anyio.CancelScope(shield=True):
                await anyio.sleep(delay)

    app = PgQueuer(lifespan=lifespan)

    @app.entrypoint("quick")
    async def quick(job: Job) -> None: ...

    return app


def empty() -> PgQueuer:
    """Nothing is registered."""
    return PgQueuer()

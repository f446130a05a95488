"""The steps of pgq_anyio."""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import attrs
import psycopg
from anyio import CancelScope

from pgq_anyio import Job, PgQueuer, PsycopgDriver, Queries, SyncQueries
from pgq_anyio._db.inner_scopes import InnerScopes, watch_inner_scopes
from pgq_anyio._holdings import Run
from pgq_anyio._lifecycle import Outcome
from pgq_anyio._services.runner import run_job
from pgq_anyio._store.migrations import migrate_sync
from pgq_anyio._term import handlers

End = Callable[[Run, Outcome], None]

PAYLOAD = b"x" * 100
INSERT = "insert into pgq_anyio.queued (entrypoint, payload) values ('noop', %s) returning job_id"
INSERT_AND_NOTIFY = f"with added as ({INSERT}) select pg_notify('bench', '') from added"
TAKE = "delete from pgq_anyio.queued returning *"
WARM_UP = 20
#: Between two jobs (in seconds): longer than a claim takes, so that the worker waits for a notification again.
PAUSE = 0.02
#: How often a worker that serves says how many jobs it has run (in seconds).
REPORT = 0.1
#: A third of the default lease (in seconds).
BEAT = 10.0


@attrs.define(eq=False)
class Meter:
    """Counts handlers, and knows when to stop."""

    app: PgQueuer
    #: stop after this many; 0 for never
    jobs: int = 0
    every: int = 0
    #: stop after this long (in seconds)
    limit: float = 600.0
    handled: int = 0
    started: float = attrs.field(factory=time.perf_counter)
    marks: list[float] = attrs.field(factory=list)
    #: what was logged as a warning or worse
    problems: list[str] = attrs.field(factory=list)
    _next: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._next = self.every or self.jobs or -1
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self.problems.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger().addHandler(handler)

    def count(self) -> None:
        """One handler more."""
        self.handled += 1
        if self.handled == self._next:
            self._mark()

    def _mark(self) -> None:
        now = time.perf_counter()
        if self.every:
            self.marks.append(now)
            self._next += self.every
        if (self.jobs and self.handled >= self.jobs) or now - self.started > self.limit:
            self.app.stop()

    def figures(self) -> dict[str, Any]:
        """For the answer."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "handled": self.handled,
            "started": self.started,
            "marks": self.marks,
            "problems": self.problems[:5],
            "max_rss_mb": usage.ru_maxrss / 1024,
        }


def make_app(options: dict[str, Any]) -> tuple[PgQueuer, Meter]:
    """An app with one entrypoint, which does nothing, or sleeps."""
    app = PgQueuer(options["dsn"])
    jobs = 0 if options.get("whole") else options.get("jobs", 0)
    meter = Meter(app, jobs, options.get("every", 0), options.get("limit", 600.0))
    pause = options.get("sleep", 0.0)

    async def noop(job: Job) -> None:
        meter.count()

    async def sleeper(job: Job) -> None:
        await anyio.sleep(pause)
        meter.count()

    app.entrypoint("noop", own_task=options.get("own_task", False))(sleeper if pause else noop)
    if options.get("own_scope"):
        open_scopes()
    return app, meter


def open_scopes() -> None:
    """Open a scope for every job, in place of handing on one that nobody has cancelled."""

    async def run_in_scope(run: Run, scope: CancelScope, inner: InnerScopes, is_over: bool, end: End) -> None:
        with CancelScope() as own:
            await run_job(run, own, watch_inner_scopes(), is_over, end)

    handlers.run_job = run_in_scope  # type: ignore[attr-defined]  # not a part of the package that is meant to be replaced


def cpu() -> float:
    """CPU time of this process (in seconds)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def drain(options: dict[str, Any]) -> dict[str, Any]:
    """Run until the jobs are done."""
    app, meter = make_app(options)
    meter.started, before = time.perf_counter(), cpu()
    await app.run(mode="drain" if options.get("whole") else "continuous", **options.get("run", {}))
    return {"seconds": time.perf_counter() - meter.started, "cpu_seconds": cpu() - before, **meter.figures()}


async def fill(options: dict[str, Any]) -> dict[str, Any]:
    """Enqueue, without an event loop or on one."""
    with psycopg.connect(options["dsn"], autocommit=True) as conn:
        migrate_sync(conn, "pgq_anyio")
    sizes = [min(options["chunk"], options["jobs"] - at) for at in range(0, options["jobs"], options["chunk"])]
    if options["loop"] == "sync":
        with SyncQueries(options["dsn"]) as queries:
            queries.queue_size()  # opens the connection
            started = time.perf_counter()
            for size in sizes:
                queries.enqueue("noop", [PAYLOAD] * size)
            return {"seconds": time.perf_counter() - started}
    async with PsycopgDriver(options["dsn"]) as driver:
        producer = Queries(driver)
        await producer.queue_size()
        started = time.perf_counter()
        for size in sizes:
            await producer.enqueue("noop", [PAYLOAD] * size)
        return {"seconds": time.perf_counter() - started}


async def single(options: dict[str, Any]) -> dict[str, Any]:
    """Enqueue one by one, in turns with a bare INSERT on a connection of the same kind; microseconds of each call."""
    with psycopg.connect(options["dsn"], autocommit=True) as conn:
        migrate_sync(conn, "pgq_anyio")
        if options["loop"] == "sync":
            return _single_sync(conn, options["jobs"])
    enqueued, inserted = [], []
    async with PsycopgDriver(options["dsn"]) as driver, driver.connection() as bare:
        queries = Queries(driver)
        for _ in range(WARM_UP + options["jobs"]):
            start = time.perf_counter()
            await queries.enqueue("noop", PAYLOAD)
            middle = time.perf_counter()
            await bare.execute(INSERT, [PAYLOAD], prepare=True)
            enqueued.append(middle - start)
            inserted.append(time.perf_counter() - middle)
    return _in_microseconds(enqueued, inserted)


def _single_sync(conn: psycopg.Connection[Any], jobs: int) -> dict[str, Any]:
    enqueued, inserted = [], []
    queries = SyncQueries(conn)
    for _ in range(WARM_UP + jobs):
        start = time.perf_counter()
        queries.enqueue("noop", PAYLOAD)
        middle = time.perf_counter()
        conn.execute(INSERT, [PAYLOAD], prepare=True)
        enqueued.append(middle - start)
        inserted.append(time.perf_counter() - middle)
    return _in_microseconds(enqueued, inserted)


def _in_microseconds(enqueued: list[float], inserted: list[float]) -> dict[str, Any]:
    return {
        "enqueue_us": [value * 1e6 for value in enqueued[WARM_UP:]],
        "insert_us": [value * 1e6 for value in inserted[WARM_UP:]],
    }


async def sleeps(options: dict[str, Any]) -> dict[str, Any]:
    """What the handlers of a sleeping job cost without a queue: CPU of one sleep, with many at once."""

    async def sleep_often() -> None:
        for _ in range(options["times"]):
            await anyio.sleep(options["sleep"])

    before = cpu()
    async with anyio.create_task_group() as tasks:
        for _ in range(options["tasks"]):
            tasks.start_soon(sleep_often)
    return {"cpu_us": (cpu() - before) / (options["times"] * options["tasks"]) * 1e6}


async def latency(options: dict[str, Any]) -> dict[str, Any]:
    """Enqueue one, wait for its handler, pause, and again."""
    with psycopg.connect(options["dsn"], autocommit=True) as conn:
        migrate_sync(conn, "pgq_anyio")
    app = PgQueuer(options["dsn"])
    delays: list[float] = []
    started_at, started = 0.0, anyio.Event()

    @app.entrypoint("noop")
    async def noop(job: Job) -> None:
        nonlocal started_at
        started_at = time.perf_counter()
        started.set()

    async with PsycopgDriver(options["dsn"]) as driver, anyio.create_task_group() as tasks:
        await tasks.start(app.run)
        queries = Queries(driver)
        for number in range(WARM_UP + options["jobs"]):
            await anyio.sleep(PAUSE)
            started = anyio.Event()
            asked_at = time.perf_counter()
            await queries.enqueue("noop", PAYLOAD)
            with anyio.fail_after(60):
                await started.wait()
            if number >= WARM_UP:
                delays.append((started_at - asked_at) * 1000)
        app.stop()
    return {"delays_ms": delays}


async def bare(options: dict[str, Any]) -> dict[str, Any]:
    """What PostgreSQL takes for the same without a queue: an INSERT with a NOTIFY, hearing it, and taking the row."""
    dsn, delays = options["dsn"], []
    with (
        psycopg.connect(dsn, autocommit=True) as producer,
        psycopg.connect(dsn, autocommit=True) as listener,
        psycopg.connect(dsn, autocommit=True, options="-c synchronous_commit=off") as taker,
    ):
        migrate_sync(producer, "pgq_anyio")
        listener.execute("listen bench")
        for number in range(WARM_UP + options["jobs"]):
            await anyio.sleep(PAUSE)
            asked_at = time.perf_counter()
            producer.execute(INSERT_AND_NOTIFY, [PAYLOAD], prepare=True)
            list(listener.notifies(timeout=60, stop_after=1))
            taker.execute(TAKE, prepare=True).fetchall()
            if number >= WARM_UP:
                delays.append((time.perf_counter() - asked_at) * 1000)
    return {"delays_ms": delays}


def beat(options: dict[str, Any]) -> dict[str, Any]:
    """Do nothing until SIGTERM but what a heartbeat cannot do without."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with psycopg.connect(options["dsn"], autocommit=True) as conn:
        print(json.dumps({"ready": True}), flush=True)
        while not ended.wait(BEAT):
            conn.execute("select 1", prepare=True)
    return {"cpu_seconds": cpu()}


async def serve(options: dict[str, Any]) -> dict[str, Any]:
    """Run until SIGTERM."""
    if options.get("bare"):
        return beat(options)
    app, meter = make_app(options)
    async with anyio.create_task_group() as tasks:
        run = partial(app.run, signals=(signal.SIGTERM,), **options.get("run", {}))

        async def run_and_leave(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            await run(task_status=task_status)
            tasks.cancel_scope.cancel()

        await tasks.start(run_and_leave)
        print(json.dumps({"ready": True}), flush=True)
        told = 0
        while True:
            await anyio.sleep(options.get("report", REPORT))
            if meter.handled != told:
                told = meter.handled
                print(json.dumps({"handled": told}), flush=True)
    return {"cpu_seconds": cpu(), **meter.figures()}


def main() -> None:
    """Do one step."""
    options = json.loads(sys.argv[1])
    steps = {step.__name__: step for step in (bare, drain, fill, latency, serve, single, sleeps)}
    loop = options["loop"]
    backend = "trio" if loop == "trio" else "asyncio"
    backend_options = {"use_uvloop": loop == "uvloop"} if backend == "asyncio" else {}
    figures = anyio.run(steps[options["step"]], options, backend=backend, backend_options=backend_options)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

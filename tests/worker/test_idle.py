"""What an idle worker costs, and how fast it is: measured by the server's log, and from enqueue to start.

The bounds on times are generous, so that a busy machine does not matter: then a few looks tell that it is the
notification which starts a job, and nothing else would for long.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import anyio
import psycopg
import pytest
from psycopg import sql

from pgq_anyio import Job, JobId, PgQueuer, PsycopgDriver, Queries, SyncQueries
from pgq_anyio._services import listener
from pgq_anyio.testing import running_worker
from tests.bounds import BUSY, Within
from tests.worker.own_server import OwnServer

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]


async def nothing(job: Job) -> None:
    """A handler."""


class Producer:
    """Enqueues by plain SQL, and knows when handlers began."""

    def __init__(self, connection: psycopg.Connection[Any], schema: str) -> None:
        self.connection = connection
        self._schema = sql.Identifier(schema)
        self._started: dict[int, float] = {}
        self._news = anyio.Event()

    def started(self, job: Job) -> None:
        self._started[job.id] = time.monotonic()
        self._news.set()
        self._news = anyio.Event()

    def value(self, query: str) -> Any:
        text = sql.SQL(query).format(schema=self._schema)
        row = self.connection.execute(text).fetchone()
        return None if row is None else row[0]

    async def delay(self, *, within: float) -> float:
        """Seconds from the begin of an enqueue to the start of the handler."""
        began_at = time.monotonic()
        return await self.start_of(self.value("select {schema}.enqueue('fetch')"), within=within) - began_at

    def has_started(self, job_id: int) -> bool:
        return job_id in self._started

    async def start_of(self, job_id: int, *, within: float) -> float:
        """When the handler of a job began."""
        with anyio.fail_after(within):
            while job_id not in self._started:
                await self._news.wait()
        return self._started[job_id]

    async def wait_quiet(self) -> None:
        """Wait until all workers sleep, and the looks that follow falling asleep are over."""
        await self.wait_for(ASLEEP)
        await anyio.sleep(1.5)

    async def wait_for(self, query: str) -> Any:
        """The first value of a query that is true."""
        with anyio.fail_after(20):
            while not (value := self.value(query)):  # noqa: ASYNC110  (it can only be looked at)
                await anyio.sleep(0.01)
            return value


@pytest.fixture
def producer(dsn: str, schema: str) -> Iterator[Producer]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield Producer(connection, schema)


@pytest.fixture
def own_producer(own_server: OwnServer, empty_schema: str) -> Iterator[Producer]:
    """On the server whose log is counted."""
    with psycopg.connect(own_server.dsn, autocommit=True) as connection:
        yield Producer(connection, empty_schema)


def make_app(dsn: str, schema: str, producer: Producer | None = None, **limits: Any) -> PgQueuer:
    app = PgQueuer(dsn, schema=schema)

    @app.entrypoint("fetch", **limits)
    async def fetch(job: Job) -> None:
        if producer is not None:
            producer.started(job)

    return app


ASLEEP = "select bool_and(sleeping) from {schema}.worker"
#: As ASLEEP, for names with limits.
DOZING = "select bool_and(dozing <> '{{}}') from {schema}.worker"
LISTENER = "select pid from pg_stat_activity where application_name = 'pgq_anyio listen' and query like 'listen%'"


@pytest.mark.promise(6)
async def test_a_job_starts_at_once_on_an_idle_worker(dsn: str, schema: str, producer: Producer, figures: bool) -> None:
    """Of 200, half within 2 ms, and 99 % within 10 ms. On a machine that has ten other things to do, long before the
    next poll.
    """
    async with running_worker(make_app(dsn, schema, producer)):
        await producer.wait_quiet()
        if not figures:
            await producer.delay(within=BUSY)
            await producer.wait_quiet()
            await producer.delay(within=BUSY)
            return
        delays = []
        for _ in range(200):
            delays.append(await producer.delay(within=5))
            await anyio.sleep(0.01)  # it is idle again
    delays.sort()
    assert (statistics.median(delays) < 0.002, delays[197] < 0.01) == (True, True), delays[90:110] + delays[190:]


@pytest.mark.promise(3)
@pytest.mark.parametrize("kind", ["async", "sync", "plain SQL"])
async def test_a_job_starts_at_once_after_the_callers_commit(
    dsn: str, schema: str, producer: Producer, kind: str, figures: bool
) -> None:
    """On an idle worker whose poll interval never ends; not before, and never after a rollback."""
    async with (
        PsycopgDriver(dsn) as driver,
        running_worker(make_app(dsn, schema, producer), dequeue_timeout=3600),
    ):
        asynchronous = await driver.connect(role="caller", autocommit=False)
        blocking = psycopg.connect(dsn)

        async def enqueue() -> JobId:
            if kind == "async":
                (job_id,) = await Queries(driver, schema=schema).enqueue("fetch", connection=asynchronous)
            elif kind == "sync":
                (job_id,) = SyncQueries(blocking, schema=schema).enqueue("fetch")
            else:
                text = sql.SQL("select {}.enqueue('fetch')").format(sql.Identifier(schema))
                row = blocking.execute(text).fetchone()
                assert row is not None
                job_id = row[0]
            return job_id

        async def end(how: str) -> None:
            if kind == "async":
                await getattr(asynchronous, how)()
            else:
                getattr(blocking, how)()

        delays, undone = [], set()
        for number in range(10 if figures else 2):
            if number == 0 or not figures:
                await producer.wait_quiet()
            undone.add(await enqueue())
            await end("rollback")
            job_id = await enqueue()
            await anyio.sleep(0.05)
            assert not producer.has_started(job_id)
            committed_at = time.monotonic()
            await end("commit")
            delays.append(await producer.start_of(job_id, within=BUSY) - committed_at)
        asynchronous.abort()
        blocking.close()
    assert not figures or statistics.median(delays) < 0.1
    assert not any(producer.has_started(job_id) for job_id in undone)


@pytest.mark.promise(6)
async def test_a_listener_that_was_killed_listens_again(
    dsn: str, schema: str, producer: Producer, within: Within
) -> None:
    """With a poll interval that never ends: what is enqueued meanwhile is found, and what comes later, at once."""
    async with running_worker(make_app(dsn, schema, producer), dequeue_timeout=3600):
        for _ in range(3):
            await producer.wait_quiet()
            pid = await producer.wait_for(LISTENER)
            producer.connection.execute("select pg_terminate_backend(%s)", (pid,))
            await producer.delay(within=within(2, 2 * BUSY))
            await producer.wait_for(f"{LISTENER} and pid <> {pid}")
            await producer.wait_quiet()
            delays = [await producer.delay(within=BUSY) for _ in range(5)]
            assert statistics.median(delays) < within(0.1)


@pytest.mark.promise(6)
@pytest.mark.parametrize("limit", [0, 5], ids=["unlimited", "limited"])
async def test_jobs_are_found_without_any_notification(
    dsn: str, schema: str, producer: Producer, monkeypatch: pytest.MonkeyPatch, within: Within, limit: int
) -> None:
    """LISTEN succeeds and has no effect, as behind a transaction pooler: within the poll interval."""

    async def listen_in_vain(conn: object, channels: object) -> None:
        """As a pooler does it: on a connection that is somebody else's a moment later."""

    monkeypatch.setattr(listener, "subscribe", listen_in_vain)
    poll = 1.0
    app = make_app(dsn, schema, producer, concurrency_limit=limit)
    async with running_worker(app, dequeue_timeout=poll, lease=3):
        await producer.wait_for(DOZING if limit else ASLEEP)
        for _ in range(6):
            await producer.delay(within=within(poll + 0.5))
            await anyio.sleep(0.4)


@pytest.mark.promise(4, 48)
@pytest.mark.parametrize(
    ("names", "asks", "foreign"),
    [
        ("unlimited", "claim_sweep", 0),
        ("unlimited", "claim_sweep", 10_000),
        ("limited", "look_queued", 10_000),
        ("both", "look_queued", 10_000),
    ],
)
async def test_an_idle_worker_asks_once_per_heartbeat_and_poll(
    own_server: OwnServer, empty_schema: str, own_producer: Producer, names: str, asks: str, foreign: int
) -> None:
    """After two seconds of idling; schedules do not change that, nor limits, nor do jobs of names that it does not
    serve, those that are there and those that are enqueued meanwhile.
    """
    app = make_app(own_server.dsn, empty_schema, concurrency_limit=1 if names == "limited" else 0)
    if names == "both":
        app.entrypoint("one", serialized_dispatch=True)(nothing)

    @app.schedule("yearly", "0 0 1 1 *")
    async def yearly(schedule: object) -> None:
        raise AssertionError("not in this year")

    lease, poll = 3.0, 2.5
    async with running_worker(app, lease=lease, dequeue_timeout=poll):
        own_producer.value(f"select count({{schema}}.enqueue('foreign')) from generate_series(1, {foreign})")
        await own_producer.wait_for(DOZING if names == "limited" else ASLEEP)
        await anyio.sleep(2.5)
        began_at, since = time.monotonic(), own_server.log.stat().st_size
        for _ in range(6):
            if foreign:
                own_producer.value("select {schema}.enqueue('foreign')")
            await anyio.sleep(1)
        counts = own_server.count_statements(since)
        idle = time.monotonic() - began_at
    assert {"beat_worker", asks} == set(counts)
    # A busy machine may make fewer of them than would be due, and never more.
    assert counts["beat_worker"] <= idle / (lease / 3 * 0.9) + 1
    assert counts[asks] <= idle / poll + 1


@pytest.mark.promise(48)
async def test_a_rare_heart_does_not_watch_a_frequent_one_closely(
    own_server: OwnServer, empty_schema: str, own_producer: Producer
) -> None:
    """Between two of its own heartbeats a worker with a long lease cannot know that one with a short lease is well: it
    asks twice at most, and then waits for its next heartbeat.
    """
    rare, frequent = (make_app(own_server.dsn, empty_schema) for _ in range(2))
    async with running_worker(frequent, lease=2), running_worker(rare, lease=21):
        await own_producer.wait_for(ASLEEP)
        await anyio.sleep(2)
        since = own_server.log.stat().st_size
        await anyio.sleep(4)  # the next heartbeat of the rare one is more than six seconds after its first
        counts = own_server.count_statements(since)
    assert counts["rescue_jobs"] <= 2
    assert counts["beat_worker"] >= 4

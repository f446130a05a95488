"""Jobs that run in processes are claimed when there is a process: until then any worker may take them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from psycopg import sql

from pgq_anyio import Job, JobId, PgQueuer, ProcessExecutor, Queries
from pgq_anyio import _worker as worker_module
from pgq_anyio._executors import ProcessPool
from pgq_anyio._process_room import ProcessRoom
from pgq_anyio.testing import drain, running_worker
from tests.executors import process_handlers
from tests.executors.processes import let_go, wait_for_pid, wait_until
from tests.worker.own_server import OwnServer
from tests.worker.test_ahead import wait_states

pytestmark = pytest.mark.anyio

AHEAD = 5


@pytest.fixture(autouse=True)
def one_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker has one process."""
    monkeypatch.setattr(worker_module, "ProcessPool", lambda: ProcessPool(1))


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[list[Path]]:
    """Where jobs that hold a process say so; all of them may end after the test."""
    paths = [tmp_path / f"held{number}" for number in range(AHEAD + 2)]
    yield paths
    for path in paths:
        let_go(path)


def register(app: PgQueuer, **options: Any) -> PgQueuer:
    """A handler that holds its process until it is let go, and one beside that needs none."""
    app.entrypoint("hold", executor_factory=ProcessExecutor, **options)(process_handlers.hold_a_job)

    @app.entrypoint("beside")
    async def beside(job: Job) -> None:
        pass

    return app


async def hold(queries: Queries, *paths: Path) -> list[JobId]:
    return await queries.enqueue("hold", [str(path).encode() for path in paths])


async def see_claims(queries: Queries) -> None:
    """Return when the workers have looked at their queues: a job that came last has run."""
    (job_id,) = await queries.enqueue("beside")
    await wait_states(queries, [job_id], successful=1)


@asynccontextmanager
async def bounded(seconds: float = 30) -> AsyncIterator[None]:
    with anyio.fail_after(seconds):
        yield


@pytest.mark.promise(16)
async def test_jobs_without_a_process_stay_in_the_queue(app: PgQueuer, queries: Queries, paths: list[Path]) -> None:
    """They are not claimed, take no slot, and start one by one, in their order. Other jobs run meanwhile."""
    register(app)
    async with bounded(), running_worker(app, max_concurrency=2):
        ids = await hold(queries, *paths[:4])
        for number, path in enumerate(paths[:4]):
            await wait_for_pid(path)
            await see_claims(queries)
            await wait_states(queries, ids, successful=number, running=1, queued=3 - number)
            assert not any(later.exists() for later in paths[number + 1 :])
            let_go(path)
        await wait_states(queries, ids, successful=4)


@pytest.mark.promise(16, 18, 21)
async def test_what_one_worker_has_no_process_for_another_runs(
    app: PgQueuer, queries: Queries, dsn: str, schema: str, paths: list[Path]
) -> None:
    """A limited name too: neither its slot nor its token is taken by a worker whose process is busy."""
    limits: dict[str, Any] = {"concurrency_limit": 2, "requests_per_second": 0.01}
    other = PgQueuer(dsn, schema=schema)
    for one in (app, other):
        register(one)
        one.entrypoint("limited", executor_factory=ProcessExecutor, **limits)(process_handlers.hold_a_job)
    async with bounded(), running_worker(app):
        (first,) = await hold(queries, paths[0])
        await wait_for_pid(paths[0])
        (limited,) = await queries.enqueue("limited", str(paths[1]).encode())
        (second,) = await hold(queries, paths[2])
        await see_claims(queries)
        await wait_states(queries, [first, limited, second], running=1, queued=2)
        async with running_worker(other):
            await wait_for_pid(paths[1])
            await wait_states(queries, [first, limited, second], running=2, queued=1)
            let_go(paths[1])
            await wait_for_pid(paths[2])
            let_go(paths[2])
            await wait_states(queries, [first, limited, second], running=1, successful=2)
        let_go(paths[0])


@pytest.mark.promise(5)
async def test_one_order_for_jobs_with_and_without_processes(
    app: PgQueuer, queries: Queries, dsn: str, schema: str, tmp_path: Path
) -> None:
    """By priority, and then as they were enqueued, whichever kind they are."""
    app.entrypoint("write", executor_factory=ProcessExecutor)(process_handlers.write_pid_of_a_job)

    @app.entrypoint("beside")
    async def beside(job: Job) -> None:
        pass

    names = ["write", "beside", "beside", "write"] * 5
    priorities = [number % 3 for number in range(len(names))]
    payloads = [str(tmp_path / str(number)).encode() for number in range(len(names))]
    ids = await queries.enqueue(names, payloads, priorities)
    async with bounded():
        await drain(app, max_concurrency=1)
    with psycopg.connect(dsn) as connection:
        text = sql.SQL("select job_id from {}.finished order by claimed_at, job_id").format(sql.Identifier(schema))
        ran = [row[0] for row in connection.execute(text)]
    assert ran == [job_id for _, job_id in sorted(zip((-one for one in priorities), ids, strict=True))]


@pytest.mark.promise(5)
async def test_a_backlog_of_short_jobs_does_not_keep_a_limited_one_from_its_process(
    app: PgQueuer, queries: Queries, dsn: str, schema: str, tmp_path: Path
) -> None:
    """They are claimed ahead of their process, and it is not; but its priority is higher."""
    app.entrypoint("write", executor_factory=ProcessExecutor)(process_handlers.write_pid_of_a_job)
    app.entrypoint("limited", executor_factory=ProcessExecutor, concurrency_limit=1)(
        process_handlers.write_pid_of_a_job
    )
    ids = await queries.enqueue("write", [str(tmp_path / "written").encode()] * 3000)
    async with bounded(60), running_worker(app):
        await wait_states(queries, ids[:200], successful=200)
        (first,) = await queries.enqueue("limited", str(tmp_path / "first").encode(), 1)
        await wait_states(queries, [first], successful=1)
        with psycopg.connect(dsn) as connection:
            text = sql.SQL("select count(*) from {}.queued where entrypoint = 'write'").format(sql.Identifier(schema))
            row = connection.execute(text).fetchone()
        app.stop()
    assert row is not None
    assert row[0] > 0


@pytest.mark.promise(18)
async def test_a_slot_that_one_worker_has_no_process_for_is_offered_to_another(
    app: PgQueuer, queries: Queries, dsn: str, schema: str, paths: list[Path]
) -> None:
    """Long before its next poll, which never comes."""
    limited: dict[str, Any] = {"executor_factory": ProcessExecutor, "concurrency_limit": 1}
    register(app).entrypoint("limited", **limited)(process_handlers.hold_a_job)
    other = PgQueuer(dsn, schema=schema)
    other.entrypoint("limited", **limited)(process_handlers.hold_a_job)
    async with bounded(), running_worker(app, dequeue_timeout=3600):
        (first,) = await queries.enqueue("limited", str(paths[0]).encode())
        await wait_for_pid(paths[0])
        async with running_worker(other, dequeue_timeout=3600):
            (before,) = await queries.enqueue("hold", str(paths[1]).encode(), 1)
            (second,) = await queries.enqueue("limited", str(paths[2]).encode())
            await see_claims(queries)
            await wait_states(queries, [first, before, second], running=1, queued=2)
            let_go(paths[0])
            await wait_for_pid(paths[1])
            await wait_for_pid(paths[2])
            await wait_states(queries, [first, before, second], running=2, successful=1)
            let_go(paths[1])
            let_go(paths[2])
            await wait_states(queries, [first, before, second], successful=3)


@pytest.mark.promise(16)
async def test_what_was_claimed_ahead_is_given_back(
    app: PgQueuer, queries: Queries, dsn: str, schema: str, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if jobs had been short until now. After a moment another worker can run them; no attempt is counted."""
    given_back = 0
    look_ahead, give_back = ProcessRoom.look_ahead, ProcessRoom.give_back

    def look_far_ahead(room: ProcessRoom, now: float) -> None:
        look_ahead(room, now)
        if not given_back:
            room._ahead = AHEAD

    def count_given_back(room: ProcessRoom, *, started: bool) -> None:
        nonlocal given_back
        given_back += not started
        give_back(room, started=started)

    monkeypatch.setattr(ProcessRoom, "look_ahead", look_far_ahead)
    monkeypatch.setattr(ProcessRoom, "give_back", count_given_back)
    other = register(PgQueuer(dsn, schema=schema))
    register(app)
    ids = await hold(queries, *paths[: AHEAD + 2])
    async with bounded(), running_worker(app):
        await wait_until(lambda: given_back == AHEAD)
        await wait_states(queries, ids, running=1, queued=AHEAD + 1)
        async with running_worker(other):
            await wait_for_pid(paths[1])
            await wait_states(queries, ids, running=2, queued=AHEAD)
            for path in paths:
                let_go(path)
            await wait_states(queries, ids, successful=AHEAD + 2)
    assert AHEAD == given_back
    for job_id in ids:
        record = await queries.get_job(job_id)
        assert record is not None
        assert (1, 0, ()) == (record.attempt, record.crashes, record.errors)


@pytest.mark.promise(16)
async def test_a_run_of_a_schedule_takes_a_process_too(
    app: PgQueuer, queries: Queries, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No job is claimed for the process that it has, and the job starts when it has ended."""
    register(app)
    app.schedule(str(paths[0]), "0 0 1 1 *", executor_factory=ProcessExecutor)(process_handlers.hold_for_a_run)
    async with bounded(), running_worker(app):
        await queries.run_schedule(str(paths[0]))
        await wait_for_pid(paths[0])
        ids = await hold(queries, paths[1])
        await see_claims(queries)
        await wait_states(queries, ids, queued=1)
        let_go(paths[0])
        let_go(paths[1])
        await wait_states(queries, ids, successful=1)


@pytest.mark.heavy
@pytest.mark.promise(19, 48)
@pytest.mark.parametrize("queued", [0, 10_000])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_nobody_polls_for_processes(
    own_server: OwnServer, empty_schema: str, paths: list[Path], busy: bool, queued: int
) -> None:
    """A worker whose only process is busy asks as rarely as one that idles, however many jobs wait for it; so does one
    that idles beside jobs of other names.
    """
    app = register(PgQueuer(own_server.dsn, schema=empty_schema))
    lease, poll, seconds = 3.0, 2.5, 5.0
    with psycopg.connect(own_server.dsn, autocommit=True) as connection:
        add = sql.SQL("select count({}.enqueue(%s, %s)) from generate_series(1, %s)").format(
            sql.Identifier(empty_schema)
        )
        async with bounded(), running_worker(app, lease=lease, dequeue_timeout=poll):
            if busy:
                connection.execute(add, ("hold", str(paths[0]).encode(), 1))
                await wait_for_pid(paths[0])
            connection.execute(add, ("hold" if busy else "foreign", b"", queued))
            await anyio.sleep(3)  # it falls asleep, and looks again
            since = own_server.log.stat().st_size
            await anyio.sleep(seconds)
            counts = own_server.count_statements(since)
            app.stop()
            let_go(paths[0])
    assert counts.pop("beat_worker") <= seconds / (lease / 3 * 0.9) + 1
    assert counts.total() <= seconds / poll + 1, counts

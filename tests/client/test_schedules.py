"""Schedules as operators see them: what is told of each, pausing, running now, forgetting."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from pgq_anyio import ConfigurationError, PgQueuer, PsycopgDriver, Schedule, ScheduleRecord, SyncQueries
from pgq_anyio._client import Queries
from pgq_anyio.testing import running_worker
from tests.bounds import Within
from tests.client.conftest import Look

YEARLY = "0 0 1 1 *"
DAILY = "30 4 * * *"
SECONDLY = "* * * * * *"
REPORT = ("report", YEARLY)


def register(look: Look, name: str, expression: str, zone: str = "UTC", past: timedelta = timedelta(0)) -> None:
    """What is left of code that has gone."""
    look(
        "insert into {schema}.schedule (name, expression, timezone, last_due_at) "
        "values (%s, %s, %s, clock_timestamp() - %s)",
        name,
        expression,
        zone,
        past,
    )


async def the(queries: Queries, name: str = "report") -> ScheduleRecord:
    """The only record of this name."""
    (record,) = [record for record in await queries.schedules() if record.name == name]
    return record


async def wait_for(queries: Queries, fact: Callable[[ScheduleRecord], bool], name: str = "report") -> ScheduleRecord:
    """Wait until something is true of the record."""
    with anyio.fail_after(20):
        while not fact(record := await the(queries, name)):  # noqa: ASYNC110  (a fact of the database)
            await anyio.sleep(0.01)
    return record


def test_what_is_told_of_a_schedule_without_code(sync_queries: SyncQueries, look: Look) -> None:
    """It is an orphan; its next occurrence counts from its last one, in its zone, and may have passed; what cannot be
    read here has none.
    """
    assert [] == sync_queries.schedules()
    register(look, "late", DAILY, past=timedelta(days=10))
    register(look, "report", YEARLY, "Asia/Tokyo")
    register(look, "strange", "a new kind of expression")
    register(look, "zone", DAILY, "Mars/Olympus")
    late, report, strange, zone = sync_queries.schedules()
    assert ("report", YEARLY, "Asia/Tokyo", True, False) == (
        report.name,
        report.expression,
        report.timezone,
        report.is_orphaned,
        report.paused,
    )
    assert report.next_due_at == datetime(report.last_due_at.astimezone(UTC).year, 12, 31, 15, tzinfo=UTC)
    assert late.next_due_at is not None
    assert late.last_due_at < late.next_due_at <= late.last_due_at + timedelta(days=1)
    assert (None, None) == (strange.next_due_at, zone.next_due_at)
    nothing = (report.worker_id, report.worker_name, report.due_at, report.started_at, report.last_status)
    assert (None,) * 5 == nothing


def test_pausing_and_resuming(sync_queries: SyncQueries, look: Look) -> None:
    """All expressions of a name or one of them, spaces as they come; the answer says what has changed."""
    register(look, "report", YEARLY)
    register(look, "report", DAILY, past=timedelta(days=10))
    assert [("report", DAILY)] == sync_queries.pause_schedule("report", "30  4 * *  * ")
    assert [("report", YEARLY)] == sync_queries.pause_schedule("report")
    assert [] == sync_queries.pause_schedule("report")
    assert [] == sync_queries.pause_schedule("other")
    assert [(True, None)] * 2 == [(record.paused, record.next_due_at) for record in sync_queries.schedules()]
    assert [("report", YEARLY), ("report", DAILY)] == sorted(sync_queries.resume_schedule("report"))
    for record in sync_queries.schedules():
        assert record.next_due_at is not None
        assert not record.paused
        assert record.next_due_at > datetime.now(UTC) - timedelta(seconds=1), (
            "what came due in the pause is passed over"
        )


def test_forgetting(sync_queries: SyncQueries, look: Look) -> None:
    """Orphans that do not run; with force, any."""
    register(look, "report", YEARLY)
    register(look, "report", DAILY)
    register(look, "running", DAILY)
    look("update {schema}.schedule set worker_id = 1, claim_no = 1 where name = 'running'")
    assert [("report", DAILY)] == sync_queries.remove_schedule("report", DAILY)
    assert [] == sync_queries.remove_schedule("report", DAILY)
    assert [("report", YEARLY)] == sync_queries.remove_schedule("report")
    assert [] == sync_queries.remove_schedule("running")
    assert [("running", DAILY)] == sync_queries.remove_schedule("running", force=True)
    assert [] == sync_queries.schedules()


def test_wrong_arguments(sync_queries: SyncQueries) -> None:
    for name, expression, told in (
        ("", None, "must not be empty"),
        (5, None, "must be a str"),
        ("report", 5, "the expression must be a str"),
        ("report", "a\x00b", "the expression has a NUL"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            sync_queries.pause_schedule(name, expression)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_run_now(driver: PsycopgDriver, dsn: str, schema: str, within: Within) -> None:
    """A worker starts it at once and tells its handler the present moment; its occurrences are what they were."""
    app, queries = PgQueuer(dsn, schema=schema), Queries(driver, schema=schema)
    runs: list[datetime] = []

    @app.schedule("report", YEARLY)
    async def report(schedule: Schedule) -> None:
        runs.append(schedule.due_at)

    async with running_worker(app):
        before = await wait_for(queries, lambda record: not record.is_orphaned)
        for number in (1, 2):
            asked_at = datetime.now(UTC)
            assert [REPORT] == await queries.run_schedule("report")
            with anyio.fail_after(within(1)):
                while len(runs) < number:  # noqa: ASYNC110  (a list)
                    await anyio.sleep(0.005)
            assert abs(runs[-1] - asked_at) < timedelta(seconds=within(1))
            after = await wait_for(queries, lambda record: record.worker_id is None)
            assert (before.last_due_at, before.next_due_at) == (after.last_due_at, after.next_due_at)
            assert "successful" == after.last_status
    assert 2 == len(runs)
    assert (await the(queries)).is_orphaned


@pytest.mark.anyio
async def test_run_now_although_paused(driver: PsycopgDriver, dsn: str, schema: str) -> None:
    """A pause holds back what the clock brings: what is asked for runs once, and again if its worker stops meanwhile. A
    pause after the request holds it back, too.
    """
    app, queries = PgQueuer(dsn, schema=schema), Queries(driver, schema=schema)
    runs: list[datetime] = []
    release = anyio.Event()

    @app.schedule("report", YEARLY)
    async def report(schedule: Schedule) -> None:
        runs.append(schedule.due_at)
        await release.wait()

    async def wait_runs(number: int) -> None:
        with anyio.fail_after(20):
            while len(runs) < number:  # noqa: ASYNC110  (a list)
                await anyio.sleep(0.005)

    async with running_worker(app, shutdown_grace=0):
        await wait_for(queries, lambda record: not record.is_orphaned)
        await queries.pause_schedule("report")
        assert [REPORT] == await queries.run_schedule("report")
        await wait_runs(1)
    interrupted = await the(queries)
    assert (True, runs[0], "given_back") == (interrupted.paused, interrupted.next_due_at, interrupted.last_status)
    release.set()
    async with running_worker(app):
        await wait_runs(2)
        ended = await wait_for(queries, lambda record: record.last_status == "successful")
    assert runs[0] == runs[1]
    assert (True, None) == (ended.paused, ended.next_due_at)
    await queries.run_schedule("report")
    assert (await the(queries)).next_due_at is not None
    await queries.resume_schedule("report")
    await queries.pause_schedule("report")
    assert (await the(queries)).next_due_at is None
    async with running_worker(app):
        await wait_for(queries, lambda record: not record.is_orphaned)
        await queries.run_schedule("report")
        await wait_runs(3)
    assert 3 == len(runs), "held back, and then run once"


@pytest.mark.anyio
async def test_run_now_waits_for_the_present_run(driver: PsycopgDriver, dsn: str, schema: str) -> None:
    """A schedule never overlaps itself: asked for twice during a run, it runs once more after it; where it runs, since
    when and for what is told meanwhile.
    """
    app, queries = PgQueuer(dsn, schema=schema), Queries(driver, schema=schema)
    running, most, ends = 0, 0, anyio.Event()
    runs: list[datetime] = []

    @app.schedule("report", YEARLY)
    async def report(schedule: Schedule) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        runs.append(schedule.due_at)
        if len(runs) == 1:
            await ends.wait()
        running -= 1

    async with running_worker(app):
        await wait_for(queries, lambda record: not record.is_orphaned)
        await queries.run_schedule(*REPORT)
        record = await wait_for(queries, lambda record: record.worker_id is not None)
        (worker,) = await queries.workers()
        assert (worker.id, worker.name) == (record.worker_id, record.worker_name)
        assert [record.due_at] == runs
        assert record.started_at is not None
        assert record.due_at is not None
        assert record.due_at <= record.started_at
        assert [REPORT] == await queries.run_schedule("report")
        assert [REPORT] == await queries.run_schedule("report")
        assert [] == await queries.remove_schedule("report")
        ends.set()
        with anyio.fail_after(5):
            while len(runs) < 2:  # noqa: ASYNC110  (a list)
                await anyio.sleep(0.005)
        await wait_for(queries, lambda record: record.worker_id is None and record.last_status == "successful")
    assert (2, 1) == (len(runs), most)


@pytest.mark.anyio
async def test_a_running_worker_hears_of_changes(driver: PsycopgDriver, dsn: str, schema: str) -> None:
    """Paused, it starts nothing; resumed, it goes on; forgotten by force, it registers the schedule again and runs it;
    its failure is told.
    """
    app, queries = PgQueuer(dsn, schema=schema), Queries(driver, schema=schema)
    runs: list[datetime] = []

    @app.schedule("report", SECONDLY)
    async def report(schedule: Schedule) -> None:
        runs.append(schedule.due_at)
        raise ValueError("no paper")

    async def wait_runs(number: int) -> None:
        with anyio.fail_after(15):
            while len(runs) < number:  # noqa: ASYNC110  (a list)
                await anyio.sleep(0.01)

    async with running_worker(app):
        await wait_runs(1)
        record = await wait_for(queries, lambda record: record.last_status == "failed")
        assert ("ValueError", "no paper") == (record.last_error_type, record.last_error_message)
        assert "no paper" in (record.last_error_traceback or "")
        assert [("report", SECONDLY)] == await queries.pause_schedule("report")
        await wait_for(queries, lambda record: record.worker_id is None)
        paused = len(runs)
        await anyio.sleep(2.2)  # two occurrences pass
        assert paused == len(runs)
        await queries.resume_schedule("report")
        await wait_runs(paused + 1)
        assert [] == await queries.remove_schedule("report"), "it is no orphan"
        assert [("report", SECONDLY)] == await queries.remove_schedule("report", force=True)
        await wait_runs(len(runs) + 2)
    assert len(runs) == len(set(runs))

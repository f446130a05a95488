"""Schedules in a worker: when they run, what becomes of missed occurrences, and how their runs end."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgq_anyio import CancelReason, Context, Job, PgQueuer, ProcessExecutor, Retry, Schedule, Snooze, current_context
from pgq_anyio._db import Connection, PsycopgDriver, Statement
from pgq_anyio._store._sql import Store
from pgq_anyio._store._steps import run_steps
from pgq_anyio._store.operating import remove_schedules, set_paused
from pgq_anyio.testing import drain, running_worker
from tests.bounds import Within

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]

SECONDLY = "* * * * * *"
#: Every New Year: a row that is older has missed some, and no test sees the next one.
YEARLY = "0 0 1 1 *"
#: How long a fact may take (in seconds).
SOON = 20.0

Rows = list[tuple[Any, ...]]


async def wait_until(fact: Callable[[], Awaitable[Any]]) -> Any:
    """Look at a fact until it is true; its value."""
    with anyio.fail_after(SOON):
        while not (value := await fact()):  # noqa: ASYNC110  (the fact may lie in the database, or in a thread)
            await anyio.sleep(0.005)
    return value


@attrs.frozen
class Table:
    """The rows of ``schedule``, seen from outside."""

    conn: Connection
    schema: str

    async def execute(self, text: str, *parameters: object) -> Rows:
        """Run a statement; ``{s}`` stands for the schema."""
        bound = sql.SQL(text).format(s=sql.Identifier(self.schema))
        cursor = await self.conn.execute(bound, parameters)
        return await cursor.fetchall() if cursor.description is not None else []

    async def add(self, name: str, last_due_at: datetime, expression: str = YEARLY) -> None:
        """Let a schedule be known since long ago."""
        await self.execute(
            "insert into {s}.schedule (name, expression, timezone, last_due_at) values (%s, %s, 'UTC', %s)",
            name,
            expression,
            last_due_at,
        )

    async def wait(self, condition: str, *parameters: object, columns: str = "name") -> Rows:
        """Wait until rows fulfil a condition; these rows."""
        text = f"select {columns} from {{s}}.schedule where {condition}"
        rows: Rows = await wait_until(partial(self.execute, text, *parameters))
        return rows


@pytest.fixture
def table(conn: Connection, schema: str) -> Table:
    """The table of the test's schema."""
    return Table(conn, schema)


@attrs.define
class Runs:
    """What a handler noted; works in any thread."""

    noted: list[Any] = attrs.field(factory=list)

    async def wait(self, count: int) -> list[Any]:
        """Wait until so many runs were noted; all of them."""

        async def enough() -> bool:
            return len(self.noted) >= count

        await wait_until(enough)
        return self.noted


def new_year(years_ago: int = 0) -> datetime:
    return datetime(datetime.now(UTC).year - years_ago, 1, 1, tzinfo=UTC)


# -- when -----------------------------------------------------------------------------------------------------------


@pytest.mark.promise(42)
async def test_every_second_within_100_ms_of_its_time(app: PgQueuer, table: Table, figures: bool) -> None:
    """By the server's clock; no second twice, none left out, and the run is not early."""
    runs = Runs()

    # A busy machine may be more than a second late: what came due meanwhile is then not one run, but as many.
    @app.schedule("tick", SECONDLY, missed="coalesce" if figures else "catch_up")
    async def tick(schedule: Schedule) -> None:
        ((clock,),) = await table.execute("select clock_timestamp()")
        runs.noted.append((schedule.due_at, (clock - schedule.due_at).total_seconds()))

    async with running_worker(app):
        noted = await runs.wait(5)
    due_ats = [due_at for due_at, _ in noted]
    assert [due_ats[0] + timedelta(seconds=n) for n in range(len(due_ats))] == due_ats
    late = sorted(seconds for _, seconds in noted)
    assert late[0] >= 0.0
    # The median, not the worst: other programs may have the processors for a while.
    assert late[len(late) // 2] < (0.1 if figures else 5.0)


async def test_what_a_handler_gets(app: PgQueuer, table: Table) -> None:
    """The occurrence, a context of its own, the app's resources, and a task with its name."""
    runs = Runs()

    @app.schedule("report", YEARLY, timezone="UTC")
    async def report(schedule: Schedule, context: Context) -> None:
        same = current_context() is context
        runs.noted.append(
            (schedule, context.schedule, context.job, context.job_id, same, anyio.get_current_task().name)
        )

    await table.add("report", new_year() - timedelta(days=1))
    async with running_worker(app):
        (noted,) = await runs.wait(1)
    schedule = Schedule("report", YEARLY, "UTC", new_year())
    assert (schedule, schedule, None, None, True, "schedule:report") == noted
    assert UTC == noted[0].due_at.tzinfo


@pytest.mark.promise(41)
async def test_one_name_with_two_expressions(app: PgQueuer, table: Table) -> None:
    """Both run, each by its own row."""
    runs = Runs()
    other = "0 0 2 1 *"
    for expression in (YEARLY, other):

        @app.schedule("report", expression)
        async def report(schedule: Schedule) -> None:
            runs.noted.append(schedule.expression)

        await table.add("report", new_year(2) + timedelta(days=3), expression)
    async with running_worker(app):
        assert {YEARLY, other} == set(await runs.wait(2))


@pytest.mark.promise(42)
async def test_a_thousand_in_the_same_second(dsn: str, table: Table, within: Within) -> None:
    """All of them start within a second of their time."""
    for lead in (12, 50):  # longer than it takes to register them, on a busy machine too
        if await start_a_thousand(PgQueuer(dsn, schema=table.schema), table, lead, within(1.0)):
            return
    pytest.fail("registering took too long for this test to mean anything")


async def start_a_thousand(app: PgQueuer, table: Table, lead: float, bound: float) -> bool:
    """Let a thousand schedules be due at the same time; whether all were registered by then.

    :param lead: how far ahead (in seconds)
    """
    runs = Runs()
    ((due_at,),) = await table.execute(
        "select date_trunc('second', clock_timestamp()) + make_interval(secs => %s)", lead
    )
    expression = f"{due_at:%-M %-H %-d %-m} * {due_at:%-S}"
    for number in range(1000):

        @app.schedule(f"s{number}", expression, timezone=str(due_at.tzinfo))
        async def handler(schedule: Schedule) -> None:
            runs.noted.append((schedule.name, time.monotonic()))

    async with running_worker(app):
        ((offset,),) = await table.execute("select extract(epoch from %s - clock_timestamp())::float8", due_at)
        due = time.monotonic() + offset
        if offset < 0.5:
            return False
        await anyio.sleep(offset)
        noted = await runs.wait(1000)
    assert 1000 == len({name for name, _ in noted})
    assert max(at for _, at in noted) - due < bound
    return True


@pytest.mark.promise(44)
async def test_no_schedules_no_statements(app: PgQueuer, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler of a worker without schedules asks the database nothing, whatever it hears."""
    used: list[str] = []
    done = anyio.Event()
    statement, connect = Store.statement, PsycopgDriver.connect

    def record_statement(store: Store, name: str) -> Statement:
        used.append(name)
        return statement(store, name)

    async def record_connection(driver: PsycopgDriver, *, role: str, **options: Any) -> Connection:
        used.append(f"connection for {role}")
        return await connect(driver, role=role, **options)

    async def three_beats() -> bool:
        return used.count("beat_worker") >= 3

    monkeypatch.setattr(Store, "statement", record_statement)
    monkeypatch.setattr(PsycopgDriver, "connect", record_connection)

    @app.entrypoint("job")
    async def handler(job: Job) -> None:
        done.set()

    async with running_worker(app, lease=2.0):
        await table.execute("select pg_notify('pgq_anyio.' || %s, 'schedule')", table.schema)
        await table.execute("select {s}.enqueue('job')")
        with anyio.fail_after(SOON):
            await done.wait()
        await wait_until(three_beats)
    assert [] == [name for name in used if "schedule" in name]


@pytest.mark.promise(41)
async def test_the_night_in_which_the_server_has_an_hour_twice(dsn: str, table: Table) -> None:
    """Its connections count in Berlin's time: each occurrence of that hour runs, and once."""
    app, runs = PgQueuer(make_conninfo(dsn, options="-c TimeZone=Europe/Berlin"), schema=table.schema), Runs()
    expression = "30 0-2 27 10 *"

    @app.schedule("hourly", expression, missed="catch_up")
    async def hourly(schedule: Schedule) -> None:
        runs.noted.append(schedule.due_at)

    await table.add("hourly", datetime(2024, 10, 26, tzinfo=UTC), expression)
    async with running_worker(app):
        noted = await runs.wait(4)
    assert [datetime(2024, 10, 27, hour, 30, tzinfo=UTC) for hour in range(3)] == noted[:3]
    assert datetime(2025, 10, 27, 0, 30, tzinfo=UTC) == noted[3]


# -- missed occurrences ----------------------------------------------------------------------------------------------


@pytest.mark.promise(43)
@pytest.mark.parametrize(("missed", "expected"), [("coalesce", [0]), ("skip", []), ("catch_up", [2, 1, 0])])
async def test_down_over_three_occurrences(app: PgQueuer, table: Table, missed: str, expected: list[int]) -> None:
    """One run for the latest, none, or three in their order."""
    runs, sentinel = Runs(), Runs()

    @app.schedule("report", YEARLY, missed=missed)
    async def report(schedule: Schedule) -> None:
        runs.noted.append(schedule.due_at)

    @app.schedule("sentinel", YEARLY, missed="catch_up")
    async def last(schedule: Schedule) -> None:
        sentinel.noted.append(schedule.due_at)

    for name in ("report", "sentinel"):
        await table.add(name, new_year(3))
    async with running_worker(app):
        # The other schedule has caught up: whatever was to be done with this one has begun.
        await sentinel.wait(3)
        await runs.wait(len(expected))
    assert [new_year(years) for years in expected] == runs.noted


@pytest.mark.promise(43)
@pytest.mark.parametrize(("missed", "expected"), [("coalesce", 1), ("skip", 0), ("catch_up", 1)])
async def test_down_a_moment_ago(app: PgQueuer, table: Table, missed: str, expected: int) -> None:
    """An occurrence that came before this worker did is missed, however short a time ago."""
    runs, sentinel = Runs(), Runs()
    ((due_at,),) = await table.execute("select date_trunc('second', clock_timestamp())")
    expression = f"{due_at:%-M %-H %-d %-m} * {due_at:%-S}"
    zone = str(due_at.tzinfo)

    @app.schedule("report", expression, timezone=zone, missed=missed)
    async def report(schedule: Schedule) -> None:
        runs.noted.append(schedule.due_at)

    @app.schedule("sentinel", expression, timezone=zone)
    async def last(schedule: Schedule) -> None:
        sentinel.noted.append(schedule.due_at)

    for name in ("report", "sentinel"):
        await table.add(name, due_at - timedelta(hours=1), expression)
    await table.execute("update {s}.schedule set timezone = %s", zone)
    async with running_worker(app):
        assert [due_at] == await sentinel.wait(1)
        await runs.wait(expected)
    assert [due_at] * expected == runs.noted


@pytest.mark.promise(43)
async def test_a_long_run_does_not_overlap_itself(app: PgQueuer) -> None:
    """A run of a second and a half, due every second: one at a time, and what passed meanwhile is one run."""
    runs, active = Runs(), 0

    @app.schedule("slow", SECONDLY)
    async def slow(schedule: Schedule) -> None:
        nonlocal active
        active += 1
        runs.noted.append((schedule.due_at, active))
        await anyio.sleep(1.5)
        active -= 1

    async with running_worker(app):
        noted = await runs.wait(3)
    assert [1, 1, 1] == [overlap for _, overlap in noted[:3]]
    due_ats = [due_at for due_at, _ in noted]
    assert due_ats == sorted(set(due_ats))


@pytest.mark.promise(43)
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("no such report"), "ValueError"),
        (SystemExit(3), "SystemExit"),
        (Retry(reason="no such report"), "Retry"),
        (Snooze(1.0), "Snooze"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_exception_is_recorded_and_the_next_occurrence_runs(
    app: PgQueuer, table: Table, error: BaseException, kind: str
) -> None:
    """Also what asks for another attempt: an occurrence has none, its schedule has a next one."""
    runs = Runs()

    @app.schedule("report", YEARLY, missed="catch_up")
    async def report(schedule: Schedule) -> None:
        runs.noted.append(schedule.due_at)
        if schedule.due_at == new_year(1):
            raise error
        failed.append(await table.wait("last_status = 'failed'", columns="last_error_type, last_error_traceback"))

    failed: list[Rows] = []
    await table.add("report", new_year(2))
    async with running_worker(app):
        assert [new_year(1), new_year()] == await runs.wait(2)
        await table.wait("last_status = 'successful' and last_error_type is null and worker_id is null")
    (((actual, trace),),) = failed
    assert kind == actual
    assert "in report" in trace


async def test_a_handler_that_ignores_its_cancellation_is_reported(
    app: PgQueuer, table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    """By name and with its stack, as a job is; its row waits for its end."""
    runs, overdue = Runs(), anyio.Event()

    @app.schedule("stubborn", YEARLY)
    async def stubborn(schedule: Schedule) -> None:
        runs.noted.append(schedule)
        with anyio.CancelScope(shield=True):
            await overdue.wait()

    async def reported() -> bool:
        return "schedule 'stubborn' (0 0 1 1 *) ignores its cancellation (shutdown)" in caplog.text

    await table.add("stubborn", new_year(1))
    async with anyio.create_task_group() as tasks:
        await tasks.start(partial(app.run, shutdown_grace=0.0, cancel_grace=0.1))
        await runs.wait(1)
        app.stop()
        try:
            await wait_until(reported)
            assert "await overdue.wait()" in caplog.text
            assert [] == await table.execute("select name from {s}.schedule where worker_id is null")
        finally:
            overdue.set()
    # It was not interrupted, so it did its work.
    assert [("successful",)] == await table.execute("select last_status from {s}.schedule")


async def test_a_locked_table_of_schedules_is_no_reason_not_to_run_jobs(app: PgQueuer, table: Table, dsn: str) -> None:
    """Jobs run, the worker can be stopped, and once the lock is gone the schedules run too."""
    runs = Runs()

    @app.entrypoint("job")
    async def job(job: Job) -> None:
        runs.noted.append("job")

    @app.schedule("report", YEARLY)
    async def report(schedule: Schedule) -> None:
        runs.noted.append("report")

    locker = await Connection.connect(dsn)
    await table.add("report", new_year(1))
    await table.execute("select {s}.enqueue('job')")
    try:
        await locker.execute("begin")
        await locker.execute(sql.SQL("lock table {}.schedule in exclusive mode").format(sql.Identifier(table.schema)))
        with anyio.fail_after(SOON):
            async with running_worker(app):
                assert ["job"] == await runs.wait(1)
                await locker.execute("commit")
                assert ["job", "report"] == await runs.wait(2)
    finally:
        locker.abort()


# -- what others change ----------------------------------------------------------------------------------------------


async def test_a_pause_and_its_end_are_heard(app: PgQueuer, table: Table, within: Within) -> None:
    """While it is paused the other schedule goes on; after the end it runs again within two seconds."""
    paused, other = Runs(), Runs()

    @app.schedule("paused", SECONDLY)
    async def handler(schedule: Schedule) -> None:
        paused.noted.append(schedule.due_at)

    @app.schedule("other", SECONDLY)
    async def another(schedule: Schedule) -> None:
        other.noted.append(schedule.due_at)

    store = Store(table.schema)
    async with running_worker(app):
        await paused.wait(1)
        await run_steps(table.conn, set_paused(store, "paused", None, paused=True))
        await table.wait("name = 'paused' and worker_id is null")
        before = len(paused.noted)
        await other.wait(len(other.noted) + 3)
        assert before == len(paused.noted)
        await run_steps(table.conn, set_paused(store, "paused", None, paused=False))
        resumed = time.monotonic()
        await paused.wait(before + 1)
        assert time.monotonic() - resumed < within(2.0)
    assert timedelta(seconds=3) <= paused.noted[before] - paused.noted[before - 1]


async def test_a_claim_whose_answer_was_lost_is_given_back_and_run(app: PgQueuer, table: Table) -> None:
    """The row names this worker, which does not know of it: nobody has run that occurrence."""
    runs = Runs()

    @app.schedule("report", YEARLY)
    async def report(schedule: Schedule) -> None:
        runs.noted.append(schedule.due_at)

    await table.add("report", datetime.now(UTC))
    async with running_worker(app):
        await table.execute(
            "update {s}.schedule set worker_id = (select worker_id from {s}.worker), claim_no = 999999, due_at = %s",
            new_year(),
        )
        await table.execute("select pg_notify('pgq_anyio.' || %s, 'schedule')", table.schema)
        assert [new_year()] == await runs.wait(1)
        await table.wait("last_status = 'successful' and given_back_due_at is null")


async def test_a_row_that_was_deleted_is_made_again(app: PgQueuer, table: Table) -> None:
    """The code is still there: what it registers does not end with a row."""
    runs = Runs()

    @app.schedule("tick", SECONDLY)
    async def tick(schedule: Schedule) -> None:
        runs.noted.append(schedule.due_at)

    async with running_worker(app):
        await runs.wait(1)
        await table.execute("delete from {s}.schedule")
        await runs.wait(len(runs.noted) + 2)


async def test_a_row_that_was_removed_is_made_again_at_once(app: PgQueuer, table: Table) -> None:
    """Not when it comes due, for then that occurrence would be lost: the removal is heard."""

    @app.schedule("report", YEARLY)
    async def report(schedule: Schedule) -> None:
        pass

    async with running_worker(app):
        before = await table.wait("true", columns="registered_at")
        store = Store(table.schema)
        assert [("report", YEARLY)] == await run_steps(table.conn, remove_schedules(store, "report", None, force=True))
        await table.wait("registered_at > %s and last_due_at > %s", *before[0], *before[0])


async def test_a_lost_connection_is_replaced(app: PgQueuer, table: Table) -> None:
    """The scheduler's own connection is killed by the server: it goes on, each occurrence once."""
    runs = Runs()

    @app.schedule("tick", SECONDLY)
    async def tick(schedule: Schedule) -> None:
        runs.noted.append(schedule.due_at)

    async with running_worker(app):
        await runs.wait(1)
        killed = await table.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'pgq_anyio schedule' and query like %s",
            f"%{table.schema}%",
        )
        assert killed
        await runs.wait(len(runs.noted) + 2)
    assert runs.noted == sorted(set(runs.noted))


# -- how runs end ----------------------------------------------------------------------------------------------------


@pytest.mark.promise(44)
async def test_an_interrupted_run_is_run_again_by_another_worker(dsn: str, schema: str, table: Table) -> None:
    """The stop cancels it; its occurrence is given back, and run although ``skip`` would leave it out."""
    noted: list[Any] = []
    started = anyio.Event()

    def new_app(handler: Callable[[Schedule, Context], Awaitable[None]]) -> PgQueuer:
        app = PgQueuer(dsn, schema=schema)
        app.schedule("report", YEARLY, missed="skip")(handler)
        return app

    async def interrupted(schedule: Schedule, context: Context) -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            noted.append((schedule.due_at, context.cancel_reason))

    async def whole(schedule: Schedule, context: Context) -> None:
        noted.append((schedule.due_at, context.cancel_reason))

    await table.add("report", datetime.now(UTC))
    await table.execute("update {s}.schedule set given_back_due_at = %s", new_year())
    first, second = new_app(interrupted), new_app(whole)
    async with anyio.create_task_group() as tasks:
        await tasks.start(partial(first.run, shutdown_grace=0.0))
        with anyio.fail_after(SOON):
            await started.wait()
        async with running_worker(second):
            first.stop()
            await table.wait("last_status = 'successful'")
    assert [(new_year(), CancelReason.SHUTDOWN), (new_year(), None)] == noted


async def test_a_run_may_end_within_the_grace(app: PgQueuer, table: Table) -> None:
    """A stop waits for it, and its end is stored before the worker leaves."""
    runs = Runs()

    @app.schedule("report", YEARLY)
    async def report(schedule: Schedule) -> None:
        runs.noted.append("start")
        await anyio.sleep(0.5)
        runs.noted.append("end")

    await table.add("report", new_year(1))
    async with running_worker(app, shutdown_grace=SOON):
        await runs.wait(1)
    assert ["start", "end"] == runs.noted
    assert [("successful", None)] == await table.execute("select last_status, worker_id from {s}.schedule")


async def test_the_end_is_stored_although_the_table_was_locked(app: PgQueuer, table: Table, dsn: str) -> None:
    """The release waits for the lock, and the worker waits for the release."""
    runs = Runs()

    @app.schedule("report", YEARLY)
    async def report(schedule: Schedule) -> None:
        runs.noted.append(schedule.due_at)
        await proceed.wait()

    proceed = anyio.Event()
    locker = await Connection.connect(dsn)
    await table.add("report", new_year(1))
    try:
        async with running_worker(app):
            await runs.wait(1)
            await locker.execute("begin")
            await locker.execute(sql.SQL("lock table {}.schedule").format(sql.Identifier(table.schema)))
            proceed.set()
            blocked = "select 1 from pg_locks where not granted and %s = any (pg_blocking_pids(pid))"
            await wait_until(partial(table.execute, blocked, locker.info.backend_pid))
            app.stop()
            await locker.execute("commit")
    finally:
        locker.abort()
    assert [("successful", None)] == await table.execute("select last_status, worker_id from {s}.schedule")


async def test_draining_waits_for_what_runs_and_not_for_what_comes(app: PgQueuer, table: Table) -> None:
    """A schedule of every second does not keep a draining worker alive; a run that has begun ends in peace."""
    noted: list[str] = []

    @app.schedule("tick", SECONDLY)
    async def tick(schedule: Schedule) -> None:
        pass

    @app.schedule("report", YEARLY)
    async def report(schedule: Schedule) -> None:
        noted.append("start")
        started.set()
        await anyio.sleep(0.5)
        noted.append("end")

    @app.entrypoint("job")
    async def job(job: Job) -> None:
        await started.wait()

    started = anyio.Event()
    await table.add("report", new_year(1))
    await table.execute("select {s}.enqueue('job')")
    with anyio.fail_after(SOON):
        await drain(app)
    assert ["start", "end"] == noted
    assert [] == await table.execute("select name from {s}.schedule where worker_id is not null")


async def test_runs_do_not_count_against_max_concurrency(app: PgQueuer, table: Table) -> None:
    """The only slot, and its thread, are taken by a job: schedules run all the same."""
    runs, job_runs, proceed = Runs(), Runs(), threading.Event()

    @app.entrypoint("job")
    def job(job: Job) -> None:
        job_runs.noted.append(job.id)
        assert proceed.wait(SOON)

    @app.schedule("async", YEARLY)
    async def in_the_loop(schedule: Schedule) -> None:
        runs.noted.append(schedule.name)

    @app.schedule("thread", YEARLY)
    def in_a_thread(schedule: Schedule) -> None:
        assert current_context().schedule == schedule
        runs.noted.append(schedule.name)

    await table.execute("select {s}.enqueue('job')")
    try:
        async with running_worker(app, max_concurrency=1):
            await job_runs.wait(1)
            for name in ("async", "thread"):
                await table.execute("update {s}.schedule set last_due_at = %s where name = %s", new_year(1), name)
            await table.execute("select pg_notify('pgq_anyio.' || %s, 'schedule')", table.schema)
            assert {"async", "thread"} == set(await runs.wait(2))
            proceed.set()
    finally:
        proceed.set()


async def test_a_thread_learns_of_the_stop(app: PgQueuer, table: Table) -> None:
    """As in a job: its flag turns true, the worker waits for its end, and the occurrence is given back."""
    runs = Runs()

    @app.schedule("report", YEARLY)
    def report(schedule: Schedule, context: Context) -> None:
        runs.noted.append("start")
        until = time.monotonic() + SOON
        while not context.cancellation.cancel_called:
            assert time.monotonic() < until
            time.sleep(0.01)
        runs.noted.append("end")

    await table.add("report", new_year(1))
    async with running_worker(app, shutdown_grace=0.0):
        await runs.wait(1)
    assert ["start", "end"] == runs.noted
    columns = "select last_status, given_back_due_at from {s}.schedule"
    assert [("given_back", new_year())] == await table.execute(columns)


async def test_a_handler_in_a_process(app: PgQueuer, table: Table) -> None:
    """It gets the occurrence, and its exception is recorded."""
    app.schedule("report", YEARLY, executor_factory=ProcessExecutor)(raise_its_occurrence)
    await table.add("report", new_year(1))
    async with running_worker(app):
        rows = await table.wait("last_status = 'failed'", columns="last_error_type, last_error_message")
    assert [("LookupError", f"report {new_year().isoformat()}")] == rows


def raise_its_occurrence(schedule: Schedule) -> None:
    """Show in the parent what a child got."""
    raise LookupError(f"{schedule.name} {schedule.due_at.isoformat()}")

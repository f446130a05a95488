"""Nobody's functions, operators, types and tables are taken for PostgreSQL's or for ours, whatever the search path.

Each search path has a trap for every name that our SQL uses; a call of one fails, and with it what called it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import anyio
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from typer.testing import CliRunner

from pgq_anyio import Cancel, Job, JobStatus, PgQueuer, PsycopgDriver, Queries, Retry, Schedule, SyncQueries
from pgq_anyio._cli.program import app as program
from pgq_anyio._services import pruner
from pgq_anyio._store.grants import Purpose, grants_sql
from pgq_anyio._store.migrations import migrate, migrate_sync, migration_sql, uninstall_sync
from pgq_anyio.testing import running_worker
from tests.security.hostile import hostile_schema

anyio_test = pytest.mark.anyio
#: Nothing is kept of successes in these tests.
ENDED = {JobStatus.FAILED, JobStatus.CANCELLED}


@pytest.fixture(scope="module")
def evil(server_dsn: str) -> Iterator[str]:
    """A schema full of traps."""
    with hostile_schema(server_dsn, f"evil_{os.getpid()}") as name:
        yield name


@pytest.fixture(params=["in front of pg_catalog", "behind pg_catalog, and a better match"])
def hostile_dsn(request: pytest.FixtureRequest, dsn: str, evil: str) -> str:
    """A DSN whose sessions find the traps."""
    is_in_front = request.param == "in front of pg_catalog"
    return make_conninfo(dsn, options=f"-csearch_path={evil}{',pg_catalog' if is_in_front else ''}")


@pytest.mark.parametrize(
    "query",
    [
        "select 1 where '1'::int8 = '1'::int4",
        "select now()",
        "select 'a'::text",
        "select relname from pg_class",
        "select 'x' || 1::int8",
        "select current_setting('search_path')",
        "select make_interval(secs => 1::float8)",
    ],
)
def test_the_traps_work(dsn: str, evil: str, query: str) -> None:
    """Who does not say whose function or operator he means calls that of somebody else."""
    with psycopg.connect(dsn, options=f"-csearch_path={evil},pg_catalog") as conn, pytest.raises(psycopg.Error):
        conn.execute(query.encode())


def test_traps_that_are_only_a_better_match_work(dsn: str, evil: str) -> None:
    """Also where PostgreSQL's own objects come first."""
    with (
        psycopg.connect(dsn, options=f"-csearch_path={evil}") as conn,
        pytest.raises(psycopg.errors.RaiseException, match="a hostile object was called"),
    ):
        conn.execute("select 1::int8 || 'x'::pg_catalog.text")


@anyio_test
async def test_producers_and_operators(hostile_dsn: str, schema: str) -> None:
    """Every call, on connections of a driver and on the caller's own, in and outside of a transaction."""
    async with PsycopgDriver(hostile_dsn) as driver:
        queries = Queries(driver, schema=schema)
        ids = await queries.enqueue(["fetch"] * 3, [b"1", b"2", b"3"])
        later = await queries.enqueue("fetch", execute_after=timedelta(hours=1))
        many = await queries.enqueue(["bulk"] * 1500)
        async with driver.connection() as conn, conn.transaction():
            inside = await queries.enqueue("fetch", connection=conn)
            inside += await queries.enqueue("fetch", execute_after=timedelta(hours=1), connection=conn)
            assert inside[:1] == await queries.mark_job_as_cancelled(inside[:1], connection=conn)
            await queries.enqueue(["bulk"] * 1500, connection=conn)
        assert ids[:1] == await queries.mark_job_as_cancelled(ids[:1], "no need")
        assert [*ids[1:], *later, inside[1]] == await queries.mark_job_as_cancelled(
            entrypoint="fetch", older_than=timedelta(0)
        )
        assert ids[:1] == await queries.requeue(ids[:1])
        assert ids[1:2] == await queries.requeue(
            status="cancelled", entrypoint="fetch", finished_after=datetime(2020, 1, 1, tzinfo=UTC), limit=1
        )
        assert {*ids, *many} == set(await queries.job_status([*ids, *many]))
        assert [JobStatus.CANCELLED] * 4 == [job.status for job in await queries.list_jobs(status="cancelled")]
        record = await queries.get_job(later[0])
        assert record is not None
        assert record.cancelled_by is not None
        assert {"fetch": 2, "bulk": 3000} == await queries.queue_size()
        assert [] == await queries.workers()


def test_blocking_code_and_plain_sql(hostile_dsn: str, schema: str) -> None:
    """On a connection of its own, one of the caller's, and without Python."""
    with SyncQueries(hostile_dsn, schema=schema) as queries, psycopg.connect(hostile_dsn) as conn:
        (own,) = queries.enqueue("fetch")
        (given,) = queries.enqueue("fetch", connection=conn)
        enqueue = sql.SQL("select {}.enqueue('fetch', 'payload', execute_after => {})")
        for delay in ("null", "interval '1 hour'"):
            conn.execute(enqueue.format(sql.Identifier(schema), sql.SQL(delay)))
        ahead = sql.Literal(f"{datetime.now(UTC) + timedelta(days=20):%Y-%m-%d}")
        make, drop = (sql.SQL("select {}." + name + "_finished_day({})") for name in ("make", "drop"))
        assert [(True,)] == conn.execute(make.format(sql.Identifier(schema), ahead)).fetchall()
        assert [(False,)] == conn.execute(drop.format(sql.Identifier(schema), sql.Literal("2000-01-01"))).fetchall()
        conn.commit()
        assert [own, given] == queries.mark_job_as_cancelled([own, given])
        assert {"fetch": 1} == queries.queue_size()


@anyio_test
async def test_the_owner(hostile_dsn: str, dsn: str, empty_schema: str) -> None:
    """Tables are made, checked, granted, printed and removed; what they default to is PostgreSQL's."""
    async with PsycopgDriver(hostile_dsn) as driver, driver.connection() as conn:
        assert [] != await migrate(conn, empty_schema)
    with psycopg.connect(hostile_dsn, autocommit=True) as owner:
        owner.execute(grants_sql(empty_schema, {Purpose.READ: ["pg_monitor"]}))
        assert [] == migrate_sync(owner, empty_schema)
        assert uninstall_sync(owner, empty_schema)
        script = migration_sql(empty_schema).replace("\\set ON_ERROR_STOP on", "")
        owner.execute(script.encode())
        SyncQueries(owner, schema=empty_schema).enqueue("fetch")
        assert uninstall_sync(owner, empty_schema)


def test_the_command_line(hostile_dsn: str, schema: str) -> None:
    """Commands that read and change."""
    place = [f"--dsn={hostile_dsn}", f"--schema={schema}"]
    for command in (
        ["enqueue", "fetch"],
        ["jobs", "list"],
        ["jobs", "show", "1"],
        ["cancel", "1"],
        ["jobs", "requeue", "1"],
        ["schedules", "list"],
        ["migrate"],
    ):
        result = CliRunner().invoke(program, [*command, *place])
        assert result.exit_code == 0, result.output


@anyio_test
async def test_a_worker(hostile_dsn: str, schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a worker does in its life: jobs that end in every way, deferred ones, limits and rates, a schedule with
    its operators, retention, days of the record, jobs of a worker that died, and its farewell.
    """
    monkeypatch.setattr(pruner, "SHORTEST_INTERVAL", 0.05)
    app = PgQueuer(hostile_dsn, schema=schema)
    seen: Counter[bytes] = Counter()
    fired, started = anyio.Event(), anyio.Event()

    @app.entrypoint("work", max_attempts=2)
    async def work(job: Job) -> None:
        seen[job.data or b""] += 1
        match job.data:
            case b"fail":
                raise ValueError("as asked")
            case b"cancel":
                raise Cancel("enough")
            case b"retry" if job.attempt == 1:
                raise Retry(0.01)
            case b"wait":
                started.set()
                await anyio.sleep_forever()

    @app.entrypoint("limited", concurrency_limit=2, requests_per_second=500)
    async def limited(job: Job) -> None:
        seen[b"limited"] += 1

    @app.entrypoint("serial", serialized_dispatch=True)
    async def serial(job: Job) -> None:
        seen[b"serial"] += 1

    @app.schedule("tick", "* * * * * *")
    async def tick(schedule: Schedule) -> None:
        fired.set()

    _leave_something_behind(hostile_dsn, schema)
    async with PsycopgDriver(hostile_dsn) as driver:
        queries = Queries(driver, schema=schema)
        ways = [b"succeed", b"fail", b"cancel", b"retry"]
        ids = await queries.enqueue(["work"] * len(ways), ways)
        ids += await queries.enqueue(["limited"] * 5 + ["serial"] * 2)
        ids += await queries.enqueue("work", b"later", execute_after=timedelta(milliseconds=50))
        with anyio.fail_after(30):
            async with running_worker(app, lease=2, retention={"successful": 0}):
                await fired.wait()
                key = [("tick", "* * * * * *")]
                assert key == await queries.pause_schedule("tick")
                assert key == await queries.run_schedule("tick")
                assert key == await queries.resume_schedule("tick")
                assert key == [(one.name, one.expression) for one in await queries.schedules()]
                (waiting,) = await queries.enqueue("work", b"wait")
                await started.wait()
                assert [waiting] == await queries.mark_job_as_cancelled([waiting])
                while seen[b"orphan"] == 0 or not ENDED >= set((await queries.job_status([*ids, waiting])).values()):  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            assert [("tick", "* * * * * *")] == await queries.remove_schedule("tick", force=True)
    expected = {b"succeed": 1, b"fail": 2, b"cancel": 1, b"retry": 2, b"later": 1, b"wait": 1}
    assert {**expected, b"limited": 5, b"serial": 2, b"orphan": 1} == seen


def _leave_something_behind(dsn: str, schema: str) -> None:
    """A worker that died with a job, and a day of the record that is over."""
    with psycopg.connect(dsn, autocommit=True, options="-csearch_path=pg_catalog") as admin:
        admin.execute(
            sql.SQL(
                "insert into {schema}.worker (worker_id, name, entrypoints, max_crashes, lease)"
                " values (1, 'dead', array['work'], array[5], 1);"
                "insert into {schema}.running (job_id, worker_id, claim_no, seq, entrypoint, priority, attempt,"
                " crashes, created_at, claimed_at, payload)"
                " values (1000000, 1, 1, 1, 'work', 0, 1, 0, now(), now(), 'orphan');"
                "create table {schema}.finished_20200101 partition of {schema}.finished"
                " for values from ('2020-01-01 00:00+00') to ('2020-01-02 00:00+00')"
            ).format(schema=sql.Identifier(schema))
        )

"""Each role can do its work: every function of the package under the role that it is for."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import anyio
import psycopg
import pytest
from typer.testing import CliRunner

from pgq_anyio import Cancel, Job, JobStatus, PgQueuer, PsycopgDriver, Queries, Retry, Schedule, Snooze, SyncQueries
from pgq_anyio._cli.program import app as program
from pgq_anyio._errors import ConfigurationError
from pgq_anyio._services import pruner
from pgq_anyio._store.grants import Purpose, grants_sql
from pgq_anyio._store.migrations import migrate, migrate_sync, uninstall_sync
from pgq_anyio.testing import drain, running_worker
from tests.security.conftest import Roles

anyio_test = pytest.mark.anyio


def test_the_owner_makes_and_removes_the_tables(roles: Roles) -> None:
    """It needs no right to make schemas, and owns all there is."""
    with roles.connect("migrate") as owner, roles.connect("admin") as admin:
        assert [] == migrate_sync(owner, roles.schema)
        owners = admin.execute(
            "select distinct pg_get_userbyid(relowner) from pg_class where relnamespace = to_regnamespace(%s)::oid "
            "union select pg_get_userbyid(proowner) from pg_proc where pronamespace = to_regnamespace(%s)::oid",
            [f'"{roles.schema}"'] * 2,
        ).fetchall()
        assert [(roles.name("migrate"),)] == owners
        assert uninstall_sync(owner, roles.schema)


def test_tables_of_somebody_else_change_hands(roles: Roles) -> None:
    """Tables that a superuser has made become the owner's, who can then remove them: nothing is left behind."""
    with roles.connect("admin") as admin, roles.connect("migrate") as owner:
        uninstall_sync(owner, roles.schema)
        migrate_sync(admin, roles.schema)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            uninstall_sync(owner, roles.schema)
        for _ in range(2):
            admin.execute(grants_sql(roles.schema, {Purpose.MIGRATE: [roles.name("migrate")]}))
        assert uninstall_sync(owner, roles.schema)


@anyio_test
async def test_a_producer_enqueues(roles: Roles) -> None:
    """At once and later, one, many and so many that they are copied; in a transaction, blocking code, and plain SQL."""
    async with PsycopgDriver(roles.conninfo("produce")) as driver:
        queries = Queries(driver, schema=roles.schema)
        await queries.enqueue("fetch", b"1")
        await queries.enqueue(["fetch"] * 3, execute_after=timedelta(hours=1))
        await queries.enqueue(["fetch"] * 1500)
        async with driver.connection() as conn, conn.transaction():
            await queries.enqueue("fetch", b"2", connection=conn)
            await queries.enqueue("fetch", execute_after=timedelta(hours=1), connection=conn)
    with roles.connect("produce") as blocking:
        SyncQueries(blocking, schema=roles.schema).enqueue("fetch")
        blocking.execute(roles.bind("select {schema}.enqueue('fetch', 'payload')"))
        blocking.execute(roles.bind("select {schema}.enqueue('fetch', execute_after => interval '1 hour')"))
    with roles.connect("read") as blocking:
        counted = blocking.execute(
            roles.bind("select (select count(*) from {schema}.queued), (select count(*) from {schema}.deferred)")
        ).fetchall()
        assert [(1504, 5)] == counted


@anyio_test
async def test_an_operator_cancels_requeues_and_changes_schedules(roles: Roles) -> None:
    """By id and by filter, jobs in every state; and it sees what it does."""
    async with PsycopgDriver(roles.conninfo("produce")) as driver:
        producer = Queries(driver, schema=roles.schema)
        ids = await producer.enqueue(["fetch"] * 3)
        later = await producer.enqueue("fetch", execute_after=timedelta(hours=1))
    async with PsycopgDriver(roles.conninfo("operate")) as driver:
        queries = Queries(driver, schema=roles.schema)
        assert ids[:1] == await queries.mark_job_as_cancelled(ids[:1], "no need")
        assert [*ids[1:], *later] == await queries.mark_job_as_cancelled(entrypoint="fetch")
        assert ids[:1] == await queries.requeue(ids[:1])
        assert [*ids[1:], *later] == await queries.requeue(status="cancelled")
        assert {JobStatus.QUEUED} == set((await queries.job_status(ids)).values())
        app = PgQueuer(roles.conninfo("work"), schema=roles.schema)
        started = anyio.Event()

        @app.entrypoint("fetch")
        async def fetch(job: Job) -> None:
            started.set()
            await anyio.sleep_forever()

        @app.schedule("nightly", "0 3 1 1 *")
        async def nightly(schedule: Schedule) -> None:
            pass

        async with running_worker(app):
            with anyio.fail_after(20):
                await started.wait()
                assert sorted([*ids, *later]) == sorted(await queries.mark_job_as_cancelled(entrypoint="fetch"))
                while (await queries.job_status(ids))[ids[0]] != JobStatus.CANCELLED:  # noqa: ASYNC110
                    await anyio.sleep(0.02)
            key = [("nightly", "0 3 1 1 *")]
            assert key == await queries.pause_schedule("nightly")
            assert key == await queries.resume_schedule("nightly")
            assert key == await queries.run_schedule("nightly")
            assert key == await queries.remove_schedule("nightly", force=True)


@anyio_test
async def test_a_worker_works(roles: Roles, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a worker does in its life: jobs that end in every way, deferred ones, limits, a schedule, retention,
    days of the record, jobs of a worker that died, and its farewell.
    """
    monkeypatch.setattr(pruner, "SHORTEST_INTERVAL", 0.05)
    with roles.connect("admin") as admin:
        day = f"finished_{datetime.now(UTC) + timedelta(days=7):%Y%m%d}"
        admin.execute(roles.bind("drop table {schema}." + day))
        admin.execute(
            roles.bind(
                "create table {schema}.finished_20200101 partition of {schema}.finished "
                "for values from ('2020-01-01 00:00+00') to ('2020-01-02 00:00+00')"
            )
        )
        admin.execute(
            roles.bind("insert into {schema}.worker (worker_id, name, entrypoints, max_crashes, lease) "
                       "values (1, 'dead', array['work'], array[5], 1)")
        )  # fmt: skip
        admin.execute(
            roles.bind(
                "insert into {schema}.running (job_id, worker_id, claim_no, seq, entrypoint, priority, attempt, "
                "crashes, created_at, claimed_at, payload) "
                "values (nextval('{schema}.job_id_seq'), 1, 1, 1, 'work', 0, 1, 0, now(), now(), 'succeed')"
            )
        )
    app = PgQueuer(roles.conninfo("work"), schema=roles.schema)
    seen: Counter[bytes] = Counter()
    fired = anyio.Event()

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
            case b"snooze" if seen[b"snooze"] == 1:
                raise Snooze(0.01)

    @app.entrypoint("limited", concurrency_limit=2, requests_per_second=500)
    async def limited(job: Job) -> None:
        seen[b"limited"] += 1

    @app.schedule("tick", "* * * * * *")
    async def tick(schedule: Schedule) -> None:
        fired.set()

    async with PsycopgDriver(roles.conninfo("produce")) as driver:
        queries = Queries(driver, schema=roles.schema)
        ways = [b"succeed", b"fail", b"cancel", b"retry", b"snooze"]
        await queries.enqueue(["work"] * len(ways), ways)
        await queries.enqueue(["limited"] * 20)
        await queries.enqueue("work", b"later", execute_after=timedelta(milliseconds=50))
    async with running_worker(app, lease=2, retention={"successful": 0}):
        with anyio.fail_after(30):
            await fired.wait()
            while sum(seen.values()) < 30 or [0, 2] != [await count(roles, "running"), await count(roles, "finished")]:  # noqa: ASYNC110
                await anyio.sleep(0.05)
    expected = {b"succeed": 2, b"fail": 2, b"cancel": 1, b"retry": 2, b"snooze": 2, b"later": 1, b"limited": 20}
    assert expected == seen
    with roles.connect("read") as conn:
        statuses = conn.execute(roles.bind("select status from {schema}.finished order by 1")).fetchall()
        assert [("cancelled",), ("failed",)] == statuses
        assert [(0,)] == conn.execute(roles.bind("select count(*) from {schema}.worker")).fetchall()
        days = conn.execute(
            "select relname from pg_class where relnamespace = to_regnamespace(%s)::oid and relname = any(%s)",
            [f'"{roles.schema}"', [day, "finished_20200101"]],
        ).fetchall()
        assert [(day,)] == days


async def count(roles: Roles, table: str) -> int:
    """How many rows a table has."""
    with roles.connect("read") as conn:
        ((number,),) = conn.execute(roles.bind("select count(*) from {schema}." + table)).fetchall()
        assert isinstance(number, int)
        return number


@anyio_test
async def test_a_worker_drains_and_its_handlers_enqueue(roles: Roles) -> None:
    """Handlers enqueue with the driver of the worker, which needs no other role for that."""
    app = PgQueuer(roles.conninfo("work"), schema=roles.schema)
    done: list[bytes | None] = []

    @app.entrypoint("parent")
    async def parent(job: Job) -> None:
        async with PsycopgDriver(roles.conninfo("work")) as driver:
            await Queries(driver, schema=roles.schema).enqueue("child", b"from the parent")

    @app.entrypoint("child")
    async def child(job: Job) -> None:
        done.append(job.data)

    with roles.connect("produce") as conn:
        SyncQueries(conn, schema=roles.schema).enqueue("parent")
    await drain(app)
    assert [b"from the parent"] == done


def test_a_reader_reads(roles: Roles) -> None:
    """Jobs, workers and schedules, in full."""
    with roles.connect("produce") as conn:
        (job_id,) = SyncQueries(conn, schema=roles.schema).enqueue("fetch", b"payload")
    with roles.connect("read") as conn:
        queries = SyncQueries(conn, schema=roles.schema)
        record = queries.get_job(job_id)
        assert record is not None
        assert b"payload" == record.payload
        assert {job_id: JobStatus.QUEUED} == queries.job_status([job_id])
        assert {"fetch": 1} == queries.queue_size()
        assert ([], []) == (queries.workers(), queries.schedules())


@anyio_test
async def test_the_owner_migrates_on_any_backend(roles: Roles) -> None:
    """The asynchronous form needs no other rights."""
    async with PsycopgDriver(roles.conninfo("migrate")) as driver, driver.connection() as conn:
        assert [] == await migrate(conn, roles.schema)


def test_the_command_line(roles: Roles) -> None:
    """What is printed is what is applied. A role has what it was last named for, and nothing from before."""
    options = [f"--produce={roles.name('nobody')}", f"--read={roles.name('nobody')}", f"--schema={roles.schema}"]
    printed = CliRunner().invoke(program, ["grants", *options])
    assert printed.exit_code == 0
    applied = CliRunner().invoke(program, ["grants", "--apply", f"--dsn={roles.conninfo('migrate')}", *options])
    assert applied.exit_code == 0, applied.output
    assert "1 role may now use the schema" in applied.stdout
    with roles.connect("nobody") as conn, roles.connect("migrate") as owner:
        queries = SyncQueries(conn, schema=roles.schema)
        (job_id,) = queries.enqueue("fetch")
        assert queries.get_job(job_id) is not None
        owner.execute(grants_sql(roles.schema, {Purpose.READ: [roles.name("nobody")]}))
        assert queries.get_job(job_id) is not None
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            queries.enqueue("fetch")
        owner.execute(printed.stdout.encode())
        queries.enqueue("fetch")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "grants needs a role: name one with --migrate"),
        (["--work="], "a role must have a name without line breaks"),
        (["--work=a\nb"], "a role must have a name without line breaks"),
        (["--work=$grants$"], "and dollar signs, not '$grants$'"),
        ([f"--work={'é' * 32}"], "is longer than 63 bytes"),
    ],
)
def test_misuse(arguments: list[str], said: str) -> None:
    """What cannot be the name of a role is refused with 2 and one line that says why."""
    result = CliRunner().invoke(program, ["grants", *arguments])
    assert (2, 1) == (result.exit_code, len(result.stderr.splitlines()))
    assert said in result.stderr


def test_what_is_missing_is_named(dsn: str, schema: str, empty_schema: str) -> None:
    """A role that does not exist, and tables that do not."""
    unknown = CliRunner().invoke(
        program, ["grants", "--apply", "--read=no such role", f"--dsn={dsn}", f"--schema={schema}"]
    )
    assert (1, True) == (unknown.exit_code, 'role "no such role" does not exist' in unknown.stderr)
    early = CliRunner().invoke(program, ["grants", "--apply", "--read=x", f"--dsn={dsn}", "--schema=none_here"])
    assert (1, True) == (early.exit_code, "run `pgq-anyio migrate --schema none_here`" in early.stderr)


def test_two_owners_are_refused() -> None:
    """Tables have one owner."""
    with pytest.raises(ConfigurationError, match="name one role to migrate, not a, b"):
        grants_sql("pgq_anyio", {Purpose.MIGRATE: ["a", "b"]})


#: What no role of that purpose may do, beside what only the owner may.
FORBIDDEN = {
    "produce": [
        "select payload from {schema}.queued",
        "select 1 from {schema}.running",
        "select 1 from {schema}.finished",
        "delete from {schema}.queued",
        "update {schema}.queued set priority = 9",
        "insert into {schema}.running default values",
        "update {schema}.worker set sleeping = true",
    ],
    "operate": [
        "insert into {schema}.running default values",
        "insert into {schema}.worker default values",
        "update {schema}.finished set status = 'successful'",
        "update {schema}.queued set payload = 'other'",
        "update {schema}.running set worker_id = 0",
        "update {schema}.schedule set worker_id = 0",
        "insert into {schema}.limiter default values",
    ],
    "work": ["truncate {schema}.queued", "delete from {schema}.migration", "delete from {schema}.schedule"],
    "read": [
        "insert into {schema}.queued default values",
        "delete from {schema}.finished",
        "update {schema}.schedule set paused = true",
        "select 1 from {schema}.queued for update",
        "select nextval('{schema}.job_id_seq')",
        "select {schema}.enqueue('fetch')",
    ],
    "nobody": ["select 1 from {schema}.queued", "select {schema}.enqueue('fetch')"],
}
#: What only the owner of the tables may do.
FOR_THE_OWNER = [
    "drop table {schema}.queued",
    "alter table {schema}.queued add column other text",
    "create table {schema}.other (id int)",
    "create function {schema}.other() returns int language sql as 'select 1'",
    "insert into {schema}.migration default values",
    "truncate {schema}.finished",
    "drop function {schema}.drop_finished_day(date)",
]


@pytest.mark.parametrize("role", FORBIDDEN)
def test_what_a_role_must_not_do(roles: Roles, role: str) -> None:
    """Everything that is not its purpose is refused by the server."""
    with roles.connect(role) as conn:
        for command in [*FORBIDDEN[role], *FOR_THE_OWNER]:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(roles.bind(command))


@pytest.mark.parametrize("role", ["produce", "operate", "read", "nobody"])
def test_days_are_for_workers(roles: Roles, role: str) -> None:
    """The functions that run with the rights of the owner are for the role of the workers only."""
    with roles.connect(role) as conn:
        for call in ("make_finished_day(current_date + 9)", "drop_finished_day(current_date - 9)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(roles.bind("select {schema}." + call))


@pytest.mark.parametrize(
    "call",
    [
        "make_finished_day(current_date + 90)",
        "make_finished_day(null)",
        "drop_finished_day(current_date + 1)",
        "drop_finished_day(null)",
    ],
)
def test_days_out_of_turn_are_refused(roles: Roles, call: str) -> None:
    """A worker's role cannot drop the present record with them, nor make tables without end."""
    with roles.connect("work") as conn, pytest.raises(psycopg.errors.InvalidParameterValue):
        conn.execute(roles.bind("select {schema}." + call))

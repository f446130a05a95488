"""Making, judging and removing the tables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql

from pgq_anyio import SchemaError, SyncQueries
from pgq_anyio._db import Connection
from pgq_anyio._errors import ConfigurationError
from pgq_anyio._store._sql import Store, _blocks
from pgq_anyio._store.migrations import (
    _LOCK,
    _read,
    check_schema,
    check_schema_sync,
    migrate,
    migrate_sync,
    migration_sql,
    migrations,
    uninstall,
    uninstall_sync,
)
from tests.worker.fleet import wait_until

NAMES = [
    "000_migration",
    "001_tables",
    "002_enqueue",
    "003_days",
    "004_operating",
    "005_day_functions",
    "006_run_now",
    "007_end_of_time",
    "008_queue_size",
    "009_running_cancel",
    "010_limit_changes",
]
HOSTILE = "a \"quoted\" 'name' {with} %s 100% é;\n--\nselect\rx"


@pytest.fixture
def sync_conn(server_dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        yield connection


def exists(connection: psycopg.Connection, schema: str) -> bool:
    return bool(connection.execute("select from pg_namespace where nspname = %s", [schema]).fetchall())


def catalog(connection: psycopg.Connection, schema: str) -> list[tuple[object, ...]]:
    """Every relation, constraint, function and column default of a schema."""
    return connection.execute(
        """
        select c.relname, c.relkind::text, array_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
            || coalesce(' ' || replace(pg_get_expr(d.adbin, d.adrelid), n.nspname, ''), '') order by a.attnum)
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
        left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
        where n.nspname = %s group by 1, 2
        union all select proname, 'function', null from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname = %s
        order by 1, 2
        """,
        [schema, schema],
    ).fetchall()


def migrate_to(connection: psycopg.Connection, schema: str, last: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make the schema as it was when ``last`` was the latest migration; the names of the later ones."""
    known = migrations()
    with monkeypatch.context() as patch:
        older = {name: text for name, text in known.items() if name <= last}
        patch.setattr("pgq_anyio._store.migrations.migrations", lambda: older)
        migrate_sync(connection, schema)
    return [name for name in known if name > last]


@pytest.mark.promise(45)
def test_migrate_and_uninstall_twice(sync_conn: psycopg.Connection, empty_schema: str) -> None:
    """Both say what they did, and the second call finds nothing to do."""
    assert NAMES == list(migrations())
    assert NAMES == migrate_sync(sync_conn, empty_schema)
    assert [] == migrate_sync(sync_conn, empty_schema)
    check_schema_sync(sync_conn, Store(empty_schema))
    assert uninstall_sync(sync_conn, empty_schema)
    assert not exists(sync_conn, empty_schema)
    assert not uninstall_sync(sync_conn, empty_schema)


@pytest.mark.anyio
@pytest.mark.promise(45)
async def test_the_asynchronous_form_does_the_same(conn: Connection, empty_schema: str) -> None:
    """The schema comes and goes on our own connection too."""
    assert NAMES == await migrate(conn, empty_schema)
    assert [] == await migrate(conn, empty_schema)
    await check_schema(conn, Store(empty_schema))
    assert await uninstall(conn, empty_schema)
    assert not await uninstall(conn, empty_schema)
    with pytest.raises(SchemaError, match="run `pgq-anyio migrate --schema"):
        await check_schema(conn, Store(empty_schema))


@pytest.mark.promise(45)
def test_five_processes_migrate_at_once(server_dsn: str, empty_schema: str) -> None:
    """Each migration is applied by exactly one of them, and all of them end well."""
    program = (
        "import sys, psycopg; from pgq_anyio._store.migrations import migrate_sync\n"
        "with psycopg.connect(sys.argv[1]) as connection:\n"
        "    sys.stdin.readline()\n"
        "    print(*migrate_sync(connection, sys.argv[2]))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, server_dsn, empty_schema],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(5)
    ]
    with ThreadPoolExecutor(5) as threads:
        answers = list(threads.map(lambda process: process.communicate("go\n", timeout=30)[0], processes))
    assert [0] * 5 == [process.returncode for process in processes]
    assert NAMES == sorted(name for answer in answers for name in answer.split())


@pytest.mark.promise(45)
def test_an_interrupted_migration_is_taken_up(
    sync_conn: psycopg.Connection, empty_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schema that has only the first migrations gets the others."""
    expected = migrate_to(sync_conn, empty_schema, "004_operating", monkeypatch)
    with pytest.raises(SchemaError, match=r"older than this code.*005_day_functions.*run `pgq-anyio migrate --schema"):
        check_schema_sync(sync_conn, Store(empty_schema))
    assert expected == migrate_sync(sync_conn, empty_schema)
    check_schema_sync(sync_conn, Store(empty_schema))


def test_times_that_python_cannot_read_are_mended(
    sync_conn: psycopg.Connection, empty_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that an earlier schema let in far beyond the end of Python's dates, or before 1970, are kept with others."""
    expected = migrate_to(sync_conn, empty_schema, "006_run_now", monkeypatch)
    prefix = sql.Identifier(empty_schema)
    sync_conn.cursor_factory = psycopg.ClientCursor  # for two statements with parameters
    times = ["infinity", "12025-06-01", "9999-12-31", "2031-01-01", "1969-12-31", "0044-03-15 BC", "-infinity"]
    for time in times:
        sync_conn.execute(
            sql.SQL(
                "insert into {0}.deferred (entrypoint, run_at, created_at) values ('x', %s, %s);"
                "insert into {0}.queued (entrypoint, created_at) values ('x', %s)"
            ).format(prefix),
            [time] * 3,
        )
    assert expected == migrate_sync(sync_conn, empty_schema)
    sync_conn.execute("set timezone = 'UTC'")
    with SyncQueries(sync_conn, schema=empty_schema) as queries:
        found = [record.run_at.date().isoformat() for record in queries.list_jobs() if record.run_at is not None]
        assert {"x": 7} == queries.queue_size()
    assert [*["9998-12-31"] * 3, "2031-01-01", *["1970-01-02"] * 3] == found[::-1]


@pytest.mark.promise(39)
def test_a_newer_schema_is_not_touched(sync_conn: psycopg.Connection, empty_schema: str) -> None:
    """Code that does not know a migration neither runs on the schema nor changes it."""
    migrate_sync(sync_conn, empty_schema)
    sync_conn.execute(
        sql.SQL("insert into {}.migration (name) values ('900_future')").format(sql.Identifier(empty_schema))
    )
    for call in (
        lambda: check_schema_sync(sync_conn, Store(empty_schema)),
        lambda: migrate_sync(sync_conn, empty_schema),
    ):
        with pytest.raises(SchemaError, match=r"newer than this code.*900_future"):
            call()


@pytest.mark.promise(39)
def test_the_message_for_a_missing_schema_can_be_pasted(sync_conn: psycopg.Connection) -> None:
    """The default schema needs no option, any other one is quoted for the shell."""
    with pytest.raises(SchemaError, match=r"run `pgq-anyio migrate`"):
        check_schema_sync(sync_conn, Store("pgq_anyio"))
    with pytest.raises(SchemaError, match=r"run `pgq-anyio migrate --schema 'two words'`"):
        check_schema_sync(sync_conn, Store("two words"))


@pytest.mark.promise(45)
def test_uninstall_spares_what_is_not_ours(sync_conn: psycopg.Connection, empty_schema: str) -> None:
    """A schema that holds something else, or that something depends on, stays with all that is in it."""
    migrate_sync(sync_conn, empty_schema)
    prefix = sql.Identifier(empty_schema)
    before = catalog(sync_conn, empty_schema)
    sync_conn.execute(sql.SQL("create type {}.mine as enum ('a')").format(prefix))
    with pytest.raises(SchemaError, match=r"not pgq_anyio's.*type .*mine"):
        uninstall_sync(sync_conn, empty_schema)
    assert before == catalog(sync_conn, empty_schema)
    view = sql.Identifier(f"view_{empty_schema}")
    sync_conn.execute(sql.SQL("drop type {}.mine").format(prefix))
    sync_conn.execute(sql.SQL("create view public.{} as select job_id from {}.finished").format(view, prefix))
    with pytest.raises(SchemaError, match=f"view .*view_{empty_schema}"):
        uninstall_sync(sync_conn, empty_schema)
    assert before == catalog(sync_conn, empty_schema)
    sync_conn.execute(sql.SQL("drop view public.{}").format(view))
    assert uninstall_sync(sync_conn, empty_schema)


def test_uninstall_spares_a_schema_that_never_was_ours(sync_conn: psycopg.Connection, empty_schema: str) -> None:
    """An empty schema of the same name is not ours to drop."""
    sync_conn.execute(sql.SQL("create schema {}").format(sql.Identifier(empty_schema)))
    assert not uninstall_sync(sync_conn, empty_schema)
    assert exists(sync_conn, empty_schema)


def test_a_prepared_schema_is_used(sync_conn: psycopg.Connection, empty_schema: str) -> None:
    """Where an administrator made the schema, the tables are made in it."""
    sync_conn.execute(sql.SQL("create schema {}").format(sql.Identifier(empty_schema)))
    assert NAMES == migrate_sync(sync_conn, empty_schema)


def test_the_script_makes_the_same(sync_conn: psycopg.Connection, empty_schema: str) -> None:
    """What ``--sql`` prints makes the tables that ``migrate`` makes."""
    migrate_sync(sync_conn, empty_schema)
    expected = catalog(sync_conn, empty_schema)
    uninstall_sync(sync_conn, empty_schema)
    script = [line for line in migration_sql(empty_schema).splitlines() if not line.startswith("\\")]
    sync_conn.execute("\n".join(script).encode())
    check_schema_sync(sync_conn, Store(empty_schema))
    assert expected == catalog(sync_conn, empty_schema)


def test_a_hostile_schema_name_is_a_name(sync_conn: psycopg.Connection) -> None:
    """Quotes, braces, percent signs and placeholders in the name are part of the name."""
    try:
        assert NAMES == migrate_sync(sync_conn, HOSTILE)
        prefix = sql.Identifier(HOSTILE)
        sync_conn.execute(sql.SQL("select {}.enqueue('fetch')").format(prefix))
        with psycopg.ClientCursor(sync_conn) as cursor:
            assert (1,) == cursor.execute(sql.SQL("select count(*) from {}.queued").format(prefix)).fetchone()
    finally:
        assert uninstall_sync(sync_conn, HOSTILE)


def test_no_comment_has_a_name_in_it() -> None:
    """A line break in the name would end the comment, and the rest of it would be a statement."""
    for name, text in [*migrations().items(), *_blocks().items(), ("uninstall", _read("uninstall.sql"))]:
        assert [] == [line for line in text.splitlines() if "{" in line.partition("--")[2]], name


@pytest.mark.parametrize("name", ["", "a\x00b", "x" * 54, "x$function$y"])
def test_impossible_schema_names_are_refused(name: str) -> None:
    """What PostgreSQL would cut, or what could end the quotes around a function, is no name."""
    with pytest.raises(ConfigurationError):
        Store(name)


def test_a_foreign_search_path_changes_nothing(sync_conn: psycopg.Connection, empty_schema: str) -> None:
    """Functions and types that a user's search path puts in front are not used, and time limits are lifted."""
    sync_conn.execute("set search_path to pg_temp, public; set statement_timeout = '1ms'")
    sync_conn.execute("set default_transaction_isolation = 'serializable'")
    assert NAMES == migrate_sync(sync_conn, empty_schema)


def test_a_time_limit_of_transactions_is_lifted(
    server_dsn: str, sync_conn: psycopg.Connection, empty_schema: str
) -> None:
    """A migration that waits for its turn is not cut off by the limit of a role, which PostgreSQL has from 17 on."""
    if sync_conn.info.server_version < 170000:
        pytest.skip("there is no transaction_timeout")
    sync_conn.execute("set transaction_timeout = '1s'")
    # In a transaction pg_stat_activity would stay what it was at the first look.
    observer = psycopg.connect(server_dsn, autocommit=True)
    with ThreadPoolExecutor() as pool, psycopg.connect(server_dsn) as other, observer:
        other.execute(Store(empty_schema).bind(_LOCK))
        done = pool.submit(migrate_sync, sync_conn, empty_schema)
        waits_for_long = (
            "select 1 from pg_stat_activity where pid = %s and cardinality(pg_blocking_pids(pid)) > 0 "
            "and clock_timestamp() - xact_start > interval '1.5 s'"
        )
        wait_until(lambda: done.done() or observer.execute(waits_for_long, [sync_conn.info.backend_pid]).fetchall())
        other.rollback()
        assert NAMES == done.result(30)


@pytest.mark.anyio
async def test_no_migration_in_an_open_transaction(conn: Connection, server_dsn: str, empty_schema: str) -> None:
    """The lock would be kept until a commit that may never come."""
    async with conn.transaction():
        await conn.execute("select 1")
        with pytest.raises(RuntimeError, match="open transaction"):
            await migrate(conn, empty_schema)
    with psycopg.connect(server_dsn) as connection:
        connection.execute("select 1")
        with pytest.raises(RuntimeError, match="open transaction"):
            uninstall_sync(connection, empty_schema)


@pytest.mark.parametrize("work", ["migrate", "uninstall"])
def test_the_victim_of_a_deadlock_tries_again(
    server_dsn: str, sync_conn: psycopg.Connection, empty_schema: str, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    """Two transactions each hold what the other wants: PostgreSQL ends that of the migration, which then succeeds."""
    migrate_sync(sync_conn, empty_schema)
    later = "alter table {schema}.finished add column note text; alter table {schema}.queued add column note text"
    names = {**migrations(), "901_notes": later}
    do, tables, expected = {
        "migrate": (migrate_sync, ["queued", "finished"], ["901_notes"]),
        "uninstall": (uninstall_sync, ["deferred", "queued"], True),
    }[work]
    if work == "migrate":
        monkeypatch.setattr("pgq_anyio._store.migrations.migrations", lambda: names)
    sync_conn.execute("set deadlock_timeout = '100ms'")
    first, second = (
        sql.SQL("lock table {} in row exclusive mode").format(sql.Identifier(empty_schema, table)) for table in tables
    )
    with ThreadPoolExecutor() as pool, psycopg.connect(server_dsn) as other, psycopg.connect(server_dsn) as observer:
        other.execute("set deadlock_timeout = '1h'")  # so that it never is the victim
        other.execute(first)
        done = pool.submit(do, sync_conn, empty_schema)
        blocked = "select 1 where cardinality(pg_blocking_pids(%s)) > 0"
        wait_until(lambda: observer.execute(blocked, [sync_conn.info.backend_pid]).fetchall())
        other.execute(second)
        other.rollback()
        assert expected == done.result(30)

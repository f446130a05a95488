"""Prepared statements: every type, every way in which a prepared statement can be lost, several in one round trip."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

import anyio
import psycopg
import pytest
from psycopg import pq

from pgq_anyio._db import Connection, Statement, batch, is_transient

pytestmark = pytest.mark.anyio

NOW = datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)

VALUES: dict[str, list[object]] = {
    "bytea": [b"", bytes(range(256)), b"x" * 1_000_000, None],
    "text": ["", "ä\U0001f600%s%%", None],
    "bigint": [0, -(2**63), 2**63 - 1, None],
    "int": [1, -(2**31), None],
    "float8": [0.0, 1e300, float("inf"), 3, None],
    "bool": [True, False, None],
    "timestamptz": [NOW, None],
    "jsonb": [{"a": [1, None, "b"]}, [1, 2], "text", None],
    "text[]": [[], ["a", None, ""], [None], None],
    "bytea[]": [[], [b"\0", None, b""], [None, None], None],
    "bigint[]": [[], [1, 2**62, None], [1] * 1000, None],
    "float8[]": [[], [1.5, None], None],
    "bool[]": [[True, None, False], None],
    "timestamptz[]": [[NOW, None], [], None],
}


@pytest.fixture(params=[True, False], ids=["prepared", "unprepared"])
def use_statements(request: pytest.FixtureRequest, conn: Connection) -> bool:
    conn.use_statements = request.param
    return conn.use_statements


async def rows(conn: Connection, query: str) -> list[tuple[Any, ...]]:
    return await (await conn.execute(query.encode())).fetchall()


@pytest.mark.parametrize("type_name", VALUES)
async def test_values_come_back_as_they_were(conn: Connection, use_statements: bool, type_name: str) -> None:
    """Every value of every type that the queue uses survives the round trip, on the same prepared statement."""
    echo = Statement("echo", f"select %(value)s::{type_name}")
    for value in VALUES[type_name]:
        assert [(value,)] == await echo.fetch(conn, value=value)


async def test_text_forms(conn: Connection) -> None:
    """A type without a binary form is sent as text, beside others that are binary."""
    echo = Statement("echo", "select %(a)s::xid8::text, %(b)s::bigint, %(c)s::pg_snapshot::text")
    assert [("77", 5, "10:20:10")] == await echo.fetch(conn, a=77, b=5, c="10:20:10")
    assert [(None, None, None)] == await echo.fetch(conn, a=None, b=None, c=None)


async def test_no_rows_then_rows(conn: Connection, use_statements: bool) -> None:
    """A result without rows does not spoil the reading of later ones."""
    some = Statement("some", "select g, 'row ' || g from generate_series(1, %(n)s::int) as g where g %% 2 = 1")
    assert [] == await some.fetch(conn, n=0)
    assert [(1, "row 1"), (3, "row 3")] == await some.fetch(conn, n=4)
    assert [] == await some.fetch(conn, n=0)


async def test_run_counts_rows(conn: Connection, use_statements: bool) -> None:
    """``run`` says how many rows were affected; ``fetch`` of a command gives no rows."""
    await conn.execute("create temp table t (a int)")
    insert = Statement("insert", "insert into t select * from unnest(%(a)s::int[])")
    assert 3 == await insert.run(conn, a=[1, 2, 3])
    assert 0 == await insert.run(conn, a=[])
    assert [] == await insert.fetch(conn, a=[4])
    assert 0 == await Statement("set", "set local work_mem = '4MB'").run(conn)


async def test_names_are_repeated(conn: Connection) -> None:
    """A placeholder may stand in several places."""
    assert [(3, 9)] == await Statement("s", "select %(a)s::int, %(b)s::int * %(a)s::int").fetch(conn, a=3, b=3)


async def test_wrong_parameters(conn: Connection) -> None:
    """A missing or unknown parameter is refused by name, and nothing is sent."""
    statement = Statement("pair", "select %(a)s::int, %(b)s::int")
    with pytest.raises(TypeError, match=r"'pair': missing \['b'\], unknown \[\]"):
        await statement.fetch(conn, a=1)
    with pytest.raises(TypeError, match=r"missing \[\], unknown \['c'\]"):
        await statement.fetch(conn, a=1, b=2, c=3)
    with pytest.raises(TypeError, match="named placeholders"):
        Statement("positional", "select %s")


async def test_a_bad_value_leaves_the_connection_usable(conn: Connection, use_statements: bool) -> None:
    """A value that does not fit is refused before anything is sent."""
    number = Statement("number", "select %(a)s::int")
    with pytest.raises((psycopg.Error, TypeError, struct.error)):
        await number.fetch(conn, a="not a number")
    assert [(1,)] == await number.fetch(conn, a=1)


@pytest.mark.parametrize("query", ["select 1 / %(a)s::int", "select no_such_column, %(a)s::int", "selekt %(a)s"])
async def test_errors(conn: Connection, use_statements: bool, query: str) -> None:
    """An error of the server is raised, and the connection is usable afterwards."""
    with pytest.raises((psycopg.errors.DivisionByZero, psycopg.errors.UndefinedColumn, psycopg.errors.SyntaxError)):
        await Statement("bad", query).fetch(conn, a=0)
    assert [(1,)] == await Statement("good", "select %(a)s::int").fetch(conn, a=1)
    assert pq.TransactionStatus.IDLE == conn.pgconn.transaction_status


async def test_same_name_twice(conn: Connection) -> None:
    """Two statements with one name, as from two schemas, do not clash on a connection."""
    assert [(1,)] == await Statement("same", "select 1").fetch(conn)
    assert [(2,)] == await Statement("same", "select 2").fetch(conn)
    assert [(3,)] == await Statement("same" * 30, "select 3").fetch(conn)


async def test_nothing_stays_on_the_server_unprepared(conn: Connection) -> None:
    """Without ``use_statements`` the server keeps no prepared statement."""
    conn.use_statements = False
    conn.prepare_threshold = None
    for _ in range(10):
        await Statement("s", "select %(a)s::int").fetch(conn, a=1)
        await conn.execute("select %s::int", [1])
    assert [(0,)] == await rows(conn, "select count(*) from pg_prepared_statements")


async def test_prepared_once(conn: Connection) -> None:
    """A statement is prepared once per connection, not per call."""
    statement = Statement("s", "select %(a)s::int")
    for i in range(20):
        await statement.fetch(conn, a=i)
    assert [(1,)] == await rows(conn, "select count(*) from pg_prepared_statements where name like 's\\_%'")


async def test_discarded(conn: Connection) -> None:
    """Prepared statements that are gone are prepared again, once, outside a transaction."""
    await conn.execute("create temp table t (a int)")
    insert = Statement("insert", "insert into pg_temp.t values (%(a)s::int)")
    await insert.run(conn, a=1)
    await conn.execute("deallocate all")
    assert 1 == await insert.run(conn, a=2)
    assert [(2,)] == await rows(conn, "select count(*) from t")
    await conn.execute("deallocate all")
    assert [[], []] == await batch(conn, (insert, {"a": 3}), (insert, {"a": 4}))
    assert [(4,)] == await rows(conn, "select count(*) from t")


async def test_discarded_together(conn: Connection) -> None:
    """All that a batch needs is prepared again, not only the first that is missed."""
    first, second, third = (Statement(f"s{number}", f"select {number}") for number in range(3))
    expected = [[(0,)], [(1,)], [(2,)]]
    assert expected == await batch(conn, (first, {}), (second, {}), (third, {}))
    await conn.execute("deallocate all")
    assert expected == await batch(conn, (first, {}), (second, {}), (third, {}))


async def test_discarded_by_a_rollback(conn: Connection) -> None:
    """After a rollback psycopg discards all prepared statements, if it has prepared any. Ours still work, also as the
    first thing in the next transaction, where nothing could be repeated.
    """
    conn.prepare_threshold = 0
    statement = Statement("s", "select %(a)s::int")
    for number in range(3):
        async with conn.transaction(force_rollback=True):
            assert [(number,)] == await statement.fetch(conn, a=number)
            await conn.execute("select %s", [number])
    async with conn.transaction():
        assert [[(7,)], [(8,)]] == await batch(conn, (statement, {"a": 7}), (statement, {"a": 8}))


async def test_discarded_in_a_transaction(conn: Connection) -> None:
    """Inside a transaction, which the error has ended, it is raised; the next call works."""
    statement = Statement("s", "select %(a)s::int")
    await statement.fetch(conn, a=1)
    with pytest.raises(psycopg.errors.InvalidSqlStatementName):  # noqa: PT012
        async with conn.transaction():
            await conn.execute("deallocate all")
            await statement.fetch(conn, a=2)
    assert [(3,)] == await statement.fetch(conn, a=3)


async def test_outdated(conn: Connection) -> None:
    """A statement whose result changed its type is prepared again."""
    await conn.execute("create temp table t (a int); insert into t values (7)")
    read = Statement("read", "select a from t")
    assert [(7,)] == await read.fetch(conn)
    await conn.execute("alter table t alter a type text")
    assert [("7",)] == await read.fetch(conn)
    await conn.execute("alter table t alter a type int using a::int")
    assert [[(7,)]] == await batch(conn, (read, {}))


async def test_batch_is_one_transaction(conn: Connection) -> None:
    """A batch is all or nothing, and its results are in order."""
    await conn.execute("create temp table t (a int)")
    insert = Statement("insert", "insert into t values (%(a)s::int) returning a")
    count = Statement("count", "select count(*) from t")
    divide = Statement("divide", "select 1 / %(a)s::int")
    assert [[(1,)], [(1,)], [(2,)]] == await batch(conn, (insert, {"a": 1}), (count, {}), (insert, {"a": 2}))
    with pytest.raises(psycopg.errors.DivisionByZero):
        await batch(conn, (insert, {"a": 3}), (divide, {"a": 0}), (insert, {"a": 4}))
    assert [(2,)] == await count.fetch(conn)
    assert [] == await batch(conn)


async def test_batch_with_its_own_transaction(conn: Connection) -> None:
    """BEGIN and COMMIT may be part of a batch; after an error in between nothing is left open."""
    await conn.execute("create temp table t (a int)")
    begin, commit = Statement("begin", "begin"), Statement("commit", "commit")
    insert = Statement("insert", "insert into t values (%(a)s::int)")
    divide = Statement("divide", "select 1 / %(a)s::int")
    await batch(conn, (begin, {}), (insert, {"a": 1}), (commit, {}))
    with pytest.raises(psycopg.errors.DivisionByZero):
        await batch(conn, (begin, {}), (insert, {"a": 2}), (divide, {"a": 0}), (commit, {}))
    assert pq.TransactionStatus.IDLE == conn.pgconn.transaction_status
    assert [(1,)] == await rows(conn, "select count(*) from t")


async def test_batch_inside_a_transaction(conn: Connection) -> None:
    """A batch in an open transaction is part of it: it neither commits nor rolls it back by itself."""
    await conn.execute("create temp table t (a int)")
    insert = Statement("insert", "insert into t values (%(a)s::int)")
    async with conn.transaction(force_rollback=True):
        await batch(conn, (insert, {"a": 1}))
        assert pq.TransactionStatus.INTRANS == conn.pgconn.transaction_status
    assert [(0,)] == await rows(conn, "select count(*) from t")


async def test_without_autocommit(dsn: str) -> None:
    """On a connection without autocommit a statement begins a transaction, as ``execute`` does."""
    async with await Connection.connect(dsn, autocommit=False) as conn:
        await Statement("s", "select 1").fetch(conn)
        assert pq.TransactionStatus.INTRANS == conn.pgconn.transaction_status


async def test_in_a_pipeline(conn: Connection) -> None:
    """A statement inside psycopg's pipeline is refused, with what to use instead."""
    async with conn.pipeline():
        with pytest.raises(psycopg.ProgrammingError, match="use batch"):
            await Statement("s", "select 1").fetch(conn)
    assert [(1,)] == await Statement("s", "select 1").fetch(conn)


async def test_tasks_share_a_connection(conn: Connection) -> None:
    """Concurrent calls on one connection wait for each other and get their own answers."""
    echo = Statement("echo", "select %(a)s::int, pg_sleep(0.001)")
    answers: list[int] = []

    async def ask(i: int) -> None:
        answers.append((await echo.fetch(conn, a=i))[0][0])

    async with anyio.create_task_group() as tasks:
        for i in range(40):
            tasks.start_soon(ask, i)
    assert list(range(40)) == sorted(answers)


@pytest.mark.promise(15)
@pytest.mark.parametrize("ending", ["error", "shutdown"])
@pytest.mark.parametrize("how", ["single", "batch", "settings"])
async def test_what_fails_at_the_commit_is_no_success(
    conn: Connection, server_dsn: str, empty_schema: str, use_statements: bool, how: str, ending: str
) -> None:
    """The answer to the statement itself was sent before its transaction was committed, and says that all is well."""
    deed = {
        "error": "raise serialization_failure",
        "shutdown": "perform pg_terminate_backend(pg_backend_pid()), pg_sleep(10)",
    }[ending]
    await conn.execute(
        f"""
        create schema {empty_schema};
        create table {empty_schema}.job (id integer);
        create function {empty_schema}.at_commit() returns trigger language plpgsql as $$begin {deed}; end$$;
        create constraint trigger at_commit after insert on {empty_schema}.job deferrable initially deferred
            for each row execute function {empty_schema}.at_commit();
        """.encode()
    )
    add = Statement("add", f"insert into {empty_schema}.job values (%(id)s::integer) returning id")
    one = Statement("one", "select 1")
    other = await Connection.connect(
        server_dsn, use_statements=use_statements, pooled=how == "settings", settings={"jit": "off"}
    )

    async def try_to_add() -> None:
        if how == "batch":
            await batch(other, (add, {"id": 1}), (one, {}))
        else:
            await add.fetch(other, id=1)

    try:
        with pytest.raises(psycopg.OperationalError) as caught:
            await try_to_add()
        assert is_transient(caught.value)
        assert other.closed is (ending == "shutdown")
        if ending == "error":
            assert [(1,)] == await one.fetch(other)
    finally:
        other.abort()
    assert [] == await rows(conn, f"select id from {empty_schema}.job")

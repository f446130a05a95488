"""Every operation, cancelled at every await: afterwards the connection is usable and clean, or it is closed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import anyio.lowlevel
import psycopg
import pytest
from psycopg import pq

from pgq_anyio._db import Connection, Statement, batch
from tests.bounds import Within
from tests.db.steps import cancel_everywhere

pytestmark = pytest.mark.anyio

Operation = Callable[[Connection], Awaitable[object]]

INSERT = Statement("insert", "insert into t select * from unnest(%(values)s::int[])")
COUNT = Statement("count", "select count(*) from t")
SLOW = Statement("slow", "select pg_sleep(0.02)")
BEGIN = Statement("begin", "begin")
COMMIT = Statement("commit", "commit")


async def execute(conn: Connection) -> None:
    await conn.execute("select pg_sleep(0.01)")


async def execute_prepared(conn: Connection) -> None:
    await conn.execute("select %s::int", [1], prepare=True)


async def fetch_in_pieces(conn: Connection) -> None:
    async with conn.transaction(), conn.cursor("pieces") as cursor:
        await cursor.execute("select * from generate_series(1, 250)")
        assert 250 == len([row async for row in cursor])


async def big_both_ways(conn: Connection) -> None:
    await conn.execute("select %s::text", ["x" * 3_000_000])


async def executemany(conn: Connection) -> None:
    async with conn.cursor() as cursor:
        await cursor.executemany("insert into t values (%s)", [(i,) for i in range(20)])


async def executemany_returning(conn: Connection) -> None:
    async with conn.cursor() as cursor:
        await cursor.executemany("select %s::int, pg_sleep(0.001)", [(i,) for i in range(5)], returning=True)


async def pipeline(conn: Connection) -> None:
    async with conn.pipeline() as opened:
        await conn.execute("insert into t values (1)")
        await opened.sync()
        cursor = await conn.execute("select pg_sleep(0.005)")
        await cursor.fetchone()
        await conn.execute("insert into t values (2)")


async def pipeline_in_transaction(conn: Connection) -> None:
    async with conn.transaction(), conn.pipeline():
        await conn.execute("insert into t values (1)")
        async with conn.transaction():
            await conn.execute("insert into t values (2)")


async def transaction_in_pipeline(conn: Connection) -> None:
    async with conn.pipeline(), conn.transaction():
        await conn.execute("insert into t values (1)")


async def transaction(conn: Connection) -> None:
    async with conn.transaction():
        await conn.execute("insert into t values (1)")
        async with conn.transaction():
            await conn.execute("insert into t values (2)")
        await anyio.lowlevel.checkpoint()


async def transaction_rolled_back(conn: Connection) -> None:
    async with conn.transaction(force_rollback=True):
        await conn.execute("insert into t values (1)")


async def transaction_failed(conn: Connection) -> None:
    try:
        async with conn.transaction():
            await conn.execute("select 1/0")
    except psycopg.errors.DivisionByZero:
        pass


async def copy_in(conn: Connection) -> None:
    async with conn.cursor() as cursor, cursor.copy("copy t from stdin") as copy:
        for i in range(10):
            await copy.write_row((i,))
            await anyio.lowlevel.checkpoint()


async def copy_in_big(conn: Connection) -> None:
    async with conn.cursor() as cursor, cursor.copy("copy big from stdin") as copy:
        for _ in range(40):
            await copy.write("y" * 100_000 + "\n")


async def copy_out(conn: Connection) -> None:
    async with (
        conn.cursor() as cursor,
        cursor.copy("copy (select repeat('x', 9000), pg_sleep(0.001) from generate_series(1, 8)) to stdout") as c,
    ):
        while await c.read():
            pass


async def statement(conn: Connection) -> None:
    await INSERT.run(conn, values=[1, 2, 3])
    await SLOW.fetch(conn)


async def statement_unprepared(conn: Connection) -> None:
    conn.use_statements = False
    conn.statements.clear()
    await COUNT.fetch(conn)
    await COUNT.fetch(conn)


async def batched(conn: Connection) -> None:
    await batch(conn, (INSERT, {"values": [1]}), (SLOW, {}), (COUNT, {}))


async def batched_transaction(conn: Connection) -> None:
    await batch(conn, (BEGIN, {}), (INSERT, {"values": [1]}), (SLOW, {}), (COMMIT, {}))


async def notifications(conn: Connection) -> None:
    await conn.execute("listen c")
    await conn.execute("notify c")
    await conn.wait_notifies(5)
    await conn.wait_notifies(0.02)


async def commit_by_hand(conn: Connection) -> None:
    await conn.execute("begin")
    await conn.execute("insert into t values (1)")
    await conn.commit()
    await conn.execute("begin")
    await conn.rollback()


OPERATIONS = [
    execute,
    execute_prepared,
    fetch_in_pieces,
    big_both_ways,
    executemany,
    executemany_returning,
    pipeline,
    pipeline_in_transaction,
    transaction_in_pipeline,
    transaction,
    transaction_rolled_back,
    transaction_failed,
    copy_in,
    copy_in_big,
    copy_out,
    statement,
    statement_unprepared,
    batched,
    batched_transaction,
    notifications,
    commit_by_hand,
]


async def fresh(dsn: str) -> Connection:
    conn = await Connection.connect(dsn)
    await conn.execute("create temp table t (a int); create temp table big (b text)")
    return conn


@pytest.fixture
async def watcher(anyio_backend: str, dsn: str) -> AsyncIterator[Connection]:
    conn = await Connection.connect(dsn)
    yield conn
    conn.abort()


async def backend_state(watcher: Connection, pid: int) -> str | None:
    cursor = await watcher.execute("select state from pg_stat_activity where pid = %s", [pid])
    row = await cursor.fetchone()
    return None if row is None else row[0]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
async def test_cancelled_at_every_await(dsn: str, watcher: Connection, operation: Operation) -> None:
    """The connection is usable, outside any transaction and pipeline, and its server process idle; or it is closed."""
    conn = await fresh(dsn)
    survived = 0

    async def work() -> None:
        await operation(conn)

    async def check(k: int, cancelled: bool) -> None:
        nonlocal conn, survived
        if conn.closed:
            conn = await fresh(dsn)
            return
        survived += 1
        if operation is commit_by_hand:
            await conn.rollback()
        assert pq.TransactionStatus.IDLE == conn.pgconn.transaction_status, k
        assert pq.PipelineStatus.OFF == conn.pgconn.pipeline_status, k
        assert conn._pipeline is None
        assert 0 == conn._num_transactions
        assert not conn.lock.locked()
        assert "idle" == await backend_state(watcher, conn.info.backend_pid), k
        cursor = await conn.execute("select %s::int", [42])
        assert [(42,)] == await cursor.fetchall()
        with anyio.fail_after(5):
            assert 1 == len(await COUNT.fetch(conn))

    tried = await cancel_everywhere(work, check)
    # Closing is allowed, but not the rule. (On asyncio a short pipeline may end without any suspension.)
    assert survived >= tried // 2
    conn.abort()


async def test_cancelled_while_connecting(dsn: str, watcher: Connection) -> None:
    """Cancelled at any point of connecting, nothing is left open."""
    conns: list[Connection] = []

    async def work() -> None:
        conns.append(await Connection.connect(dsn, application_name="half open"))

    async def check(k: int, cancelled: bool) -> None:
        for conn in conns:
            conn.abort()
        conns.clear()

    assert await cancel_everywhere(work, check) >= 2
    with anyio.fail_after(5):
        while True:
            cursor = await watcher.execute("select count(*) from pg_stat_activity where application_name = 'half open'")
            if await cursor.fetchone() == (0,):
                break


async def test_the_statement_is_cancelled_on_the_server(conn: Connection, watcher: Connection, within: Within) -> None:
    """A cancelled statement does not run on, and the scope is left soon."""
    started = anyio.current_time()
    with anyio.move_on_after(0.1) as scope:
        await conn.execute("select pg_sleep(30)")
    assert scope.cancelled_caught
    assert anyio.current_time() - started < within(2)
    assert "idle" == await backend_state(watcher, conn.info.backend_pid)
    assert not conn.closed


async def test_a_cancelled_transaction_is_rolled_back(dsn: str) -> None:
    """Whatever is cancelled in a transaction, its rows are gone or, if COMMIT was sent, all there."""
    conn = await fresh(dsn)

    async def work() -> None:
        async with conn.transaction():
            await conn.execute("insert into t values (1)")
            await conn.execute("insert into t values (2)")

    async def check(k: int, cancelled: bool) -> None:
        assert not conn.closed
        cursor = await conn.execute("with gone as (delete from t returning a) select count(*) from gone")
        assert await cursor.fetchone() in [(0,), (2,)]

    await cancel_everywhere(work, check)
    conn.abort()


async def test_an_error_in_a_cancelled_transaction_is_not_lost(conn: Connection) -> None:
    """A block that fails while its scope is cancelled is rolled back, and its own error is raised."""
    raised: BaseException | None = None
    with anyio.CancelScope() as scope:
        try:
            async with conn.transaction():
                scope.cancel()
                raise ZeroDivisionError
        except ZeroDivisionError as error:
            raised = error
    assert raised is not None
    assert pq.TransactionStatus.IDLE == conn.pgconn.transaction_status
    assert not conn.closed


async def insert_and_give_up(conn: Connection) -> None:
    """A statement of the block is cancelled, and nobody hears of it."""
    async with conn.transaction():
        await conn.execute("insert into t values (1)")
        with anyio.move_on_after(0.02):
            await conn.execute("select pg_sleep(60)")


async def insert_and_fail(conn: Connection) -> None:
    """A statement of the block fails, and its error is swallowed."""
    async with conn.transaction():
        await conn.execute("insert into t values (1)")
        with contextlib.suppress(psycopg.errors.DivisionByZero):
            await conn.execute("select 1 / 0")


async def insert_and_lose(conn: Connection) -> None:
    """The connection is closed in the block."""
    async with conn.transaction():
        await conn.execute("insert into t values (1)")
        conn.abort()


async def test_a_block_of_which_nothing_is_left_ends_with_an_error(dsn: str) -> None:
    """Or its user would believe that it was committed."""
    conn = await fresh(dsn)
    for work in (insert_and_give_up, insert_and_fail):
        with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="nothing of the block is committed"):
            await work(conn)
    async with conn.transaction():
        await conn.execute("insert into t values (2)")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):  # it goes back to the savepoint
            await insert_and_fail(conn)
    async with conn.transaction(force_rollback=True):
        with contextlib.suppress(psycopg.errors.DivisionByZero):
            await conn.execute("select 1 / 0")
    assert [(1,)] == await COUNT.fetch(conn)
    with pytest.raises(psycopg.OperationalError, match="closed inside of the block: nothing was committed"):
        await insert_and_lose(conn)


async def test_a_lost_cancellation_never_hits_the_next_statement(dsn: str) -> None:
    """After a cancellation, however close to the answer it came, the next statement runs undisturbed."""
    conn = await fresh(dsn)
    for i in range(60):
        with anyio.move_on_after(0.0002 * (i % 10)):
            await conn.execute("select pg_sleep(0.001)")
        assert not conn.closed
        await conn.execute("select pg_sleep(0.001)")
    conn.abort()


async def test_waiting_for_the_lock_can_be_cancelled(conn: Connection) -> None:
    """A task that waits for its turn is cancelled at once, and the statement of the other goes on."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(conn.execute, "select pg_sleep(0.3)")
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.02) as scope:
            await COUNT.fetch(conn)
        assert scope.cancelled_caught
    assert [(1,)] == await (await conn.execute("select 1")).fetchall()


async def test_wait_notifies_loses_nothing_when_cancelled(dsn: str) -> None:
    """Notifications that arrive around a cancellation are all delivered, in order."""
    conn, sender = await Connection.connect(dsn), await Connection.connect(dsn)
    await conn.execute("listen steady")
    received: list[str] = []
    async with anyio.create_task_group() as tasks:

        async def send() -> None:
            for i in range(50):
                await sender.execute(f"notify steady, '{i}'".encode())

        tasks.start_soon(send)
        with anyio.fail_after(10):
            while len(received) < 50:
                with anyio.move_on_after(0.0005):
                    received += [notification.payload for notification in await conn.wait_notifies()]
    assert [str(i) for i in range(50)] == received
    conn.abort()
    sender.abort()

"""The record of finished jobs: its days, and what is removed from it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import anyio
import pytest

from pgq_anyio._db import Connection
from pgq_anyio._lifecycle import Again, ErrorText
from pgq_anyio._models import JobId
from pgq_anyio._retention import Retention
from pgq_anyio._store._sql import Store
from pgq_anyio._store.finished import PRUNE_BATCH, ensure_partitions, prune_finished, prune_leftovers
from pgq_anyio._store.running import finish_jobs, settle_jobs
from tests.store.conftest import Connect
from tests.store.scenes import add_jobs, add_worker, cancel, claim, rows, value

pytestmark = pytest.mark.anyio

DAY = 86400.0


def today() -> date:
    return datetime.now(UTC).date()


async def days(conn: Connection, store: Store) -> list[str]:
    """The names of the partitions, but for the default one."""
    found = await rows(
        conn,
        store,
        "select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid "
        "where i.inhparent = '{schema}.finished'::regclass and c.relname <> 'finished_default' order by 1",
    )
    return [row[0] for row in found]


def named(first: int, last: int) -> list[str]:
    return [f"finished_{today() + timedelta(days=ahead):%Y%m%d}" for ahead in range(first, last + 1)]


async def record(conn: Connection, store: Store, *, days_ago: float, number: int = 1) -> None:
    """Write records of jobs that ended some days ago."""
    await rows(
        conn,
        store,
        "insert into {schema}.finished "
        "(job_id, entrypoint, status, priority, attempt, crashes, created_at, finished_at) "
        "select n, 'fetch', 'successful', 0, 1, 0, now(), now() - make_interval(secs => %s) "
        "from generate_series(1, %s) n",
        days_ago * DAY,
        number,
    )


async def drop_days(conn: Connection, store: Store) -> None:
    for name in await days(conn, store):
        await rows(conn, store, "drop table {schema}." + name)


async def test_a_fresh_schema_has_a_week(conn: Connection, store: Store) -> None:
    """Today and seven days ahead, so that no record goes to the default partition before the first worker runs."""
    assert named(0, 7) == await days(conn, store)
    assert 0 == await ensure_partitions(conn, store)


@pytest.mark.promise(46)
async def test_days_are_made_ahead_and_take_records(conn: Connection, connect: Connect, store: Store) -> None:
    """Missing days are made, by the database's clock and in UTC whatever the session's time zone; jobs that end now are
    recorded in today's.
    """
    await drop_days(conn, store)
    await conn.execute("set timezone = 'Pacific/Kiritimati'")  # 14 hours ahead
    assert 8 == await ensure_partitions(conn, store)
    assert named(0, 7) == await days(conn, store)
    assert 3 == await ensure_partitions(conn, store, days=10)
    await add_worker(conn, store)
    await add_jobs(conn, store)
    await finish_jobs(conn, store, await claim(conn, store))
    relation = await value(
        conn, store, "select c.relname from {schema}.finished f join pg_class c on c.oid = f.tableoid"
    )
    assert named(0, 0) == [relation]


async def test_a_day_of_the_default_partition_stays_there(conn: Connection, store: Store) -> None:
    """A day that the default partition holds a record of is passed over without an error, all others are made."""
    await drop_days(conn, store)
    await record(conn, store, days_ago=0)
    assert 7 == await ensure_partitions(conn, store)
    assert named(1, 7) == await days(conn, store)
    assert 0 == await ensure_partitions(conn, store)


async def test_five_workers_make_days_at_once(conn: Connection, connect: Connect, store: Store) -> None:
    """Each day is made once, nobody gets an error, and the days are there when the first has returned."""
    await drop_days(conn, store)
    made: list[int] = []

    async def make(worker: Connection) -> None:
        made.append(await ensure_partitions(worker, store))
        await prune_finished(worker, store, retention=Retention.of(DAY))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(make, await connect())
    await ensure_partitions(conn, store)  # what one left to another whose turn had ended is made by the next pass
    assert named(0, 7) == await days(conn, store)
    assert 5 == len(made)


@pytest.mark.promise(46)
async def test_a_reader_delays_nobody(conn: Connection, connect: Connect, store: Store) -> None:
    """While a dump reads the record, days can neither be made nor dropped; both give up within moments, completions go
    on, and the next pass does it.
    """
    dump, worker = await connect(), await connect()
    await rows(
        conn,
        store,
        "create table {schema}.finished_20200101 partition of {schema}.finished "
        "for values from ('2020-01-01 00:00+00') to ('2020-01-02 00:00+00')",
    )
    await add_worker(conn, store)
    await add_jobs(conn, store, 2)
    async with dump.transaction():
        await rows(dump, store, "select count(*) from {schema}.finished")
        with anyio.fail_after(5):
            assert 0 == await ensure_partitions(worker, store, days=9)
            assert 0 == await prune_finished(worker, store, retention=Retention.of(DAY))
            assert 2 == len(await finish_jobs(conn, store, await claim(conn, store)))
    assert 2 == await ensure_partitions(worker, store, days=9)
    assert 1 == await prune_finished(worker, store, retention=Retention.of(DAY))
    assert named(0, 9) == await days(conn, store)


@pytest.mark.promise(46)
async def test_old_records_are_removed(conn: Connection, store: Store) -> None:
    """Whole days where there are partitions, rows in batches elsewhere; what is younger than the retention stays."""
    old = today() - timedelta(days=9)
    await rows(
        conn,
        store,
        f"create table {{schema}}.finished_{old:%Y%m%d} partition of {{schema}}.finished "
        f"for values from ('{old} 00:00+00') to ('{old + timedelta(days=1)} 00:00+00')",
    )
    await record(conn, store, days_ago=20, number=PRUNE_BATCH + 10)
    await record(conn, store, days_ago=3, number=5)
    await record(conn, store, days_ago=0, number=5)
    assert PRUNE_BATCH + 11 == await prune_finished(conn, store, retention=Retention.of(7 * DAY))
    assert named(0, 7) == await days(conn, store)
    assert 10 == await value(conn, store, "select count(*) from {schema}.finished")
    assert 0 == await prune_finished(conn, store, retention=Retention.of(7 * DAY))
    assert 5 == await prune_finished(conn, store, retention=Retention.of(DAY))


async def test_a_day_is_kept_until_all_of_it_is_old(conn: Connection, store: Store) -> None:
    """A day at whose end the retention has not passed stays as a whole."""
    edge = today() - timedelta(days=1)
    await rows(
        conn,
        store,
        f"create table {{schema}}.finished_{edge:%Y%m%d} partition of {{schema}}.finished "
        f"for values from ('{edge} 00:00+00') to ('{today()} 00:00+00')",
    )
    assert 0 == await prune_finished(conn, store, retention=Retention.of(DAY))
    assert f"finished_{edge:%Y%m%d}" in await days(conn, store)


@pytest.mark.promise(46)
async def test_old_errors_of_attempts_are_removed(conn: Connection, store: Store) -> None:
    """Errors of attempts grow with every retry, so they have the same retention; but the record of a job that ended
    later still tells of them.
    """
    await add_worker(conn, store)
    await add_jobs(conn, store, 2)
    again = Again(0, counted=True, error=ErrorText("ValueError", "no", None))
    await settle_jobs(conn, store, [(held, again) for held in await claim(conn, store)])
    await cancel(conn, store, [JobId(1), JobId(2)])
    await rows(
        conn, store, "update {schema}.attempt_error set failed_at = failed_at - interval '8 days' where job_id = 1"
    )
    assert 0 == await prune_leftovers(conn, store, retention=Retention.of(7 * DAY))
    assert [(1,), (2,)] == await rows(conn, store, "select job_id from {schema}.attempt_error order by 1")
    await rows(conn, store, "delete from {schema}.finished returning 1")
    assert 1 == await prune_leftovers(conn, store, retention=Retention.of(7 * DAY))
    assert [(2,)] == await rows(conn, store, "select job_id from {schema}.attempt_error")


@pytest.mark.promise(46)
async def test_who_cancelled_is_known_as_long_as_the_record(conn: Connection, store: Store) -> None:
    """A request that was made long before its job ended is removed with the record, and not before it."""
    ids = await add_jobs(conn, store, 2)
    await cancel(conn, store, ids)
    await rows(conn, store, "update {schema}.cancel_request set requested_at = requested_at - interval '8 days'")
    assert 0 == await prune_leftovers(conn, store, retention=Retention.of(7 * DAY))
    await rows(conn, store, "delete from {schema}.finished where job_id = %s", ids[0])
    assert 1 == await prune_leftovers(conn, store, retention=Retention.of(7 * DAY))
    assert [(ids[1],)] == await rows(conn, store, "select job_id from {schema}.cancel_request")


async def test_a_worker_without_privileges_goes_on(conn: Connection, connect: Connect, store: Store) -> None:
    """A role that may use the tables but not change them records in the default partition, and deletes its old rows."""
    role = f"role_{store.schema}"
    await rows(conn, store, f"create role {role}")
    try:
        await rows(conn, store, f"grant usage on schema {{schema}} to {role}")
        await rows(conn, store, f"grant all on all tables in schema {{schema}} to {role}")
        await record(conn, store, days_ago=30)
        worker = await connect()
        await worker.execute(f"set role {role}".encode())
        assert 0 == await ensure_partitions(worker, store, days=9)
        assert 1 == await prune_finished(worker, store, retention=Retention.of(DAY))
    finally:
        await rows(conn, store, f"drop owned by {role}")
        await rows(conn, store, f"drop role {role}")

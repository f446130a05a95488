"""Retention by status: what is deleted from days that stay."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pgq_anyio._db import Connection
from pgq_anyio._lifecycle import Again, ErrorText
from pgq_anyio._retention import DAY, Retention
from pgq_anyio._store import finished
from pgq_anyio._store._sql import Store
from pgq_anyio._store.finished import prune_finished, prune_leftovers, sweep_finished
from pgq_anyio._store.running import finish_jobs, settle_jobs
from tests.store.conftest import Connect
from tests.store.scenes import add_jobs, add_worker, cancel, claim, rows, value
from tests.store.test_plans import nodes, plan_of

pytestmark = pytest.mark.anyio

HOUR = 3600.0


async def make_day(conn: Connection, store: Store, days_ago: int) -> str:
    """A day of the past; its name."""
    day = (datetime.now(UTC) - timedelta(days=days_ago)).date()
    await rows(
        conn,
        store,
        f"create table {{schema}}.finished_{day:%Y%m%d} partition of {{schema}}.finished "
        f"for values from ('{day} 00:00+00') to ('{day + timedelta(days=1)} 00:00+00')",
    )
    return f"finished_{day:%Y%m%d}"


async def record(conn: Connection, store: Store, seconds_ago: float, number: int = 1) -> None:
    """So many records of each status, of jobs that ended some time ago."""
    await rows(
        conn,
        store,
        "insert into {schema}.finished "
        "(job_id, entrypoint, status, priority, attempt, crashes, created_at, finished_at) "
        "select n, 'fetch', status, 0, 1, 0, now(), clock_timestamp() - make_interval(secs => %s) "
        "from generate_series(1, %s) n, unnest('{{successful,failed,cancelled}}'::text[]) status",
        seconds_ago,
        number,
    )


async def left(conn: Connection, store: Store) -> dict[str, int]:
    """What is left, by status."""
    found = await rows(conn, store, "select status, count(*) from {schema}.finished group by status")
    return dict(found)


async def prune(conn: Connection, store: Store, retention: Retention, swept: set[str] | None = None) -> int:
    """One pass of a pruner."""
    removed = await prune_finished(conn, store, retention=retention)
    removed += await sweep_finished(conn, store, retention=retention, swept=set() if swept is None else swept)
    return removed + await prune_leftovers(conn, store, retention=retention)


@pytest.mark.promise(46)
async def test_each_status_has_its_time(conn: Connection, store: Store) -> None:
    """In the days and in the default partition: what is older than the time of its status goes, everything else stays,
    and the days stay until the longest time has passed.
    """
    for days_ago in (1, 2, 3, 9):
        await make_day(conn, store, days_ago)
    # What is four days old is in the default partition.
    for age in (0.0, 0.5 * DAY, 2 * DAY, 3 * DAY, 4 * DAY):
        await record(conn, store, age, 10)
    retention = Retention(successful=0.25 * DAY, cancelled=2.5 * DAY, failed=5 * DAY)
    assert 4 * 10 + 2 * 10 + 1 == await prune(conn, store, retention)
    assert {"successful": 10, "cancelled": 30, "failed": 50} == await left(conn, store)
    assert 0 == await prune(conn, store, retention)
    await prune(conn, store, Retention.of(0))
    assert {} == await left(conn, store)


@pytest.mark.promise(46)
async def test_without_shorter_times_no_record_is_read(conn: Connection, store: Store) -> None:
    """A week for all, or a day: days are dropped, and that is all."""
    await record(conn, store, 0.0)
    for retention in (Retention(), Retention.of(DAY)):
        assert 0 == await sweep_finished(conn, store, retention=retention, swept=set())
    assert 3 == await sweep_finished(conn, store, retention=Retention.of(0), swept=set())


@pytest.mark.promise(46)
async def test_a_large_day_is_swept_in_small_steps(
    conn: Connection, connect: Connect, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block is met, each statement reads only its own, and rows that somebody has locked are left for the next
    pass.
    """
    monkeypatch.setattr(finished, "SWEEP_BLOCKS", 7)
    await record(conn, store, 120, 3000)
    await rows(conn, store, "update {schema}.finished set error_message = repeat('x', 500) where job_id % 50 = 0")
    retention = Retention(successful=60, cancelled=60, failed=DAY)
    holder = await connect()
    async with holder.transaction():
        await rows(holder, store, "select from {schema}.finished where job_id = 7 and status <> 'failed' for update")
        assert 5998 == await prune(conn, store, retention)
    assert 2 == await prune(conn, store, retention)
    assert {"failed": 3000} == await left(conn, store)
    await rows(conn, store, "analyze {schema}.finished")
    now = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    parameters = {"starts_at": now, "ends_at": now + timedelta(days=1), "first": 7, "until": 14}
    plan = await plan_of(
        conn, store, "sweep_day", {**parameters, "successful": 60.0, "failed": 60.0, "cancelled": 60.0}
    )
    scans = {node["Node Type"] for node in nodes(plan) if node.get("Relation Name", "").startswith("finished")}
    assert scans <= {"Tid Range Scan", "Tid Scan", "ModifyTable"}
    assert "Tid Range Scan" in scans


@pytest.mark.promise(46)
async def test_a_day_that_is_done_is_not_read_again(conn: Connection, connect: Connect, store: Store) -> None:
    """Days that nothing can be added to are remembered when nothing was left to remove, so that rows which somebody has
    locked are met by the next pass. Other days are looked at with every pass.
    """
    done, edge = await make_day(conn, store, 3), await make_day(conn, store, 1)
    await record(conn, store, 3 * DAY, 2)
    await record(conn, store, DAY)
    await record(conn, store, 0)
    swept: set[str] = set()
    retention = Retention(successful=HOUR, failed=1.5 * DAY, cancelled=7 * DAY)
    holder = await connect()
    async with holder.transaction():
        await rows(holder, store, "select from {schema}.finished where job_id = 2 and status = 'failed' for update")
        assert 4 == await sweep_finished(conn, store, retention=retention, swept=swept)
    assert 1 == await sweep_finished(conn, store, retention=retention, swept=swept)
    assert 0 == await sweep_finished(conn, store, retention=retention, swept=swept)
    assert done in swept
    assert edge not in swept
    await record(conn, store, 3 * DAY)
    await record(conn, store, DAY)
    assert 1 == await sweep_finished(conn, store, retention=retention, swept=swept)


@pytest.mark.promise(46)
async def test_nothing_is_taken_from_jobs_that_have_not_ended(conn: Connection, store: Store) -> None:
    """With no retention at all: jobs that wait or run stay, with the errors of their attempts, and those that ask for
    their cancel; when they have ended, everything goes.
    """
    await add_worker(conn, store)
    waiting, later, running = await add_jobs(conn, store, 3)
    again, much_later = (
        Again(delay, counted=True, error=ErrorText("ValueError", "no", None)) for delay in (0.0, 600.0)
    )
    held = await claim(conn, store)
    await settle_jobs(conn, store, [(held[0], again), (held[1], much_later), (held[2], again)])
    await rows(conn, store, "update {schema}.queued set priority = 1 where job_id = %s", running)
    await claim(conn, store, 2, limit=1)
    await cancel(conn, store, [running])
    (ended,) = await add_jobs(conn, store, 1, name="other")
    await cancel(conn, store, [ended])
    assert 2 == await prune(conn, store, Retention.of(0))
    assert [(waiting,), (later,), (running,)] == await rows(
        conn, store, "select job_id from {schema}.attempt_error order by 1"
    )
    assert [(running,)] == await rows(conn, store, "select job_id from {schema}.cancel_request")
    assert (1, 1, 1) == tuple(
        [await value(conn, store, f"select count(*) from {{schema}}.{t}") for t in ("queued", "deferred", "running")]
    )
    await cancel(conn, store, [waiting, later])
    (held_now,) = await rows(conn, store, "select worker_id from {schema}.running")
    assert held_now
    await rows(conn, store, "delete from {schema}.running")
    assert 3 + 3 + 2 == await prune(conn, store, Retention.of(0))
    assert 0 == await value(conn, store, "select count(*) from {schema}.attempt_error")
    assert await finish_jobs(conn, store, held) == []

"""Serialized names: strict order by priority and place, from a hint that a held snapshot cannot make slow."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest

from pgq_anyio._db import Connection
from pgq_anyio._lifecycle import GIVEN_BACK, Again
from pgq_anyio._limits import Limits
from pgq_anyio._models import Held, JobId
from pgq_anyio._store._sql import Store
from pgq_anyio._store.limiter import Scan, claim_limited, list_writers
from pgq_anyio._store.running import finish_jobs, settle_jobs
from pgq_anyio._strict_hints import StrictHints
from tests.store.conftest import Connect
from tests.store.scenes import WORKER, add_jobs, rows, value
from tests.store.test_limits import limit

pytestmark = pytest.mark.anyio

SERIALIZED = Limits(1, serialized=True)


@attrs.define(eq=False)
class Claimer:
    """A claimer of the name ``fetch`` with its own hints, as a worker has one."""

    conn: Connection
    store: Store
    worker_id: int = WORKER
    hints: StrictHints = attrs.field(factory=lambda: StrictHints("fetch"))
    numbers: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1))

    async def claim(self) -> Held | None:
        """Take the next job, if there is one."""
        number = next(self.numbers)
        scan = Scan.over({"fetch": self.hints.lanes()})
        answer = await claim_limited(
            self.conn, self.store, scan, worker_id=self.worker_id, claim_no=number, limit=10, reach=8
        )
        self.hints.learn(answer.jobs)
        if answer.names[0].slots_left and not answer.names[0].candidates:
            self.hints.found_nothing()
        return Held(answer.jobs[0][0], self.worker_id, number) if answer.jobs else None

    async def look(self) -> None:
        """List who writes to the queue."""
        self.hints.see_writers(await list_writers(self.conn, self.store), 0.0)

    async def run(self, number: int = 1) -> list[JobId]:
        """Take jobs one after the other, and let them succeed."""
        done = []
        for _ in range(number):
            held = await self.claim()
            if held is not None:
                await finish_jobs(self.conn, self.store, [held])
                done.append(held.job.id)
            await self.look()
        return done


@asynccontextmanager
async def open_snapshot(connect: Connect, store: Store) -> AsyncIterator[None]:
    """Somebody's report: an old snapshot that stays."""
    reporter = await connect()
    async with reporter.transaction():
        await reporter.execute("set transaction isolation level repeatable read")
        await rows(reporter, store, "select count(*) from {schema}.queued")
        yield


@pytest.mark.promise(47)
async def test_a_held_snapshot_does_not_slow_serialized_claims(
    conn: Connection, connect: Connect, store: Store
) -> None:
    """What a claim reads of the queue does not grow with the jobs done, while other priorities come and go."""
    await limit(conn, store, SERIALIZED)
    # Wide ones: few share a page, so that each dead entry that is walked costs a look at another page.
    await rows(
        conn,
        store,
        "insert into {schema}.queued (entrypoint, payload) "
        "select 'fetch', convert_to(repeat('x', 1500), 'utf8') from generate_series(1, 600)",
    )
    claimer = Claimer(await connect(), store)

    async def read_blocks() -> int:
        blocks: int = await value(
            claimer.conn,
            store,
            "select sum(pg_stat_get_xact_blocks_fetched(c.oid)) from pg_class c "
            "where c.relnamespace = '{schema}'::regnamespace and c.relname ~ '^queued'",
        )
        return blocks

    async def cost() -> int:
        number = next(claimer.numbers)
        async with claimer.conn.transaction(force_rollback=True):
            before = await read_blocks()
            scan = Scan.over({"fetch": claimer.hints.lanes()})
            answer = await claim_limited(
                claimer.conn, store, scan, worker_id=WORKER, claim_no=number, limit=10, reach=8
            )
            assert 1 == len(answer.jobs)
            return await read_blocks() - before

    async with open_snapshot(connect, store):
        await claimer.run(50)
        at_first = await cost()
        for _ in range(5):
            await add_jobs(conn, store, 2, priorities=[5, -5])
            await claimer.run(100)
        at_last = await cost()
        assert at_last <= at_first + 10


@pytest.mark.promise(20)
async def test_a_place_that_is_committed_late_comes_first(conn: Connection, connect: Connect, store: Store) -> None:
    """A transaction takes its place in the queue and commits while later jobs run: its job is the next one, and comes
    back to that place.
    """
    await limit(conn, store, SERIALIZED)
    producer, claimer = await connect(), Claimer(await connect(), store)
    before = await add_jobs(conn, store, 2)
    async with producer.transaction():
        (late,) = await add_jobs(producer, store)
        after = await add_jobs(conn, store, 20)
        assert [*before, *after[:10]] == await claimer.run(12)
    for _ in range(3):
        await claimer.look()
    held = await claimer.claim()
    assert held is not None
    assert late == held.job.id
    await claimer.look()
    await settle_jobs(conn, store, [(held, GIVEN_BACK)])
    assert [late, *after[10:]] == await claimer.run(20)


@pytest.mark.promise(20)
async def test_a_place_that_is_committed_late_in_each_priority(
    conn: Connection, connect: Connect, store: Store
) -> None:
    """Whichever lane the hint knows best."""
    await limit(conn, store, SERIALIZED)
    producer, claimer = await connect(), Claimer(await connect(), store)
    await add_jobs(conn, store, 10, priorities=[0, 1] * 5)
    assert 10 == len(await claimer.run(12))
    async with producer.transaction():
        late = await add_jobs(producer, store, 3, priorities=[0, 1, 7])
        first, second = [await add_jobs(conn, store, 8, priorities=[priority] * 8) for priority in (0, 1)]
        assert [*second, *first[:4]] == await claimer.run(12)
    for _ in range(3):
        await claimer.look()
    assert [late[2], late[1], late[0], *first[4:]] == await claimer.run(10)


@pytest.mark.promise(20)
async def test_a_given_back_job_keeps_its_place(conn: Connection, connect: Connect, store: Store) -> None:
    """However far the hint has moved, and whoever gives it back; a retried job goes to the end."""
    await limit(conn, store, SERIALIZED)
    await limit(conn, store, SERIALIZED, worker_id=12)
    job_ids = await add_jobs(conn, store, 30)
    ours, theirs = Claimer(await connect(), store), Claimer(await connect(), store, 12)
    done: list[JobId] = []
    for claimer in [ours, theirs] * 5:
        done += await claimer.run(2)
        held = await claimer.claim()
        assert held is not None
        await claimer.look()
        assert [] == await (theirs if claimer is ours else ours).run(1), "one at a time"
        await settle_jobs(conn, store, [(held, GIVEN_BACK)])
    for _ in range(5):
        held = await ours.claim()
        assert held is not None
        assert job_ids[len(done)] == held.job.id
        await ours.look()
        await settle_jobs(conn, store, [(held, GIVEN_BACK)])
        await ours.look()
    held = await ours.claim()
    assert held is not None
    assert job_ids[len(done)] == held.job.id
    await settle_jobs(conn, store, [(held, Again(0.0, counted=True, error=None))])
    assert [*job_ids[len(done) + 1 :], held.job.id] == await theirs.run(30)


async def test_writers_are_those_that_enqueue(conn: Connection, connect: Connect, store: Store) -> None:
    """A transaction that reads the queue, or writes to other tables, holds nothing back; a prepared one would."""
    await limit(conn, store, SERIALIZED)
    reader, writer = await connect(), await connect()
    async with reader.transaction(), writer.transaction():
        await rows(reader, store, "select count(*) from {schema}.queued")
        await rows(writer, store, "update {schema}.worker set beat = beat")
        assert frozenset() == await list_writers(conn, store)
        await add_jobs(writer, store)
        assert 1 == len(await list_writers(conn, store))
    assert frozenset() == await list_writers(conn, store)

"""Rescue beside what it must not disturb. ``--hypothesis-profile=long`` goes many more rounds."""

from __future__ import annotations

import random

import anyio
import pytest
from psycopg import sql

from pgq_anyio import PgQueuer
from pgq_anyio._db import Connection
from pgq_anyio._store._sql import Store
from pgq_anyio._store.running import finish_jobs
from pgq_anyio._store.worker import beat_worker, rescue_jobs
from tests.profiles import scaled
from tests.store.conftest import Connect, connect, store
from tests.store.scenes import add_jobs, add_worker, claim, rows, value

__all__ = ["connect", "store"]

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]

ROUNDS = scaled(200).max_examples
WORKERS = 500


@pytest.mark.timeout(0)
async def test_completions_against_rescues(conn: Connection, connect: Connect, store: Store) -> None:
    """Both at once, again and again: each job ends once, or is queued once, as the answers say."""
    finisher, rescuer = await connect(), await connect()
    generator = random.Random(1)
    finished: set[int] = set()
    rescued: set[int] = set()
    won = [0, 0]
    for number in range(1, ROUNDS + 1):
        await add_worker(conn, store, number)
        (job_id,) = await add_jobs(conn, store)
        held = await claim(conn, store, number, worker_id=number)
        finished.clear()
        rescued.clear()

        async def finish(number: int = number, held: object = held) -> None:
            await anyio.sleep(generator.choice([0, 0.0005]))
            finished.update(await finish_jobs(finisher, store, held))  # type: ignore[arg-type]

        async def rescue(number: int = number) -> None:
            await anyio.sleep(generator.choice([0, 0.0005]))
            rescued.update((await rescue_jobs(rescuer, store, [(number, 0)], max_crashes=5))[1])

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(finish)
                tasks.start_soon(rescue)
        assert {job_id} == finished | rescued
        assert not finished & rescued
        won[bool(rescued)] += 1
        assert len(finished) == await value(conn, store, "select count(*) from {schema}.finished")
        assert len(rescued) == await value(conn, store, "select count(*) from {schema}.queued")
        assert 0 == await value(conn, store, "select count(*) from {schema}.running")
        await rows(conn, store, "delete from {schema}.finished")
        await rows(conn, store, "delete from {schema}.queued")
    assert all(won), f"(finished, rescued) first: {won}"


async def test_one_dead_worker_behind_many_long_jobs(conn: Connection, store: Store) -> None:
    """Ten thousand jobs of a worker that lives, all older: the one of the dead worker is taken, and no other."""
    await add_worker(conn, store, 1)
    await add_worker(conn, store, 2)
    await add_jobs(conn, store, 10_000)
    assert 10_000 == len(await claim(conn, store, 1, worker_id=1, limit=10_000))
    (job_id,) = await add_jobs(conn, store)
    await claim(conn, store, 2, worker_id=2)
    await beat_worker(conn, store, worker_id=1)
    assert ([2], [job_id]) == await rescue_jobs(conn, store, [(1, 0), (2, 0)], max_crashes=5)
    assert 10_000 == await value(conn, store, "select count(*) from {schema}.running where worker_id = 1")


async def test_hundreds_of_workers_beat_at_once(conn: Connection, connect: Connect, store: Store) -> None:
    """No beat waits for another: with one of five hundred rows locked, all others are written."""
    await rows(
        conn,
        store,
        "insert into {schema}.worker (worker_id, name, entrypoints, max_crashes, lease) "
        "select n, n::text, array['fetch'], array[5], 30 from generate_series(1, 500) n",
    )
    holder = await connect()
    hearts = [await connect() for _ in range(8)]
    missed: list[int] = []

    async def beat(heart: Connection, first: int) -> None:
        for worker_id in range(first, WORKERS, len(hearts)):
            pulse = await beat_worker(heart, store, worker_id=worker_id)
            if pulse is None or len(pulse.peers) != WORKERS - 1:
                missed.append(worker_id)

    async with holder.transaction():
        await holder.execute(
            sql.SQL("select 1 from {}.worker where worker_id = 500 for update").format(sql.Identifier(store.schema))
        )
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for first, heart in enumerate(hearts, 1):
                    tasks.start_soon(beat, heart, first)
    assert [] == missed
    assert [(499,)] == await rows(conn, store, "select count(*) from {schema}.worker where beat = 1")


async def test_a_worker_is_never_taken_for_the_one_before(dsn: str, store: Store, conn: Connection) -> None:
    """The same process as worker once more: another number, so what it left behind belongs to nobody."""
    app = PgQueuer(dsn, schema=store.schema)
    seen: set[tuple[int, str]] = set()

    @app.entrypoint("fetch")
    async def fetch(job: object) -> None:
        seen.update(await rows(conn, store, "select worker_id, name from {schema}.worker"))

    for _ in range(2):
        await add_jobs(conn, store)
        with anyio.fail_after(20):
            await app.run(mode="drain")
    assert 2 == len({worker_id for worker_id, _ in seen})
    assert 1 == len({name for _, name in seen}), "host and process are the same"

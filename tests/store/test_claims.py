"""Claims: their order, and claims beside other transactions."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import anyio
import pytest

from pgq_anyio._db import Connection
from pgq_anyio._hints import Hints
from pgq_anyio._models import Held, Job, JobId
from pgq_anyio._store._sql import Store
from pgq_anyio._store.queued import claim_hinted, claim_sweep
from pgq_anyio._store.running import finish_jobs
from pgq_anyio._store.worker import beat_worker, rescue_jobs
from tests.store.conftest import Connect
from tests.store.scenes import WORKER, add_jobs, add_worker, cancel, claim, forbid_indexes, rows, value

pytestmark = pytest.mark.anyio


@pytest.mark.promise(11)
async def test_a_claim_passes_by_rows_that_are_being_changed(conn: Connection, connect: Connect, store: Store) -> None:
    """A row that another transaction has locked is skipped without waiting, and the claim reaches past it."""
    claimer, other = await connect(), await connect()
    await add_worker(conn, store)
    job_ids = await add_jobs(conn, store, 3)
    async with other.transaction():
        await rows(other, store, "update {schema}.queued set priority = -1 where job_id = %s", job_ids[0])
        with anyio.fail_after(20):
            assert job_ids[1:] == [held.job.id for held in await claim(claimer, store, limit=2)]
    assert job_ids[:1] == [held.job.id for held in await claim(claimer, store, 2)]


@pytest.mark.promise(11)
async def test_many_claimers_and_updates_take_each_job_once(conn: Connection, connect: Connect, store: Store) -> None:
    """Rows that move under a claim (their ctid changes between its look and its lock) are taken once or left."""
    await add_worker(conn, store)
    job_ids = await add_jobs(conn, store, 400)
    taken: list[JobId] = []

    async def claim_all(claimer: Connection, first_claim_no: int) -> None:
        claim_no = first_claim_no
        while len(taken) < len(job_ids):
            claim_no += 1
            answer = await claim_sweep(
                claimer, store, ["fetch"], worker_id=WORKER, claim_no=claim_no, limit=7, reach=40
            )
            taken.extend(job.id for job, _ in answer.jobs)

    async def move_rows(mover: Connection) -> None:
        while len(taken) < len(job_ids):
            await rows(
                mover,
                store,
                "update {schema}.queued q set crashes = q.crashes + 1 where q.job_id = any (array("
                "select job_id from {schema}.queued order by random() limit 20 for update skip locked))",
            )

    with anyio.fail_after(40):
        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(claim_all, await connect(), number * 1_000_000)
            tasks.start_soon(move_rows, await connect())
    assert job_ids == sorted(taken)
    assert len(job_ids) == await value(conn, store, "select count(*) from {schema}.running")


@pytest.mark.promise(5)
@pytest.mark.parametrize("number", [1, 3, 60])
@pytest.mark.parametrize("hinted", [False, True])
@pytest.mark.parametrize("indexes", [True, False])
async def test_claims_follow_one_order_across_names(
    conn: Connection, connect: Connect, store: Store, number: int, hinted: bool, indexes: bool
) -> None:
    """Priority first, then the order of enqueueing, whichever name has the largest backlog."""
    claimer = await connect()
    if not indexes:
        await forbid_indexes(claimer)
    names = [f"name {n}" for n in range(number)]
    priorities = [-(2**31), 0, 2**31 - 1] if number < 60 else [0]
    await add_worker(conn, store, names=names)
    chance = random.Random(number)
    wanted: list[tuple[int, JobId]] = []
    hints = Hints(tuple(names))
    hints.swept(0.0, 10.0)
    for name in names:
        hints.learn([(Job(JobId(0), name, None, priority, 1, 0, datetime.now(UTC)), 0) for priority in priorities])
    for _ in range(40):
        name, chosen = chance.choice([*names, *[names[0]] * number]), chance.choices(priorities, k=5)
        wanted += zip((-p for p in chosen), await add_jobs(conn, store, 5, name=name, priorities=chosen), strict=True)
    got: list[JobId] = []
    while len(got) < len(wanted):
        lanes = hints.lanes(0.0)
        assert lanes is not None
        fence = {"worker_id": WORKER, "claim_no": len(got) + 1, "limit": 13, "reach": 13}
        if hinted:
            answer = await claim_hinted(claimer, store, lanes, **fence)
        else:
            answer = await claim_sweep(claimer, store, names, **fence)
        hints.learn(answer.jobs)
        got += [job.id for job, _ in answer.jobs]
    assert [job_id for _, job_id in sorted(wanted)] == got


@pytest.mark.promise(5)
async def test_a_higher_priority_is_found_behind_the_hints(conn: Connection, connect: Connect, store: Store) -> None:
    """Jobs of a priority that no lane knows yet come in the next hinted claim, before all that are below them."""
    claimer = await connect()
    await add_worker(conn, store)
    await add_jobs(conn, store, 50)
    hints = Hints(("fetch",))
    hints.learn((await claim_sweep(claimer, store, ["fetch"], worker_id=WORKER, claim_no=1, limit=10, reach=10)).jobs)
    hints.swept(0.0, 10.0)
    for claim_no, priority in enumerate([7, -7, 2**31 - 1, 3], 2):
        urgent = await add_jobs(conn, store, 4, priorities=[priority] * 4)
        lanes = hints.lanes(0.0)
        assert lanes is not None
        answer = await claim_hinted(claimer, store, lanes, worker_id=WORKER, claim_no=claim_no, limit=5, reach=5)
        assert (urgent == [job.id for job, _ in answer.jobs[:4]]) == (priority > 0)
        hints.learn(answer.jobs)


@pytest.mark.promise(5, 18)
@pytest.mark.parametrize("hinted", [True, False])
async def test_a_worker_that_may_not_claim_hides_no_row(
    conn: Connection, connect: Connect, store: Store, hinted: bool
) -> None:
    """One that has to read new limits sees nothing to claim, and others take all of it meanwhile."""
    claimer, hints = await connect(), Hints(("fetch",))
    await add_worker(conn, store)
    await add_worker(conn, store, 12)
    await add_jobs(conn, store, 10)
    fence = {"worker_id": WORKER, "limit": 3, "reach": 3}
    hints.learn((await claim_sweep(claimer, store, ["fetch"], claim_no=1, **fence)).jobs)
    hints.swept(0.0, 1.0)
    lanes = hints.lanes(0.0)
    assert lanes is not None
    await rows(conn, store, "update {schema}.worker set limit_changes = 1 where worker_id = %s returning 1", WORKER)
    async with claimer.transaction():
        if hinted:
            answer = await claim_hinted(claimer, store, lanes, claim_no=2, **fence)
        else:
            answer = await claim_sweep(claimer, store, ["fetch"], claim_no=2, **fence)
        assert (0, []) == (answer.candidates, answer.jobs)
        with anyio.fail_after(20):
            assert 7 == len(await claim(conn, store, 1, worker_id=12))


@pytest.mark.promise(5, 12)
async def test_a_rescued_job_keeps_its_place(conn: Connection, store: Store) -> None:
    """It comes back before jobs that were enqueued later, with its priority."""
    await add_worker(conn, store)
    job_ids = await add_jobs(conn, store, 3, priorities=[4, 4, 4])
    assert job_ids[:1] == [held.job.id for held in await claim(conn, store, limit=1)]
    await rescue_jobs(conn, store, [(WORKER, 0)], max_crashes=5)
    await add_worker(conn, store)
    again = await claim(conn, store, 2)
    assert job_ids == [held.job.id for held in again]
    assert (4, 1, 1) == (again[0].job.priority, again[0].job.attempt, again[0].job.crashes)


async def test_numbers_beyond_32_bits(conn: Connection, connect: Connect, store: Store) -> None:
    """Ids, places and claim numbers pass 2^31 without anybody noticing."""
    claimer = await connect()
    await add_worker(conn, store, 2**62)
    for sequence in ("job_id_seq", "queued_seq"):
        await rows(
            conn, store, "select setval(format('%%I.%%I', %s::text, %s::text), %s)", store.schema, sequence, 2**31 - 10
        )
    job_ids = await add_jobs(conn, store, 20)
    assert list(range(2**31 - 9, 2**31 + 11)) == job_ids
    held = await claim(claimer, store, 2**40, worker_id=2**62, limit=5)
    hints = Hints(("fetch",))
    hints.learn([(h.job, 2**31 - 9 + n) for n, h in enumerate(held)])
    hints.swept(0.0, 10.0)
    lanes = hints.lanes(0.0)
    assert lanes is not None
    answer = await claim_hinted(claimer, store, lanes, worker_id=2**62, claim_no=2**40 + 1, limit=8, reach=8)
    held += [Held(job, 2**62, 2**40 + 1) for job, _ in answer.jobs]
    assert job_ids[:13] == [h.job.id for h in held]
    assert job_ids[12:] == await cancel(conn, store, job_ids[12:])
    pulse = await beat_worker(conn, store, worker_id=2**62)
    assert pulse is not None
    assert [(job_ids[12], 2**40 + 1)] == pulse.cancel_requested
    assert job_ids[:13] == sorted(await finish_jobs(claimer, store, held))

"""Limits as statements: what is in use, which tokens are left, and who may claim at all."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import anyio
import pytest
from psycopg import sql

from pgq_anyio._db import Connection
from pgq_anyio._lifecycle import (
    GIVEN_BACK,
    UNSTARTED_CANCELLED,
    UNSTARTED_GIVEN_BACK,
    Again,
    Cancelled,
    ErrorText,
    Failed,
)
from pgq_anyio._limits import UNLIMITED, Limits
from pgq_anyio._models import Held, JobId
from pgq_anyio._store._sql import Store
from pgq_anyio._store.limiter import (
    Definition,
    KnownLimits,
    LimitedClaim,
    Scan,
    claim_limited,
    define_limits,
    list_limits,
)
from pgq_anyio._store.running import finish_jobs, give_back_claims, settle_jobs
from pgq_anyio._store.worker import beat_worker, leave, mark_left, rescue_jobs
from tests.store.conftest import Connect
from tests.store.scenes import WORKER, add_jobs, add_worker, cancel, claim, rows, value

pytestmark = pytest.mark.anyio

Leave = Callable[[Connection, Store, Held], Awaitable[object]]


async def limit(
    conn: Connection, store: Store, limits: Limits, *, worker_id: int = WORKER, name: str = "fetch"
) -> list[Definition]:
    """Register a worker that limits a name; the definitions that this replaces."""
    await add_worker(conn, store, worker_id, [name])
    _, replaced = await define_limits(
        conn, store, worker_id=worker_id, name=f"worker {worker_id}", entrypoints=[name], limits={name: limits}
    )
    return replaced


async def ask(
    conn: Connection, store: Store, claim_no: int = 1, *, worker_id: int = WORKER, most: int = 100, reach: int = 1
) -> LimitedClaim:
    """Claim jobs of a limited name, from the start of the queue."""
    scan = Scan.over({"fetch": None})
    return await claim_limited(conn, store, scan, worker_id=worker_id, claim_no=claim_no, limit=most, reach=reach)


async def take(conn: Connection, store: Store, claim_no: int = 1, **options: Any) -> list[Held]:
    """As ``ask``; the jobs."""
    answer = await ask(conn, store, claim_no, **options)
    return [Held(job, options.get("worker_id", WORKER), claim_no) for job, _ in answer.jobs]


def ids(held: Sequence[Held]) -> list[JobId]:
    return [one.job.id for one in held]


@pytest.mark.promise(18)
@pytest.mark.parametrize("size", [1, 5])
async def test_thirty_two_claimers_at_once(conn: Connection, connect: Connect, store: Store, size: int) -> None:
    """However many claim at the same moment: as many as the limit run, never more, and each job runs once."""
    await limit(conn, store, Limits(size))
    job_ids = await add_jobs(conn, store, 100 * math.isqrt(size))
    done: list[JobId] = []
    overlaps: list[int] = []

    async def work(claimer: Connection, number: int) -> None:
        claim_no = number * 1_000_000
        while len(done) < len(job_ids):
            claim_no += 1
            # With a reach, claimers do not compete for the same rows: only the count keeps them within the limit.
            held = await take(claimer, store, claim_no, most=3, reach=8)
            if held:
                overlaps.append(await value(claimer, store, "select count(*) from {schema}.running"))
                await finish_jobs(claimer, store, held)
                done.extend(ids(held))

    with anyio.fail_after(50):
        async with anyio.create_task_group() as tasks:
            for number in range(32):
                tasks.start_soon(work, await connect(), number)
    assert job_ids == sorted(done)
    assert size == max(overlaps)


async def settle(conn: Connection, store: Store, held: Held, outcome: Any) -> object:
    return await settle_jobs(conn, store, [(held, outcome)])


async def rescue(conn: Connection, store: Store, held: Held) -> object:
    await mark_left(conn, store, worker_id=held.worker_id)
    answer = await rescue_jobs(conn, store, [(held.worker_id, 0)], max_crashes=5)
    await add_worker(conn, store, held.worker_id)
    return answer


async def say_goodbye(conn: Connection, store: Store, held: Held) -> object:
    given_back = await leave(conn, store, worker_id=held.worker_id)
    await add_worker(conn, store, held.worker_id)
    return given_back


async def take_seats(
    conn: Connection, store: Store, names: Sequence[str], unlimited: Sequence[str], claim_no: int, seats: int
) -> list[tuple[str, int]]:
    """Claim jobs of names that all need processes; names and priorities of what came."""
    answer = await claim_limited(
        conn,
        store,
        Scan.over(dict.fromkeys(names)),
        worker_id=WORKER,
        claim_no=claim_no,
        limit=100,
        reach=1,
        unlimited=unlimited,
        in_process=names,
        processes=seats,
    )
    return [(job.entrypoint, job.priority) for job, _ in answer.jobs]


@pytest.mark.promise(16)
async def test_names_that_need_processes(conn: Connection, connect: Connect, store: Store) -> None:
    """Of all of them together no more are taken than there is room for, by priority, with and without limits. Those
    without limits need no lock, and none are for a worker that has to read new limits.
    """
    names = ["fetch", "plain", "plainer"]
    await add_worker(conn, store, WORKER, names)
    await define_limits(
        conn, store, worker_id=WORKER, name="worker", entrypoints=names, limits={"fetch": Limits(concurrency_limit=5)}
    )
    for priority, name in enumerate(names * 2):
        await add_jobs(conn, store, name=name, priorities=[priority])
    other = await connect()

    take_in_processes = partial(take_seats, conn, store, names, names[1:])
    assert [("plainer", 5)] == await take_in_processes(1, 1)
    assert [("plain", 4), ("fetch", 3)] == await take_in_processes(2, 2)
    assert [("plainer", 2)] == await take_in_processes(3, 1)
    async with other.transaction():
        await store.statement("try_lock_limits").fetch(other, entrypoints=names, limited=[True, True, True])
        assert [("plain", 1)] == await take_in_processes(4, 2)
    await add_jobs(conn, store, name="plain")
    await rows(conn, store, "update {schema}.worker set limit_changes = 1 returning 1")
    assert [("fetch", 0)] == await take_in_processes(5, 9)
    assert [] == await take_in_processes(6, 9)


@pytest.mark.promise(5)
async def test_of_names_that_need_processes_no_row_is_hidden(conn: Connection, connect: Connect, store: Store) -> None:
    """While one worker claims for its only process, another one takes all the rest, in order."""
    names = ["fetch", "plain"]
    await add_worker(conn, store, WORKER, names)
    other = await connect()
    for priority, name in enumerate(names * 2):
        await add_jobs(conn, store, name=name, priorities=[priority])

    take_in_processes = partial(take_seats, store=store, names=names, unlimited=names)
    async with other.transaction():
        assert [("plain", 3)] == await take_in_processes(other, claim_no=1, seats=1)
        with anyio.fail_after(20):
            rest = [("fetch", 2), ("plain", 1), ("fetch", 0)]
            assert rest == await take_in_processes(conn, claim_no=2, seats=4)


EXITS: dict[str, Leave] = {
    "success": lambda c, s, h: finish_jobs(c, s, [h]),
    "failure": lambda c, s, h: settle(c, s, h, Failed(ErrorText("E", "m", None))),
    "cancel": lambda c, s, h: settle(c, s, h, Cancelled("why")),
    "retry": lambda c, s, h: settle(c, s, h, Again(0, counted=True, error=ErrorText("E", "m", None))),
    "snooze": lambda c, s, h: settle(c, s, h, Again(60, counted=False, error=None)),
    "back": lambda c, s, h: settle(c, s, h, GIVEN_BACK),
    "unstarted": lambda c, s, h: settle(c, s, h, UNSTARTED_GIVEN_BACK),
    "lost": lambda c, s, h: give_back_claims(c, s, worker_id=h.worker_id, unknown=[(None, h.claim_no)]),
    "rescue": rescue,
    "leave": say_goodbye,
}


@pytest.mark.promise(18, 21, 26)
@pytest.mark.parametrize("way", EXITS)
async def test_every_way_out_frees_the_slot(conn: Connection, store: Store, way: str) -> None:
    """And nothing else does: a request to cancel a running job leaves it its slot."""
    await limit(conn, store, Limits(2))
    job_ids = await add_jobs(conn, store, 4)
    (first,) = await take(conn, store, 1, most=1)
    assert job_ids[1:2] == ids(await take(conn, store, 2))
    assert [] == await take(conn, store, 3)
    if way == "success":
        await cancel(conn, store, [first.job.id])
        assert [] == await take(conn, store, 4)
    await EXITS[way](conn, store, first)
    before = await value(conn, store, "select count(*) from {schema}.running")
    freed = await take(conn, store, 5)
    assert 2 == before + len(freed)
    assert [] == await take(conn, store, 6)


@pytest.mark.promise(18)
async def test_jobs_of_a_dead_worker_hold_their_slots(conn: Connection, store: Store) -> None:
    """Until they are rescued: their handlers may still run."""
    await limit(conn, store, Limits(3))
    await add_worker(conn, store, 12)
    await add_jobs(conn, store, 6)
    assert 3 == len(await take(conn, store, 1))
    assert [] == await take(conn, store, 1, worker_id=12)
    await rescue_jobs(conn, store, [(WORKER, 0)], max_crashes=5)
    assert 3 == len(await take(conn, store, 2, worker_id=12))
    assert [] == await take(conn, store, 3, worker_id=12)


@pytest.mark.promise(18, 19)
async def test_a_lock_that_another_holds_is_not_waited_for(conn: Connection, connect: Connect, store: Store) -> None:
    """The claimer hears at once that the name is locked; other names of the same claim are not held up."""
    await limit(conn, store, Limits(2), name="other")
    await limit(conn, store, Limits(2))
    await add_jobs(conn, store, 2)
    (job_id,) = await add_jobs(conn, store, 1, name="other")
    holder = await connect()
    async with holder.transaction():
        await store.statement("try_lock_limits").fetch(holder, entrypoints=["fetch"], limited=[True])
        with anyio.fail_after(5):
            answer = await claim_limited(
                conn, store, Scan.over({"fetch": None, "other": None}), worker_id=WORKER, claim_no=1, limit=9, reach=1
            )
        assert {"fetch": False, "other": True} == {one.entrypoint: one.locked for one in answer.names}
        assert [job_id] == [job.id for job, _ in answer.jobs]
    assert 2 == len(await take(conn, store, 2))


@pytest.mark.promise(20)
async def test_serialized_jobs_follow_one_order(conn: Connection, store: Store) -> None:
    """One at a time, by priority and then in the order of enqueueing; one that is given back comes first again."""
    await limit(conn, store, Limits(1, math.inf, serialized=True))
    low = await add_jobs(conn, store, 3)
    high = await add_jobs(conn, store, 2, priorities=[5, 5])
    ran: list[JobId] = []
    claim_no = 0
    while held := await take(conn, store, claim_no := claim_no + 1):
        assert 1 == len(held)
        assert [] == await take(conn, store, -claim_no)
        if ids(held) == high[:1] and claim_no == 1:
            await settle(conn, store, held[0], GIVEN_BACK)
        else:
            await finish_jobs(conn, store, held)
        ran += ids(held)
    assert [high[0], *high, *low] == ran


@pytest.mark.promise(20)
async def test_a_locked_head_holds_serialized_jobs_back(conn: Connection, connect: Connect, store: Store) -> None:
    """A later job does not overtake the first one while a transaction has it locked; without order it may."""
    await limit(conn, store, Limits(1, math.inf, serialized=True))
    first, second = await add_jobs(conn, store, 2)
    holder = await connect()
    async with holder.transaction():
        await rows(holder, store, "select 1 from {schema}.queued where job_id = %s for update", first)
        answer = await ask(conn, store, reach=8)
        assert ([], 1) == (answer.jobs, answer.names[0].candidates)
        await limit(conn, store, Limits(1), worker_id=12)
        assert [second] == ids(await take(conn, store, 2, worker_id=12, reach=8))


@pytest.mark.promise(21)
async def test_tokens_come_at_an_even_pace(conn: Connection, store: Store) -> None:
    """One start, then a pause; a pause of the jobs saves no more than one token."""
    await limit(conn, store, Limits(0, 0.01))
    await add_jobs(conn, store, 9)
    first = await ask(conn, store, 1)
    assert 1 == len(first.jobs)
    pause = first.names[0].pause
    assert pause is not None
    assert 90 < pause < 100
    assert [] == await take(conn, store, 2)
    await rows(conn, store, "update {schema}.limiter_state set tat = clock_timestamp() - interval '1 hour'")
    assert 1 == len(await take(conn, store, 3))
    assert [] == await take(conn, store, 4)


@pytest.mark.promise(21)
async def test_a_fast_rate_allows_what_its_tolerance_holds(conn: Connection, store: Store) -> None:
    """At 1,000 a second no worker wakes for each token: those of 10 ms may start together."""
    await limit(conn, store, Limits(0, 1000.0))
    await add_jobs(conn, store, 50)
    assert 10 <= len(await take(conn, store, 1)) <= 12


@pytest.mark.promise(21)
async def test_a_clock_that_was_set_back_stops_nobody(conn: Connection, store: Store) -> None:
    """The next token is never further away than one pause."""
    await limit(conn, store, Limits(0, 0.01))
    await add_jobs(conn, store, 3)
    await take(conn, store, 1)
    await rows(conn, store, "update {schema}.limiter_state set tat = clock_timestamp() + interval '1 hour'")
    pause = (await ask(conn, store, 2)).names[0].pause
    assert pause is not None
    assert 90 < pause <= 100.01


@pytest.mark.promise(21)
@pytest.mark.parametrize(
    ("way", "is_refunded"),
    [
        ("unstarted", True),
        ("lost", True),
        ("leave", True),
        ("back", False),
        ("retry", False),
        ("success", False),
        ("failure", False),
    ],
)
async def test_only_jobs_that_never_started_give_their_token_back(
    conn: Connection, store: Store, way: str, is_refunded: bool
) -> None:
    """The next job may then start at once, and only one more."""
    await limit(conn, store, Limits(0, 0.01))
    await add_jobs(conn, store, 5)
    (held,) = await take(conn, store, 1)
    await EXITS[way](conn, store, held)
    assert is_refunded == (1 == len(await take(conn, store, 2)))
    assert [] == await take(conn, store, 3)
    assert 0 == await value(conn, store, "select count(*) from {schema}.limiter_refund")


@pytest.mark.promise(21, 25)
async def test_a_job_cancelled_before_its_start_gives_its_token_back(conn: Connection, store: Store) -> None:
    """It is recorded as cancelled and spent nothing."""
    await limit(conn, store, Limits(0, 0.5))
    await add_jobs(conn, store, 2)
    (held,) = await take(conn, store, 1)
    await cancel(conn, store, ids([held]))
    assert [(held.job.id, "cancelled")] == await settle(conn, store, held, UNSTARTED_CANCELLED)
    assert 1 == len(await take(conn, store, 2))


@pytest.mark.promise(18)
async def test_the_last_definition_holds_for_all(conn: Connection, store: Store) -> None:
    """A worker that starts replaces the limits, is told of those that others registered, and the others hear of it."""
    assert [] == await limit(conn, store, Limits(2))
    assert [] == await limit(conn, store, Limits(2), worker_id=12)
    pulse = await beat_worker(conn, store, worker_id=WORKER)
    assert pulse is not None
    assert 0 == pulse.limit_changes
    replaced = await limit(conn, store, Limits(3), worker_id=13)
    assert [Definition("fetch", Limits(2), f"worker {WORKER}")] == replaced
    pulse = await beat_worker(conn, store, worker_id=WORKER)
    assert pulse is not None
    assert 1 == pulse.limit_changes
    known = await list_limits(conn, store, ["fetch"], worker_id=WORKER)
    assert KnownLimits([Definition("fetch", Limits(3), "worker 13")], changes=1) == known
    await add_jobs(conn, store, 9)
    assert 3 == len(await take(conn, store, 1))


@pytest.mark.promise(18)
async def test_a_worker_that_does_not_know_of_a_limit_claims_nothing(conn: Connection, store: Store) -> None:
    """And what it claimed before is counted, although no claim under the limit has seen it."""
    await add_worker(conn, store)
    await add_jobs(conn, store, 9)
    (known,) = await claim(conn, store, 1, limit=1)
    await limit(conn, store, Limits(3), worker_id=12)
    assert [] == await claim(conn, store, 2)
    assert 2 == len(await take(conn, store, 3, worker_id=12))
    limits = await list_limits(conn, store, ["fetch"], worker_id=WORKER)
    assert [] == await claim(conn, store, 3)  # what it has read, it need not know yet
    # As one that was under way when the limit came.
    (late,) = await claim(conn, store, 4, limit=1, limit_changes=limits.changes)
    await finish_jobs(conn, store, [known])
    assert [] == await take(conn, store, 5, worker_id=12)
    # Once no such claim can be under way any more, they are counted a last time.
    await rows(conn, store, "update {schema}.limiter set defined_at = defined_at - interval '1 hour'")
    await take(conn, store, 6, worker_id=12)
    assert await value(conn, store, "select counted from {schema}.limiter_state")
    assert late.job.id in await value(conn, store, "select slots from {schema}.limiter_state")


@pytest.mark.promise(18)
async def test_limits_can_be_taken_away(conn: Connection, store: Store) -> None:
    """A worker that registers the name without limits lifts them for all; names without limits leave no row."""
    await limit(conn, store, UNLIMITED)
    assert 0 == await value(conn, store, "select count(*) from {schema}.limiter")
    await limit(conn, store, Limits(1), worker_id=12)
    await limit(conn, store, UNLIMITED, worker_id=13)
    known = await list_limits(conn, store, ["fetch"], worker_id=12)
    assert [Definition("fetch", UNLIMITED, "worker 13")] == known.definitions
    await add_jobs(conn, store, 5)
    assert 5 == len(await take(conn, store, worker_id=12))


@pytest.mark.promise(47)
async def test_a_held_snapshot_does_not_slow_limited_claims(conn: Connection, connect: Connect, store: Store) -> None:
    """What a claim reads does not grow with the number of jobs done, although none of their rows can be removed."""
    await limit(conn, store, Limits(5))
    await add_jobs(conn, store, 5100)
    for table in ("running", "limiter_state"):  # what an ANALYZE between the two looks changes is no growth
        await rows(conn, store, f"alter table {{schema}}.{table} set (autovacuum_enabled = off)")
    reporter, claimer = await connect(), await connect()
    async with reporter.transaction():
        await reporter.execute("set transaction isolation level repeatable read")
        await rows(reporter, store, "select count(*) from {schema}.running")

        async def run(first: int, number: int) -> None:
            for claim_no in range(first, first + number):
                await finish_jobs(claimer, store, await take(claimer, store, claim_no))

        async def read_blocks() -> int:
            blocks: int = await value(
                claimer,
                store,
                "select sum(pg_stat_get_xact_blocks_fetched(c.oid)) from pg_class c "
                "where c.relnamespace = '{schema}'::regnamespace and c.relname ~ '^(limiter_state|running)'",
            )
            return blocks

        async def cost(first: int) -> int:
            async with claimer.transaction(force_rollback=True):
                before = await read_blocks()
                await take(claimer, store, first)
                return await read_blocks() - before

        await run(1000, 200)
        at_first = await cost(1)
        await run(2000, 800)
        assert await cost(2) <= at_first + 10


@pytest.mark.promise(6)
@pytest.mark.parametrize("end", ["leaves", "dies"])
async def test_the_end_of_a_worker_wakes_those_that_rest(
    conn: Connection, connect: Connect, store: Store, end: str
) -> None:
    """Whoever found a name full is not in the list of those whom an enqueuer notifies. It may have been this worker
    that was, so that its end tells the others to look; of names that are never full there is nothing to tell.
    """
    await add_worker(conn, store, WORKER, ["fetch", "rated", "free"])
    definitions = {"fetch": Limits(1), "rated": Limits(0, 5.0), "free": UNLIMITED}
    await define_limits(conn, store, worker_id=WORKER, name="w", entrypoints=list(definitions), limits=definitions)
    await limit(conn, store, Limits(1), worker_id=12, name="foreign")
    listener = await connect()
    await listener.execute(sql.SQL("listen {}").format(sql.Identifier(store.channel)))
    if end == "leaves":
        await leave(conn, store, worker_id=WORKER)
        await leave(conn, store, worker_id=WORKER)  # as after a lost answer: nothing more is to be told
    else:
        await rescue_jobs(conn, store, [(WORKER, 0), (13, 0)], max_crashes=5)
    await conn.execute("select pg_notify(%s, 'end')", [store.channel])
    heard: list[str] = []
    with anyio.fail_after(10):
        while "end" not in heard:
            heard += [one.payload for one in await listener.wait_notifies()]
    assert ["slot:fetch", "end"] == heard

"""A million queued jobs, in tables that ANALYZE has seen empty: what claims and counts read of them."""

from __future__ import annotations

from typing import Any

import pytest

from pgq_anyio._db import Connection
from pgq_anyio._hints import HIGHEST, LOWEST, Lanes
from pgq_anyio._limits import UNLIMITED, Limits
from pgq_anyio._store._sql import Store
from pgq_anyio._store.limiter import Scan, claim_limited, define_limits
from tests.store.conftest import Connect
from tests.store.scenes import WORKER, add_worker, rows, value
from tests.store.test_plans import FENCE, fill, hint, nodes, plan_of

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]

FEW, MANY = 1000, 1_000_000
#: A name with a few jobs among all those of the other one.
ADD = (
    "insert into {schema}.queued (entrypoint, priority)"
    " select case when n <= 60 then 'rare' else 'fetch' end, n %% 3 from generate_series(1, %s) n"
)
#: Names that share the jobs of each priority, and how many of each are claimed at once.
LIMITS = {
    "limited": Limits(5),
    "serialized": Limits(1, serialized=True),
    "rated": Limits(requests_per_second=300.0),
    "process": UNLIMITED,
    "open": UNLIMITED,
}
CLAIMED = {"limited": 5, "serialized": 1, "rated": 4, "process": 3, "open": 50}
SHARE = (
    "insert into {schema}.queued (entrypoint, priority)"
    " select (%s::text[])[1 + n %% 5], n / 5 %% 3 from generate_series(1, %s) n"
)
BLOCKS_OF_QUEUE = (
    "select sum(pg_stat_get_xact_blocks_fetched(c.oid)) from pg_class c"
    " where c.relnamespace = '{schema}'::regnamespace and c.relname ~ '^queued'"
)
#: How far the jobs of each name are counted: less than there are at first.
COUNTED = 500


def scans_of_queue(plan: dict[str, Any]) -> set[tuple[str, str | None]]:
    """How a plan finds rows of the queue."""
    return {
        (node["Node Type"], node.get("Index Name"))
        for node in nodes(plan)
        if node.get("Relation Name") == "queued" and node["Node Type"] != "ModifyTable"
    }


@pytest.mark.promise(47)
async def test_what_claims_and_counts_read_does_not_grow_with_a_million(
    conn: Connection, connect: Connect, store: Store
) -> None:
    """At most twice as much as of a thousand jobs, by the index of lanes: from their start, and behind hints."""
    claimer = await connect()
    read: dict[str, list[int]] = {}

    async def look(name: str, on: Connection, parameters: dict[str, Any]) -> dict[str, Any]:
        plan = await plan_of(on, store, name, parameters)
        read.setdefault(name, []).append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
        return plan

    async def claim(name: str, parameters: dict[str, Any]) -> None:
        plan = await look(name, claimer, {**FENCE, **parameters})
        assert 50 == plan["Actual Rows"]
        scans = scans_of_queue(plan)
        assert scans <= {("Index Scan", "queued_lane"), ("Tid Scan", None)}, name
        assert ("Index Scan", "queued_lane") in scans, name

    await fill(conn, store, 0)
    for number in (FEW, MANY - FEW):
        await rows(conn, store, ADD, number)
        await claim("claim_sweep", {"entrypoints": ["fetch", "rare"]})
        async with claimer.transaction(force_rollback=True):
            await claim("claim_hinted", await hint(claimer, store, ["fetch", "rare"]))
        counts = await look("queue_size", conn, {"limit": COUNTED})
        assert 2 == counts["Actual Rows"]
    assert all(blocks[1] <= 2 * blocks[0] for blocks in read.values()), read


def from_hint(name: str) -> Lanes:
    """What is known after a first look: the lane of the highest priority, and nothing of the others."""
    return Lanes([name], [2], [0], [name, name], [2, LOWEST], [HIGHEST, 2])


@pytest.mark.promise(19, 47)
async def test_nor_does_what_claims_of_names_with_limits_read(conn: Connection, connect: Connect, store: Store) -> None:
    """Limited, rated and serialized names, those with processes, and all of them beside names without limits."""
    claimer = await connect()
    names = list(LIMITS)
    for table in ("queued", "running", "worker", "limiter", "limiter_state"):
        await rows(conn, store, f"analyze {{schema}}.{table}")
    await add_worker(conn, store, WORKER, names)
    known, _ = await define_limits(conn, store, worker_id=WORKER, name="test", entrypoints=names, limits=LIMITS)
    read: dict[str, list[int]] = {}

    async def claim(what: str, scan: Scan, others: Scan) -> None:
        expected = sum(CLAIMED[name] for name in scan.entrypoints)
        async with claimer.transaction(force_rollback=True):
            before = await value(claimer, store, BLOCKS_OF_QUEUE)
            answer = await claim_limited(
                claimer,
                store,
                scan,
                worker_id=WORKER,
                claim_no=99,
                limit=50,
                reach=8,
                unlimited=["process"],
                in_process=["process"],
                processes=CLAIMED["process"],
                others=others,
                limit_changes=known.changes,
            )
            read.setdefault(what, []).append(await value(claimer, store, BLOCKS_OF_QUEUE) - before)
        assert (50 if others.entrypoints else expected) == len(answer.jobs), what

    sets = [[name] for name in names if name != "open"] + [names[:-1]]
    for number in (FEW, MANY - FEW):
        await rows(conn, store, SHARE, names, number)
        for chosen in sets:
            for known_lanes in (False, True):
                scan = Scan.over({name: from_hint(name) if known_lanes else None for name in chosen})
                await claim(f"{chosen}, {known_lanes}", scan, Scan.of([], None))
        await claim("beside others", Scan.over(dict.fromkeys(names[:-1])), Scan.of(["open"], None))
    assert all(0 < blocks[1] <= 2 * blocks[0] for blocks in read.values()), read

"""A million queued jobs, in tables that ANALYZE has seen empty: what claims and counts read of them."""

from __future__ import annotations

from typing import Any

import pytest

from pgq_anyio._db import Connection
from pgq_anyio._store._sql import Store
from tests.store.conftest import Connect
from tests.store.scenes import rows
from tests.store.test_plans import FENCE, fill, hint, nodes, plan_of

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]

FEW, MANY = 1000, 1_000_000
#: A name with a few jobs among all those of the other one.
ADD = (
    "insert into {schema}.queued (entrypoint, priority)"
    " select case when n <= 60 then 'rare' else 'fetch' end, n %% 3 from generate_series(1, %s) n"
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

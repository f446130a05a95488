"""Plans: what a dispatch connection may read, whatever the statistics say."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from pgq_anyio._db import Connection
from pgq_anyio._hints import Hints
from pgq_anyio._store._sql import Store
from pgq_anyio._store.queued import claim_sweep
from pgq_anyio._store.worker import BEATS_PER_LEASE, beat_worker
from tests.store.conftest import Connect
from tests.store.scenes import ADD_RUNNING, WORKER, add_worker, claim, rows, value

pytestmark = pytest.mark.anyio

FENCE: dict[str, Any] = {"worker_id": WORKER, "claim_no": 99, "limit": 50, "reach": 50, "limit_changes": 0}


async def plan_of(conn: Connection, store: Store, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The plan of a named block as it was executed, with what it read."""
    query = "explain (analyze, buffers, format json) " + store.sql(name)
    async with conn.transaction(force_rollback=True):
        cursor = await conn.execute(query.encode(), parameters)
        found = (await cursor.fetchall())[0][0]
    document = json.loads(found) if isinstance(found, str) else found
    plan: dict[str, Any] = document[0]["Plan"]
    return plan


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """A plan and all plans below it."""
    return [plan, *(node for below in plan.get("Plans", []) for node in nodes(below))]


def count_rows(plan: dict[str, Any]) -> int:
    """How many rows a plan has handled, those included that it read or compared in vain."""
    kinds = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Join Filter")
    return sum(round(node["Actual Loops"] * sum(node.get(kind, 0) for kind in kinds)) for node in nodes(plan))


async def fill(conn: Connection, store: Store, number: int) -> None:
    """Fill the queue after ANALYZE has seen it empty, which is when plans go wrong."""
    for table in ("queued", "running", "worker"):
        await rows(conn, store, "analyze {schema}." + table)
    await rows(
        conn,
        store,
        "insert into {schema}.queued (entrypoint, priority) select 'fetch', n %% 3 from generate_series(1, %s) n",
        number,
    )
    await add_worker(conn, store)


async def hint(conn: Connection, store: Store, names: list[str]) -> dict[str, Any]:
    """Claim once; the lanes behind the jobs that were claimed, as parameters of a hinted claim."""
    hints = Hints(tuple(names))
    hints.learn((await claim_sweep(conn, store, names, **{**FENCE, "claim_no": 1})).jobs)
    hints.swept(0.0, 10.0)
    lanes = hints.lanes(0.0)
    assert lanes is not None
    return attrs.asdict(lanes)


@pytest.mark.promise(47)
@pytest.mark.parametrize("name", ["claim_sweep", "claim_hinted"])
async def test_a_claim_walks_the_index_of_lanes(conn: Connection, connect: Connect, store: Store, name: str) -> None:
    """Rows are found by the index of lanes and then by their ctid; what is read does not grow with the queue."""
    claimer = await connect()
    await fill(conn, store, 30_000)
    parameters: dict[str, Any] = {**FENCE, "entrypoints": ["fetch"]}
    if name == "claim_hinted":
        parameters |= await hint(claimer, store, ["fetch"])
    plan = await plan_of(claimer, store, name, parameters)
    on_queue = [node for node in nodes(plan) if node.get("Relation Name") == "queued"]
    scans = {(node["Node Type"], node.get("Index Name")) for node in on_queue if node["Node Type"] != "ModifyTable"}
    assert scans <= {("Index Scan", "queued_lane"), ("Tid Scan", None)}
    assert ("Index Scan", "queued_lane") in scans
    read = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    assert read < 1500, f"{read} blocks for 50 of 30,000 jobs"


@pytest.mark.promise(47)
async def test_what_a_claim_reads_does_not_grow_with_the_queue(
    conn: Connection, connect: Connect, store: Store
) -> None:
    """With a hundred times as many jobs a claim reads hardly more. With a thousand times as many: ``test_million``."""
    claimer = await connect()
    parameters: dict[str, Any] = {**FENCE, "entrypoints": ["fetch"]}
    read = []
    for number in (1000, 99_000):
        await fill(conn, store, number)
        plan = await plan_of(claimer, store, "claim_sweep", parameters)
        read.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
    assert read[1] < 2 * read[0]


@pytest.mark.promise(47)
async def test_a_claim_by_its_plan_takes_jobs(conn: Connection, connect: Connect, store: Store) -> None:
    """The connection of the plans above claims what is there, so the plans are those of statements that work."""
    claimer = await connect()
    await fill(conn, store, 100)
    assert 100 == len(await claim(claimer, store))
    assert 0 == await value(conn, store, "select count(*) from {schema}.queued")


@pytest.mark.promise(24)
async def test_a_cancel_among_many_uses_the_index(conn: Connection, store: Store) -> None:
    """On an ordinary connection too, with statistics of an empty table."""
    await fill(conn, store, 30_000)
    job_ids = list(range(1000, 1050))
    plan = await plan_of(
        conn, store, "cancel_jobs", {"job_ids": job_ids, "reason": None, "states": ["deferred", "queued", "running"]}
    )
    used = {node["Index Name"] for node in nodes(plan) if "Index Name" in node}
    assert {"queued_job"} == {index for index in used if index.startswith("queued")}
    assert not [node for node in nodes(plan) if node["Node Type"] == "Seq Scan" and node["Relation Name"] == "queued"]
    assert 50 <= count_rows(plan) < 3000


@pytest.mark.promise(47)
async def test_listing_the_newest_does_not_read_the_queue(conn: Connection, store: Store) -> None:
    """A page of jobs costs what is on it."""
    await fill(conn, store, 30_000)
    parameters = {"first": -(2**63), "last": 2**63 - 1, "status": None, "entrypoint": None, "limit": 20}
    plan = await plan_of(conn, store, "list_jobs", parameters)
    read = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    assert read < 200, f"{read} blocks for 20 of 30,000 jobs"


@pytest.mark.promise(48)
async def test_a_heartbeat_does_not_read_what_runs(conn: Connection, store: Store) -> None:
    """But for one in each lease, which looks for rows of workers that do not exist, and finds them."""
    await add_worker(conn, store)
    await rows(conn, store, ADD_RUNNING, 20_000)
    await rows(conn, store, "update {schema}.running set cancel_requested_at = 'epoch' where job_id in (700, 7)")
    parameters = {"worker_id": WORKER, "unresolved": [], "beats_per_lease": BEATS_PER_LEASE}
    pulses, read = [], []
    for _ in range(2 * BEATS_PER_LEASE):
        plan = await plan_of(conn, store, "beat_worker", parameters)
        read.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
        pulses.append(await beat_worker(conn, store, worker_id=WORKER))
    assert all(pulse is not None and pulse.cancel_requested == [(7, 0), (700, 1)] for pulse in pulses)
    assert not any(pulse is None or pulse.orphans for pulse in pulses)
    assert 2 == sum(blocks > 100 for blocks in read), read
    await rows(conn, store, "update {schema}.running set worker_id = 0 where job_id = 20000")
    found = [await beat_worker(conn, store, worker_id=WORKER) for _ in range(BEATS_PER_LEASE)]
    assert [True] == [pulse.orphans for pulse in found if pulse is not None and pulse.orphans]


ENQUEUED: dict[str, dict[str, Any]] = {
    "enqueue_job": {"entrypoint": "fetch", "payload": b"x", "priority": 0},
    "enqueue_jobs": {
        "entrypoints": ["fetch"],
        "payloads": [b"x"],
        "priorities": [0],
        "delays": [None],
        "run_ats": [None],
    },
}


@pytest.mark.parametrize("always_notify", [False, True])
@pytest.mark.parametrize("name", ENQUEUED)
async def test_an_enqueue_is_planned_a_few_times_and_then_no_more(
    conn: Connection, store: Store, name: str, always_notify: bool
) -> None:
    """In a transaction of the caller's too. PostgreSQL looks at five plans made for the values before it keeps one."""
    for _ in range(20):
        await store.statement(name).fetch(conn, **ENQUEUED[name], always_notify=always_notify)
    cursor = await conn.execute(
        "select generic_plans, custom_plans from pg_prepared_statements where generic_plans > 0"
    )
    assert [(15, 5)] == await cursor.fetchall()
    assert 20 == await value(conn, store, "select count(*) from {schema}.queued")

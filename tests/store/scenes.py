"""What tests of statements need before the statement, and while it waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
from psycopg import sql

from pgq_anyio._db import Connection
from pgq_anyio._models import Held, JobId, JobStatus
from pgq_anyio._store._sql import Store
from pgq_anyio._store._steps import run_steps
from pgq_anyio._store.cancelling import cancel_jobs
from pgq_anyio._store.queued import NewJobs, claim_sweep, enqueue_jobs
from pgq_anyio._store.reading import job_status
from pgq_anyio._store.worker import register_worker

WORKER = 11
#: Lets the worker run so many jobs, in claims of PER_CLAIM; their ids count from 1.
PER_CLAIM = 500
ADD_RUNNING = (
    "insert into {schema}.running"
    " (job_id, worker_id, claim_no, seq, entrypoint, priority, attempt, crashes, created_at, claimed_at)"
    f" select n, {WORKER}, n / {PER_CLAIM}, n, 'fetch', 0, 1, 0, clock_timestamp(), clock_timestamp()"
    " from generate_series(1, %s) as n"
)


async def add_jobs(
    conn: Connection, store: Store, number: int = 1, *, name: str = "fetch", priorities: Sequence[int] | None = None
) -> list[JobId]:
    """Enqueue jobs that are due."""
    none = [None] * number
    jobs = NewJobs([name] * number, [b"payload"] * number, priorities or [0] * number, none, none)
    return await enqueue_jobs(conn, store, jobs, always_notify=False)


async def add_worker(
    conn: Connection, store: Store, worker_id: int = WORKER, names: Sequence[str] = ("fetch",), *, max_crashes: int = 5
) -> None:
    """Register a worker."""
    await register_worker(
        conn,
        store,
        worker_id=worker_id,
        name="test",
        entrypoints=names,
        max_crashes=[max_crashes] * len(names),
        lease=30.0,
    )


async def claim(
    conn: Connection,
    store: Store,
    claim_no: int = 1,
    *,
    worker_id: int = WORKER,
    limit: int = 100,
    name: str = "fetch",
    limit_changes: int = 0,
) -> list[Held]:
    """Claim from the start."""
    fence = {"worker_id": worker_id, "claim_no": claim_no, "limit_changes": limit_changes}
    answer = await claim_sweep(conn, store, [name], **fence, limit=limit, reach=max(limit, 100))
    return [Held(job, worker_id, claim_no) for job, _ in answer.jobs]


async def cancel(conn: Connection, store: Store, ids: Sequence[JobId], reason: str | None = "test") -> list[JobId]:
    """Cancel jobs; the ids that were affected."""
    return await run_steps(conn, cancel_jobs(store, conn, ids, reason))


async def status(conn: Connection, store: Store, job_id: JobId) -> JobStatus | None:
    """The state of a job."""
    return (await run_steps(conn, job_status(store, [job_id]))).get(job_id)


async def rows(conn: Connection, store: Store, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run a query in which ``{schema}`` stands for the schema."""
    text = sql.SQL(query).format(schema=sql.Identifier(store.schema))
    cursor = await conn.execute(text, parameters or None)
    return await cursor.fetchall() if cursor.description else []


async def value(conn: Connection, store: Store, query: str, *parameters: Any) -> Any:
    """The one value of a query."""
    ((found,),) = await rows(conn, store, query, *parameters)
    return found


async def forbid_indexes(conn: Connection) -> None:
    """Make the planner read whole tables, so that an order that only an index would bring is none."""
    await conn.execute(
        "select set_config(name, 'off', false) from unnest(array["
        "'enable_indexscan', 'enable_indexonlyscan', 'enable_bitmapscan', 'enable_tidscan']) as s (name)"
    )
    await conn.execute("set enable_seqscan = on; set enable_hashjoin = on")


async def wait_blocked(observer: Connection, blocked: Connection) -> None:
    """Wait until a statement on ``blocked`` waits for a lock."""
    with anyio.fail_after(10):
        while True:
            cursor = await observer.execute("select cardinality(pg_blocking_pids(%s)) > 0", [blocked.info.backend_pid])
            if (await cursor.fetchall())[0][0]:
                return
            await anyio.sleep(0.005)  # the fact lies in the server: it can only be looked at

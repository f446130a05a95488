"""Workers of one limited entrypoint, and what their handlers have written: times are the server's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from tests.worker.fleet import Fleet, WorkerProcess, wait_until

LEASE = 2.0
PROGRAM = "tests.worker.limited"


def start(fleet: Fleet, backend: str, number: int, limits: dict[str, object], **options: Any) -> list[WorkerProcess]:
    """Start workers that limit the entrypoint; all of them are ready."""
    options = {"lease": LEASE, "dequeue_timeout": 30, **options}
    workers = [fleet.start(backend, ready=False, program=PROGRAM, limits=limits, **options) for _ in range(number)]
    for worker in workers:
        wait_until(worker.is_registered, what="the worker is registered")
    return workers


def enqueue(fleet: Fleet, payloads: list[bytes], priorities: list[int] | None = None) -> list[int]:
    """Enqueue jobs for the limited entrypoint, in this order."""
    rows = fleet.rows(
        "insert into {schema}.queued (entrypoint, payload, priority) "
        "select 'limited', p, q from unnest(%s::bytea[], %s::integer[]) as i (p, q) returning job_id",
        payloads,
        priorities or [0] * len(payloads),
    )
    fleet.rows("select pg_notify('pgq_anyio.' || %s, 'queued:limited')", fleet.schema)
    return [row[0] for row in rows]


async def wait_for(fact: Callable[[], bool]) -> None:
    """Look at a fact of this process until it is true."""
    with anyio.fail_after(20):
        while not fact():  # noqa: ASYNC110  (handlers set it, in many ways)
            await anyio.sleep(0.001)


def count_ended(fleet: Fleet) -> int:
    ended: int = fleet.value("select count(*) from {schema}.finished")
    return ended


def highest_overlap(fleet: Fleet, *, but: int = 0) -> int:
    """How many handlers ran at once at most, without those of a process that was killed (``but``)."""
    events = fleet.rows(
        "select at, case event when 'start' then 1 else -1 end from {log} "
        "where event in ('start', 'end') and pid <> %s order by at, event",
        but,
    )
    now = highest = 0
    for _, step in events:
        now += step
        highest = max(highest, now)
    return highest

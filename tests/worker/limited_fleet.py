"""Workers of one limited entrypoint, and what their handlers have written: times are the server's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
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
        wait_until(worker.is_registered, timeout=60, what="the worker is registered")
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


def trickle(fleet: Fleet, number: int, *, runners: Iterable[WorkerProcess]) -> list[int]:
    """Enqueue jobs one by one, each when the one before it has begun: all workers that wait are woken for each. Which
    of them is the fastest is left to the machine; it goes on until each of ``runners`` has run some.

    :param number: how many at least
    """
    ids: list[int] = []
    expected = {worker.pid for worker in runners}

    def add_one() -> bool:
        (job_id,) = enqueue(fleet, [b""])
        wait_until(partial(fleet.events, job_id), pause=0.002)
        ids.append(job_id)
        return len(ids) >= number and expected <= pids(fleet)

    wait_until(add_one, pause=0, what="each worker has run some")
    return ids


def pids(fleet: Fleet) -> set[int]:
    """The processes that have started jobs."""
    return {row[0] for row in fleet.rows("select distinct pid from {log} where event = 'start'")}


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

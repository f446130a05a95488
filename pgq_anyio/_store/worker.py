"""The table ``worker``: who is alive, and what happens to the jobs of those who are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from .._db import Connection
from .._models import JobId
from ._sql import Store

#: Heartbeats per lease.
BEATS_PER_LEASE: Final = 3


@attrs.frozen
class Peer:
    """Another worker, as a heartbeat's answer shows it."""

    worker_id: int
    beat: int
    #: the lease it asked for (in seconds)
    lease: float
    #: seconds since its last heartbeat, by the database's clock
    age: float
    has_left: bool


@attrs.frozen
class Pulse:
    """The answer to a heartbeat: all that an idle worker needs to know."""

    #: the database's clock (in seconds since 1970)
    clock: float
    #: (job id, claim number) of our running jobs that are to be cancelled
    cancel_requested: list[tuple[JobId, int]]
    #: seconds until the next deferred job is due (negative if one is), or ``None`` if there is none
    next_due: float | None
    peers: list[Peer]
    #: whether ``running`` has rows of workers that do not exist, which one beat of each lease looks for
    orphans: bool
    #: whether it has rows of claims of ours whose answer was lost
    strays: bool = False
    #: how many changes of limits of our names there were
    limit_changes: int = 0
    #: which session of the server has answered: it is compared with others, and means nothing
    session: str = ""


async def register_worker(
    conn: Connection,
    store: Store,
    *,
    worker_id: int,
    name: str,
    entrypoints: Sequence[str],
    max_crashes: Sequence[int],
    lease: float,
) -> None:
    """Become a worker."""
    await store.statement("register_worker").run(
        conn,
        worker_id=worker_id,
        name=name,
        entrypoints=list(entrypoints),
        max_crashes=list(max_crashes),
        lease=lease,
    )


async def beat_worker(
    conn: Connection, store: Store, *, worker_id: int, unresolved: Sequence[int] = ()
) -> Pulse | None:
    """Show a sign of life.

    :param unresolved: the numbers of claims whose answer was lost
    :return: ``None`` if we are no worker any more: the lease is lost
    """
    rows = await store.statement("beat_worker").fetch(
        conn, worker_id=worker_id, unresolved=list(unresolved), beats_per_lease=BEATS_PER_LEASE
    )
    if not rows:
        return None
    clock, job_ids, claim_nos, next_due, *others, orphans, strays, limit_changes, session, _ = rows[0]
    peers = [Peer(*row) for row in zip(*others, strict=True)] if others[0] else []
    cancels = list(zip(job_ids, claim_nos, strict=True))
    return Pulse(clock, cancels, next_due, peers, orphans, strays, limit_changes, session)


async def set_sleeping(conn: Connection, store: Store, *, worker_id: int, sleeping: bool) -> None:
    """Say whether enqueuers should notify this worker."""
    await store.statement("set_sleeping").run(conn, worker_id=worker_id, sleeping=sleeping)


async def mark_left(conn: Connection, store: Store, *, worker_id: int) -> None:
    """Say that this worker is gone although handlers of its own still run."""
    await store.statement("mark_left").run(conn, worker_id=worker_id)


def hand_over(conn: Connection, store: Store, *, worker_id: int, after: float, max_crashes: int) -> None:
    """Have the server rescue what a worker that has said that it leaves still holds, when its process is gone: no
    handler of that process is to overlap with the next run of its job.

    :param after: how long the server waits first (in seconds)
    :param max_crashes: as for ``rescue_jobs``
    """
    conn.send_last(
        f"select pg_catalog.pg_sleep(%(after)s); {store.sql('rescue_jobs')}",
        {"after": after, "worker_ids": [worker_id], "beats": [0], "max_crashes": max_crashes},
    )


async def leave(conn: Connection, store: Store, *, worker_id: int) -> list[JobId]:
    """Stop being a worker; the ids of jobs that had to be given back (none, if all went well)."""
    rows = await store.statement("leave").fetch(conn, worker_id=worker_id)
    ids: list[JobId] = rows[0][1]
    return ids


async def rescue_jobs(
    conn: Connection, store: Store, judged: Sequence[tuple[int, int]], *, max_crashes: int
) -> tuple[list[int], list[JobId]]:
    """Take over from the judged workers, given as (worker id, the beat that was seen too long), and from no one at all.

    :param max_crashes: what counts for jobs whose worker left no row to say it
    :return: the ids of the workers that were removed, and of the jobs that were taken
    """
    rows = await store.statement("rescue_jobs").fetch(
        conn, worker_ids=[w for w, _ in judged], beats=[b for _, b in judged], max_crashes=max_crashes
    )
    return rows[0][0], rows[0][1]


async def has_pending(conn: Connection, store: Store, entrypoints: Sequence[str]) -> bool:
    """Whether any job of these names has not ended."""
    rows = await store.statement("has_pending").fetch(conn, entrypoints=list(entrypoints))
    return bool(rows[0][0])


async def count_pending(conn: Connection, store: Store, entrypoints: Sequence[str]) -> int:
    """How many jobs of these names have not ended."""
    rows = await store.statement("count_pending").fetch(conn, entrypoints=list(entrypoints))
    count: int = rows[0][0]
    return count

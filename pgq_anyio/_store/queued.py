"""The table ``queued``: jobs that wait for a worker."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import attrs

from .._db import Connection
from .._hints import Lanes
from .._models import Job, JobId
from ._sql import Store


@attrs.frozen
class NewJobs:
    """Jobs to enqueue, one element per job in every list."""

    entrypoints: Sequence[str]
    payloads: Sequence[bytes | None]
    priorities: Sequence[int]
    #: seconds from now by the database's clock, or ``None``
    delays: Sequence[float | None]
    run_ats: Sequence[datetime | None]

    def parameters(self, *, always_notify: bool) -> dict[str, object]:
        """For the statement ``enqueue_jobs``."""
        return {
            "entrypoints": list(self.entrypoints),
            "payloads": list(self.payloads),
            "priorities": list(self.priorities),
            "delays": list(self.delays),
            "run_ats": list(self.run_ats),
            "always_notify": always_notify,
        }


@attrs.frozen
class Claim:
    """The answer to a claim."""

    #: the jobs that are now ours, in the order in which they should start, each with its place in the queue
    jobs: list[tuple[Job, int]]
    #: how many rows were in reach; more than jobs means that others are claiming the same ones
    candidates: int


async def enqueue_jobs(conn: Connection, store: Store, jobs: NewJobs, *, always_notify: bool) -> list[JobId]:
    """Insert jobs; their ids in the order of the lists."""
    rows = await store.statement("enqueue_jobs").fetch(conn, **jobs.parameters(always_notify=always_notify))
    ids: list[JobId] = rows[0][0]
    return ids


async def claim_sweep(
    conn: Connection,
    store: Store,
    entrypoints: list[str],
    *,
    worker_id: int,
    claim_no: int,
    limit: int,
    reach: int,
    limit_changes: int = 0,
) -> Claim:
    """Claim from the start of every lane.

    :param limit_changes: how many changes of limits this worker knows of; if there were more, nothing is taken
    """
    rows = await store.statement("claim_sweep").fetch(
        conn,
        entrypoints=entrypoints,
        worker_id=worker_id,
        claim_no=claim_no,
        limit=limit,
        reach=reach,
        limit_changes=limit_changes,
    )
    return _claim(rows)


async def claim_hinted(
    conn: Connection,
    store: Store,
    lanes: Lanes,
    *,
    worker_id: int,
    claim_no: int,
    limit: int,
    reach: int,
    limit_changes: int = 0,
) -> Claim:
    """Claim behind the hints, and from gaps; the rest as ``claim_sweep``."""
    rows = await store.statement("claim_hinted").fetch(
        conn,
        entrypoints=lanes.entrypoints,
        priorities=lanes.priorities,
        seqs=lanes.seqs,
        gap_entrypoints=lanes.gap_entrypoints,
        gap_aboves=lanes.gap_aboves,
        gap_belows=lanes.gap_belows,
        worker_id=worker_id,
        claim_no=claim_no,
        limit=limit,
        reach=reach,
        limit_changes=limit_changes,
    )
    return _claim(rows)


async def look_queued(conn: Connection, store: Store, entrypoints: Sequence[str]) -> frozenset[str]:
    """Which of these names have jobs that wait."""
    rows = await store.statement("look_queued").fetch(conn, entrypoints=list(entrypoints))
    return frozenset(rows[0][0])


def _claim(rows: list[tuple[Any, ...]]) -> Claim:
    candidates = rows[0][0]
    if rows[0][1] is None:
        return Claim([], candidates)
    return Claim([(Job(row[1], *row[3:]), row[2]) for row in rows], candidates)

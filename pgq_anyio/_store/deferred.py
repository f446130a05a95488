"""The table ``deferred``: jobs whose time has not come."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import attrs

from .._db import Connection
from .._models import JobId
from ._sql import Store

#: Behind which job a promotion starts to look: its time and its id, which is the order of promotions.
Place = tuple[datetime, JobId]

#: Before all jobs: what was due when it was enqueued has never been deferred.
START: Final[Place] = (datetime.fromtimestamp(0, UTC), JobId(0))


#: The most jobs, and bytes of payloads, that are moved at once.
BATCH: Final = 5_000
BATCH_BYTES: Final = 16_000_000
#: Among how many of the due jobs priority decides which are moved first. Each pass reads them all.
WINDOW: Final = 100_000


@attrs.frozen
class Promotion:
    """The answer to a promotion."""

    #: whether it was our turn; if not, nobody has looked at what is due
    is_ours: bool
    #: how many jobs became queued
    moved: int
    entrypoints: list[str]
    #: whether more are due
    has_more: bool
    #: seconds until the next job is due that was not, or ``None`` if there is none
    next_due: float | None
    #: the last job before which all were moved, or ``None`` if there is none
    last: Place | None
    #: whether some of them were not, because others have locked them
    passed_by: bool = False


async def promote_due(
    conn: Connection, store: Store, *, limit: int = BATCH, window: int = WINDOW, behind: Place = START
) -> Promotion:
    """Move due jobs into ``queued``, unless another worker is at it.

    :param limit: the most jobs to move
    :param window: among how many of those that became due first the highest priority is moved first
    """
    run_at, job_id = behind
    rows = await store.statement("promote_due").fetch(
        conn, limit=limit, window=window, bytes=BATCH_BYTES, moved_run_at=run_at, moved_job_id=job_id
    )
    is_ours, moved, entrypoints, has_more, next_due, last_run_at, last_job_id, passed_by, _ = rows[0]
    last = None if last_run_at is None else (last_run_at, last_job_id)
    return Promotion(is_ours, moved, entrypoints, has_more, next_due, last, passed_by)

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


@attrs.frozen
class Promotion:
    """The answer to a promotion."""

    #: how many jobs became queued
    moved: int
    entrypoints: list[str]
    #: seconds until the next deferred job is due, or ``None`` if there is none
    next_due: float | None
    #: the last job that was moved, or ``None`` if none was
    last: Place | None


async def promote_due(conn: Connection, store: Store, *, limit: int, behind: Place = START) -> Promotion:
    """Move up to ``limit`` due jobs into ``queued``."""
    run_at, job_id = behind
    rows = await store.statement("promote_due").fetch(conn, limit=limit, moved_run_at=run_at, moved_job_id=job_id)
    moved, entrypoints, next_due, last_run_at, last_job_id, _ = rows[0]
    return Promotion(moved, entrypoints, next_due, (last_run_at, last_job_id) if moved else None)

"""Failed and cancelled jobs, once more.

By filter, jobs are requeued page by page, each in a transaction of its own. Those that fail again meanwhile are not met
twice: only records from before the call count.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import attrs

from .._models import JobId, JobStatus
from ._sql import Store
from ._steps import Ask, Fetch, Steps

#: Jobs in one statement.
CHUNK: Final = 1000

_CLOCK: Final = "select pg_catalog.clock_timestamp()"
_BEFORE_ALL: Final = -(2**63)


@attrs.frozen(kw_only=True)
class EndedFilter:
    """Which of the jobs that have ended unsuccessfully."""

    statuses: tuple[JobStatus, ...]
    entrypoint: str | None
    #: the name of the class of the last error
    error_type: str | None
    finished_after: datetime | None
    finished_before: datetime | None
    #: how many at most, the oldest ids first
    limit: int | None


def requeue_jobs(store: Store, ids: Sequence[JobId]) -> Steps[list[JobId]]:
    """Requeue the jobs among these that have failed or were cancelled.

    :return: the ids of those that were requeued, in the order of ``ids``
    """
    ordered = sorted(set(ids))
    requeued: set[JobId] = set()
    for start in range(0, len(ordered), CHUNK):
        requeued.update((yield from _requeue(store, ordered[start : start + CHUNK], None)))
    return [job_id for job_id in dict.fromkeys(ids) if job_id in requeued]


def requeue_matching(store: Store, wanted: EndedFilter) -> Steps[list[JobId]]:
    """Requeue the jobs that match.

    :return: the ids of those that were requeued, in their order
    """
    now: datetime = (yield Ask(_CLOCK))[0][0]
    before = now if wanted.finished_before is None else min(now, wanted.finished_before)
    requeued: list[JobId] = []
    after = JobId(_BEFORE_ALL)
    while wanted.limit is None or len(requeued) < wanted.limit:
        page = CHUNK if wanted.limit is None else min(CHUNK, wanted.limit - len(requeued))
        rows = yield Fetch(
            store,
            "find_requeueable",
            {
                "statuses": [str(status) for status in wanted.statuses],
                "entrypoint": wanted.entrypoint,
                "error_type": wanted.error_type,
                "finished_after": wanted.finished_after,
                "finished_before": before,
                "after": after,
                "limit": page,
            },
        )
        if not rows:
            break
        found = [JobId(row[0]) for row in rows]
        after = found[-1]
        requeued += yield from _requeue(store, found, before)
    return requeued


def _requeue(store: Store, ids: list[JobId], finished_before: datetime | None) -> Steps[list[JobId]]:
    rows = yield Fetch(store, "requeue_jobs", {"job_ids": ids, "finished_before": finished_before})
    requeued: list[JobId] = rows[0][0]
    return requeued

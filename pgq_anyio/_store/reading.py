"""What the database says of jobs and workers: reads that may be called from anywhere, at any time.

Everything about a job comes from one statement, so it is of one moment: no job that moves meanwhile is missed or seen
in two states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from .._models import ErrorRecord, JobId, JobRecord, JobStatus, WorkerRecord
from ._sql import Store
from ._steps import Fetch, Steps

MIN_ID: Final = -(2**63)
MAX_ID: Final = 2**63 - 1


def job_status(store: Store, ids: Sequence[JobId]) -> Steps[dict[JobId, JobStatus]]:
    """The states of jobs; ids that are not known are left out."""
    rows = yield Fetch(store, "job_status", {"job_ids": list(ids)})
    found = {row[0]: JobStatus(row[1]) for row in rows}
    return {job_id: found[job_id] for job_id in ids if job_id in found}


def get_job(store: Store, job_id: JobId) -> Steps[JobRecord | None]:
    """All about one job."""
    parameters = {"first": job_id, "last": job_id, "status": None, "entrypoint": None, "limit": 1}
    rows = yield Fetch(store, "list_jobs", parameters)
    return _record(rows[0]) if rows else None


def list_jobs(
    store: Store, *, status: JobStatus | None, entrypoint: str | None, limit: int, before: JobId | None
) -> Steps[list[JobRecord]]:
    """All about several jobs, the newest first.

    :param before: only jobs with a lower id than this, to go on where the last answer ended
    """
    parameters = {
        "first": MIN_ID,
        "last": MAX_ID if before is None else before - 1,
        "status": None if status is None else str(status),
        "entrypoint": entrypoint,
        "limit": limit,
    }
    rows = yield Fetch(store, "list_jobs", parameters)
    return [_record(row) for row in rows]


def queue_size(store: Store, *, limit: int | None) -> Steps[dict[str, int]]:
    """How many jobs of each name are queued, up to ``limit``."""
    rows = yield Fetch(store, "queue_size", {"limit": limit})
    return {row[0]: row[1] for row in rows}


def list_workers(store: Store) -> Steps[list[WorkerRecord]]:
    """The workers, the oldest first."""
    rows = yield Fetch(store, "list_workers", {})
    return [WorkerRecord(row[0], row[1], tuple(row[2]), *row[3:]) for row in rows]


def _record(row: tuple[Any, ...]) -> JobRecord:
    job_id, entrypoint, status, priority, attempt, crashes, payload, created_at, run_at, claimed_at, finished_at = row[
        :11
    ]
    (
        worker_id,
        cancel_requested_at,
        cancel_reason,
        overdue_at,
        *last,
        attempts,
        failed_ats,
        types,
        messages,
        traces,
        cancelled_by,
    ) = row[11:]
    errors = [
        ErrorRecord(*e)
        for e in zip(attempts or (), failed_ats or (), types or (), messages or (), traces or (), strict=True)
    ]
    if last[0] is not None:
        errors.append(ErrorRecord(attempt, finished_at, *last))
    return JobRecord(
        id=job_id,
        entrypoint=entrypoint,
        status=JobStatus(status),
        priority=priority,
        attempt=attempt,
        crashes=crashes,
        payload=payload,
        created_at=created_at,
        run_at=run_at,
        claimed_at=claimed_at,
        finished_at=finished_at,
        worker_id=worker_id,
        cancel_requested_at=cancel_requested_at,
        cancel_reason=cancel_reason,
        cancelled_by=cancelled_by,
        overdue_at=overdue_at,
        errors=tuple(errors),
    )

"""The values that users see: jobs, their records, schedules, and the words for what became of them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NewType

import attrs

JobId = NewType("JobId", int)
"""The number of a job: unique in its schema, 64 bits, given by the database."""


class JobStatus(StrEnum):
    """The state of a job. The first three are tables of their own, the last three are ends."""

    DEFERRED = "deferred"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCESSFUL = "successful"
    FAILED = "failed"
    CANCELLED = "cancelled"


class CancelReason(StrEnum):
    """Why a handler is being cancelled."""

    #: somebody asked for it, in the database
    USER = "user"
    #: the ``timeout`` of its entrypoint has passed
    TIMEOUT = "timeout"
    #: the worker stops; the job goes back to the queue
    SHUTDOWN = "shutdown"
    #: the worker lost its lease; the job belongs to another worker by now, or soon
    LEASE_LOST = "lease_lost"


@attrs.frozen(slots=True)
class Job:
    """A job as its handler sees it."""

    id: JobId
    entrypoint: str
    #: the bytes that were enqueued, unchanged
    payload: bytes | None
    priority: int
    #: the number of this attempt, from 1; a retry after a failure counts, a snooze or a lost worker does not
    attempt: int
    #: how many workers died while they ran this job
    crashes: int
    #: when the job was enqueued, by the database's clock
    created_at: datetime

    @property
    def data(self) -> bytes | None:
        """The same as ``payload``."""
        return self.payload


@attrs.frozen(slots=True)
class Schedule:
    """One occurrence of a schedule, as its handler sees it."""

    name: str
    expression: str
    timezone: str
    #: the moment this run was due, by the cron expression
    due_at: datetime


@attrs.frozen(slots=True)
class ScheduleRecord:
    """All that the database knows of one schedule."""

    name: str
    expression: str
    timezone: str
    #: when code first registered it
    registered_at: datetime
    #: whether it is paused: what comes due meanwhile is passed over
    paused: bool
    #: whether no live worker has code for it
    is_orphaned: bool
    #: the latest occurrence that was run or passed over; before the first one, when it was registered
    last_due_at: datetime
    #: the next occurrence. In the past if nobody has been there to run it; ``None`` while it is paused,
    #: unless a run was asked for
    next_due_at: datetime | None
    #: the worker that runs it now, its host and process, the occurrence, and since when; ``None`` while nobody does
    worker_id: int | None
    worker_name: str | None
    due_at: datetime | None
    started_at: datetime | None
    #: how the last run ended: ``successful``, ``failed``, ``cancelled``, or ``given_back`` if it is to be run again
    last_status: str | None
    last_finished_at: datetime | None
    #: the error of the last run; the message of a cancelled one is its reason
    last_error_type: str | None
    last_error_message: str | None
    last_error_traceback: str | None


@attrs.frozen(slots=True)
class ErrorRecord:
    """One failed attempt of a job, or the loss of the worker that ran it (``WorkerDied``), which is no attempt."""

    attempt: int
    failed_at: datetime
    #: the name of the exception's class
    type: str
    message: str
    #: the formatted traceback with all leaves of a group, or ``None`` if there is none (a worker that died)
    traceback: str | None


@attrs.frozen(slots=True)
class JobRecord:
    """All that the database knows of one job."""

    id: JobId
    entrypoint: str
    status: JobStatus
    priority: int
    attempt: int
    crashes: int
    #: kept while the job has not ended, and for failed and cancelled jobs; ``None`` for successful ones
    payload: bytes | None
    created_at: datetime
    #: when a deferred job becomes due
    run_at: datetime | None
    claimed_at: datetime | None
    finished_at: datetime | None
    #: the worker that runs the job, or ran it last
    worker_id: int | None
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    #: who asked for the cancel: the database's user and the name that the program gave its connection;
    #: ``None`` if the handler itself decided
    cancelled_by: str | None
    #: when a handler was first seen to ignore its cancellation
    overdue_at: datetime | None
    #: every failed attempt and every lost worker, oldest first
    errors: tuple[ErrorRecord, ...]


@attrs.frozen(slots=True)
class WorkerRecord:
    """A worker as the database knows it."""

    id: int
    #: host and process
    name: str
    entrypoints: tuple[str, ...]
    #: seconds without a heartbeat after which it counts as dead
    lease: float
    started_at: datetime
    heartbeat_at: datetime
    #: whether it waits to be notified of work
    is_sleeping: bool
    #: when it said that it goes although handlers of its own still run, or ``None``
    left_at: datetime | None
    #: how many jobs it holds
    running: int


@attrs.frozen(slots=True)
class Held:
    """A claimed job with its fence: its row counts as the worker's only while all three numbers match."""

    job: Job
    worker_id: int
    claim_no: int

"""pgq_anyio: a PostgreSQL job queue and cron scheduler in which structured concurrency is the design."""

from ._app import PgQueuer
from ._cancellation import Cancellation
from ._client import Queries, SyncQueries
from ._context import Context, current_context
from ._db import PsycopgDriver
from ._errors import AppLoadError, ConfigurationError, JobTimeout, PgqError, SchemaError
from ._executors import (
    AbstractEntrypointExecutor,
    EntrypointExecutor,
    ProcessExecutor,
    RetryWithBackoffEntrypointExecutor,
    ThreadExecutor,
)
from ._lifecycle import Cancel, Discard, Retry, Snooze
from ._models import CancelReason, ErrorRecord, Job, JobId, JobRecord, JobStatus, Schedule, ScheduleRecord, WorkerRecord
from ._registry import ExecutorParameters
from ._retry import RetryPolicy

__all__ = [
    "AbstractEntrypointExecutor",
    "AppLoadError",
    "Cancel",
    "CancelReason",
    "Cancellation",
    "ConfigurationError",
    "Context",
    "Discard",
    "EntrypointExecutor",
    "ErrorRecord",
    "ExecutorParameters",
    "Job",
    "JobId",
    "JobRecord",
    "JobStatus",
    "JobTimeout",
    "PgQueuer",
    "PgqError",
    "ProcessExecutor",
    "PsycopgDriver",
    "Queries",
    "Retry",
    "RetryPolicy",
    "RetryWithBackoffEntrypointExecutor",
    "Schedule",
    "ScheduleRecord",
    "SchemaError",
    "Snooze",
    "SyncQueries",
    "ThreadExecutor",
    "WorkerRecord",
    "current_context",
]

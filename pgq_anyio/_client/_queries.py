"""``Queries``: producers and operators in asynchronous programs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg

from .._db import PsycopgDriver
from .._errors import ConfigurationError
from .._models import JobId, JobRecord, JobStatus, ScheduleRecord, WorkerRecord
from .._store import cancelling, enqueueing, operating, reading, requeueing
from .._store._sql import DEFAULT_SCHEMA, Store
from .._store._steps import run_steps
from ._arguments import When, check_id, check_ids, check_limit, check_reason, check_schedule, list_filters, new_jobs
from ._filters import ended_filter, unfinished_filter

#: How long a call waits for a connection of the driver (in seconds), as psycopg's own pool does. Jobs that each hold
#: one while they enqueue over another would wait for each other for ever.
PATIENCE: Final = 30.0


class Queries:
    """What producers and operators ask of the queue.

    Connections are taken from the pool of the driver, for the length of a call; one that gets none within 30 s raises a
    ``psycopg.OperationalError``. With ``connection`` a call uses that one instead (ours, or a
    ``psycopg.AsyncConnection`` on asyncio) and belongs to whatever transaction is open there.

    :param driver: an open driver; not needed for calls with ``connection``
    :param schema: the PostgreSQL schema with the tables. Defaults to "pgq_anyio".
    :raises ConfigurationError: if the driver is none, or the schema cannot be the name of one
    """

    def __init__(self, driver: PsycopgDriver, *, schema: str = DEFAULT_SCHEMA) -> None:
        if not isinstance(driver, PsycopgDriver):
            # It may well be a DSN with a password, which no message shows.
            raise ConfigurationError(f"Queries takes a PsycopgDriver, not {type(driver).__name__}")
        self._driver = driver
        self._store = Store(schema)

    def __repr__(self) -> str:
        return f"<Queries on {self._driver!r}, schema {self._store.schema!r}>"

    async def enqueue(
        self,
        entrypoint: str | Sequence[str],
        payload: bytes | Sequence[bytes | None] | None = None,
        priority: int | Sequence[int] = 0,
        execute_after: When | Sequence[When] = None,
        *,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> list[JobId]:
        """Enqueue jobs: all of them or, after any error, none.

        Each argument is one value or a list with one value per job. Lists run in parallel and must have the same
        length; a single value holds for every job.

        :param entrypoint: the name of the handler. No worker needs to know it yet.
        :param payload: bytes for the handler, or ``None``. Defaults to ``None``.
        :param priority: 32-bit number; the higher, the earlier. Defaults to 0.
        :param execute_after: not before this time has passed (a ``timedelta``, by the database's clock), or not before
            this moment (an aware ``datetime``). Defaults to ``None``, which is at once, as are past moments.
        :param connection: enqueue in the open transaction of this connection: the jobs exist when it commits
        :return: the ids of the jobs, in the order of the lists
        :raises ConfigurationError: if an argument cannot be used; the message says which element
        :raises RuntimeError: if the driver is not open
        """
        jobs = new_jobs(entrypoint, payload, priority, execute_after)
        async with self._connection(connection) as conn:
            steps = enqueueing.enqueue(self._store, conn, jobs, always_notify=connection is not None)
            return await run_steps(conn, steps)

    async def mark_job_as_cancelled(
        self,
        ids: Iterable[JobId] | None = None,
        reason: str | None = None,
        *,
        entrypoint: str | None = None,
        status: JobStatus | str | None = None,
        older_than: timedelta | datetime | None = None,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> list[JobId]:
        """Cancel jobs. One that waits never runs; of one that runs, the handler is cancelled and its end awaited.

        The jobs are named by their ids, or by filters: then all are cancelled that match when the call begins. The
        record of each says why, and who asked: the database's user and the ``application_name`` of the connection.

        :param ids: the jobs. Nothing happens to those that are unknown, have ended, or are being cancelled already.
        :param reason: recorded with the jobs
        :param entrypoint: instead of ids: jobs of this name
        :param status: instead of ids: jobs in this state: ``deferred``, ``queued`` or ``running``. One that has left it
            when its turn comes is passed over.
        :param older_than: instead of ids: jobs that were created longer ago than this (a ``timedelta``, by the
            database's clock), or before this moment (an aware ``datetime``)
        :param connection: cancel in the open transaction of this connection, which must be READ COMMITTED; rows stay
            locked until it ends
        :return: the ids of the jobs that this call has cancelled
        :raises ConfigurationError: if an argument cannot be used, or there are neither ids nor filters, or both
        :raises RuntimeError: if the transaction is REPEATABLE READ or SERIALIZABLE, or the driver is not open
        """
        wanted = unfinished_filter(ids, entrypoint=entrypoint, status=status, older_than=older_than)
        checked, reason = check_ids([] if ids is None else ids), check_reason(reason)
        async with self._connection(connection) as conn:
            if wanted is None:
                return await run_steps(conn, cancelling.cancel_jobs(self._store, conn, checked, reason))
            return await run_steps(conn, cancelling.cancel_matching(self._store, conn, wanted, reason))

    async def requeue(
        self,
        ids: Iterable[JobId] | None = None,
        *,
        entrypoint: str | None = None,
        status: JobStatus | str | None = None,
        error_type: str | None = None,
        finished_after: datetime | None = None,
        finished_before: datetime | None = None,
        limit: int | None = None,
        connection: psycopg.AsyncConnection[Any] | None = None,
    ) -> list[JobId]:
        """Enqueue jobs again that have failed or were cancelled. They keep id, payload, priority and errors.

        They go to the end of the queue, and attempts are counted from 1 again. The jobs are named by their ids, or by
        filters, of which all given ones must hold; with many jobs it is done in several transactions, unless there is a
        ``connection``.

        :param ids: the jobs. Nothing happens to those that are unknown, were successful, or have not ended.
        :param entrypoint: instead of ids: jobs of this name
        :param status: instead of ids: ``failed`` or ``cancelled``. Defaults to failed ones, if there is another filter.
        :param error_type: instead of ids: jobs whose last error is of the class with this name
        :param finished_after: instead of ids: jobs that ended at this moment (an aware ``datetime``) or later
        :param finished_before: instead of ids: jobs that ended before this moment
        :param limit: with a filter: how many at most, the lowest ids first
        :param connection: requeue in the open transaction of this connection
        :return: the ids of the jobs that this call has requeued
        :raises ConfigurationError: if an argument cannot be used, or there are neither ids nor filters, or both
        :raises RuntimeError: if the driver is not open
        """
        wanted = ended_filter(
            ids,
            entrypoint=entrypoint,
            status=status,
            error_type=error_type,
            finished_after=finished_after,
            finished_before=finished_before,
            limit=limit,
        )
        checked = check_ids([] if ids is None else ids)
        async with self._connection(connection) as conn:
            if wanted is None:
                return await run_steps(conn, requeueing.requeue_jobs(self._store, checked))
            return await run_steps(conn, requeueing.requeue_matching(self._store, wanted))

    async def job_status(self, ids: Iterable[JobId]) -> dict[JobId, JobStatus]:
        """Tell the states of jobs, all of one moment.

        :param ids: the jobs; unknown ones have no entry in the answer
        :return: the state of each job
        :raises ConfigurationError: if ``ids`` are no numbers
        """
        checked = check_ids(ids)
        async with self._connection() as conn:
            return await run_steps(conn, reading.job_status(self._store, checked))

    async def get_job(self, job_id: JobId) -> JobRecord | None:
        """Tell all that the database knows of a job.

        :return: its record, or ``None`` if the job is unknown (or was pruned)
        :raises ConfigurationError: if ``job_id`` is no number
        """
        checked = check_id(job_id)
        if checked is None:
            return None
        async with self._connection() as conn:
            return await run_steps(conn, reading.get_job(self._store, checked))

    async def list_jobs(
        self,
        *,
        status: JobStatus | str | None = None,
        entrypoint: str | None = None,
        limit: int = 100,
        before: JobId | None = None,
    ) -> list[JobRecord]:
        """Tell all about several jobs, the newest first.

        :param status: only jobs in this state
        :param entrypoint: only jobs of this name
        :param limit: how many at most. Defaults to 100.
        :param before: only jobs with a lower id: the last one of the answer before, to turn pages
        :return: their records
        :raises ConfigurationError: if an argument cannot be used
        """
        filters = list_filters(status, entrypoint, limit, before)
        async with self._connection() as conn:
            return await run_steps(conn, reading.list_jobs(self._store, **filters))

    async def queue_size(self, *, limit: int | None = 10_000) -> dict[str, int]:
        """Count the queued jobs, by the names of their entrypoints.

        What it costs is bounded by ``limit`` and the number of names, however long the queue is, so a dashboard may ask
        often.

        :param limit: how far to count the jobs of each name: where there are as many or more, this is the answer.
            ``None`` counts all, which reads the whole queue. Defaults to 10,000.
        :return: the number of jobs that could start now; names without any are left out
        :raises ConfigurationError: if ``limit`` cannot be used
        """
        checked = check_limit(limit)
        async with self._connection() as conn:
            return await run_steps(conn, reading.queue_size(self._store, limit=checked))

    async def workers(self) -> list[WorkerRecord]:
        """Tell which workers there are.

        :return: their records, the oldest first
        """
        async with self._connection() as conn:
            return await run_steps(conn, reading.list_workers(self._store))

    async def schedules(self) -> list[ScheduleRecord]:
        """Tell which schedules there are: when they run next, where they run now, and how the last run ended.

        :return: their records, by name
        """
        async with self._connection() as conn:
            return await run_steps(conn, operating.list_schedules(self._store))

    async def pause_schedule(self, name: str, expression: str | None = None) -> list[tuple[str, str]]:
        """Start no more runs of a schedule until it is resumed. A run that is going goes on.

        :param name: the name of the schedule
        :param expression: one of the expressions that are registered under the name. Defaults to all of them.
        :return: name and expression of those that this call has paused
        :raises ConfigurationError: if an argument cannot be used
        """
        key = check_schedule(name, expression)
        async with self._connection() as conn:
            return await run_steps(conn, operating.set_paused(self._store, *key, paused=True))

    async def resume_schedule(self, name: str, expression: str | None = None) -> list[tuple[str, str]]:
        """Let a paused schedule run again, from its next occurrence on: what came due meanwhile is not missed.

        :param name: the name of the schedule
        :param expression: one of the expressions that are registered under the name. Defaults to all of them.
        :return: name and expression of those that this call has resumed
        :raises ConfigurationError: if an argument cannot be used
        """
        key = check_schedule(name, expression)
        async with self._connection() as conn:
            return await run_steps(conn, operating.set_paused(self._store, *key, paused=False))

    async def run_schedule(self, name: str, expression: str | None = None) -> list[tuple[str, str]]:
        """Run a schedule now, once, beside its occurrences: its handler is told this moment as ``due_at``.
        A paused schedule runs once, too, and stays paused.

        If it is running, it runs again when that run has ended; if no worker has code for it, as soon as one has.

        :param name: the name of the schedule
        :param expression: one of the expressions that are registered under the name. Defaults to all of them.
        :return: name and expression of those that will run
        :raises ConfigurationError: if an argument cannot be used
        """
        key = check_schedule(name, expression)
        async with self._connection() as conn:
            return await run_steps(conn, operating.run_schedules(self._store, *key))

    async def remove_schedule(
        self, name: str, expression: str | None = None, *, force: bool = False
    ) -> list[tuple[str, str]]:
        """Forget a schedule that no live worker has code for and that is not running.

        :param name: the name of the schedule
        :param expression: one of the expressions that are registered under the name. Defaults to all of them.
        :param force: forget it whatever it does; a run of it is cancelled. A worker that has code for it registers it
            again, from then on.
        :return: name and expression of those that were removed
        :raises ConfigurationError: if an argument cannot be used
        """
        key = check_schedule(name, expression)
        async with self._connection() as conn:
            return await run_steps(conn, operating.remove_schedules(self._store, *key, force=force))

    @asynccontextmanager
    async def _connection(self, given: object = None) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """The caller's connection, or one from the pool."""
        if given is None:
            async with self._driver.connection(PATIENCE) as conn:
                yield conn
        elif isinstance(given, psycopg.AsyncConnection):
            yield given
        elif isinstance(given, psycopg.Connection):
            raise ConfigurationError("this connection blocks: use SyncQueries with it, or a psycopg.AsyncConnection")
        else:
            raise ConfigurationError(f"connection must be a psycopg.AsyncConnection, not a {type(given).__name__}")

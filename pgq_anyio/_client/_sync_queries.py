"""``SyncQueries``: producers and operators in programs without an event loop.

It is safe to share between threads: a call that takes several statements has the connection to itself until its end, or
the statement of another thread would slip into its transaction. A connection that is passed with a call is its caller's
alone: were calls on such ones to wait for each other here, two transactions could wait for ever, one in the server and
one for this lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg.waiting import Wait

from .._db._waiting import poll_nowait
from .._db.defaults import connect_blocking
from .._db.pooled import is_pooled_sync
from .._errors import ConfigurationError
from .._models import JobId, JobRecord, JobStatus, ScheduleRecord, WorkerRecord
from .._settings import read_dsn
from .._store import cancelling, enqueueing, operating, reading, requeueing
from .._store._sql import DEFAULT_SCHEMA, Store
from .._store._steps import is_in_transaction, run_steps_sync
from ._arguments import When, check_id, check_ids, check_limit, check_reason, check_schedule, list_filters, new_jobs
from ._filters import ended_filter, unfinished_filter


class SyncQueries:
    """As ``Queries``, for code without an event loop.

    With a DSN it opens a connection of its own when it first needs one, and another when that one is lost or the
    process has forked. Unless the DSN says otherwise, connecting takes ten seconds at most for each host, and a server
    that is gone without a word is noticed within 30. Close it with ``close()``, or use it in ``with``.

    :param source: a DSN in either of libpq's forms, of which what is left out comes from libpq's ``PG*`` variables; or
        an open ``psycopg.Connection``, which stays the caller's: calls belong to whatever transaction is open there,
        and it is never closed here. Defaults to a DSN that leaves out everything.
    :param schema: the PostgreSQL schema with the tables. Defaults to "pgq_anyio".
    :raises ConfigurationError: if an argument cannot be used
    """

    def __init__(self, source: str | psycopg.Connection[Any] = "", *, schema: str = DEFAULT_SCHEMA) -> None:
        if isinstance(source, str):
            # Here and not by libpq, which quotes pieces of what it cannot read.
            source = read_dsn(source, "source")
        else:
            _check_connection(source)
        self._source = source
        self._store = Store(schema)
        self._own: psycopg.Connection[Any] | None = None
        self._lock = threading.RLock()
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<SyncQueries, schema {self._store.schema!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection that was opened here, if there is one. A later call opens another."""
        self._notice_fork()
        with self._lock:
            if self._own is not None:
                self._own.close()
                self._own = None

    def enqueue(
        self,
        entrypoint: str | Sequence[str],
        payload: bytes | Sequence[bytes | None] | None = None,
        priority: int | Sequence[int] = 0,
        execute_after: When | Sequence[When] = None,
        *,
        connection: psycopg.Connection[Any] | None = None,
    ) -> list[JobId]:
        """Enqueue jobs, as ``Queries.enqueue`` does."""
        jobs = new_jobs(entrypoint, payload, priority, execute_after)
        with self._connection(connection) as conn:
            always_notify = connection is not None or is_in_transaction(conn)
            return run_steps_sync(conn, enqueueing.enqueue(self._store, conn, jobs, always_notify=always_notify))

    def mark_job_as_cancelled(
        self,
        ids: Iterable[JobId] | None = None,
        reason: str | None = None,
        *,
        entrypoint: str | None = None,
        status: JobStatus | str | None = None,
        older_than: timedelta | datetime | None = None,
        connection: psycopg.Connection[Any] | None = None,
    ) -> list[JobId]:
        """Cancel jobs, as ``Queries.mark_job_as_cancelled`` does."""
        wanted = unfinished_filter(ids, entrypoint=entrypoint, status=status, older_than=older_than)
        checked, reason = check_ids([] if ids is None else ids), check_reason(reason)
        with self._connection(connection) as conn:
            if wanted is None:
                return run_steps_sync(conn, cancelling.cancel_jobs(self._store, conn, checked, reason))
            return run_steps_sync(conn, cancelling.cancel_matching(self._store, conn, wanted, reason))

    def requeue(
        self,
        ids: Iterable[JobId] | None = None,
        *,
        entrypoint: str | None = None,
        status: JobStatus | str | None = None,
        error_type: str | None = None,
        finished_after: datetime | None = None,
        finished_before: datetime | None = None,
        limit: int | None = None,
        connection: psycopg.Connection[Any] | None = None,
    ) -> list[JobId]:
        """Enqueue jobs again that have failed or were cancelled, as ``Queries.requeue`` does."""
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
        with self._connection(connection) as conn:
            if wanted is None:
                return run_steps_sync(conn, requeueing.requeue_jobs(self._store, checked))
            return run_steps_sync(conn, requeueing.requeue_matching(self._store, wanted))

    def job_status(self, ids: Iterable[JobId]) -> dict[JobId, JobStatus]:
        """Tell the states of jobs, as ``Queries.job_status`` does."""
        checked = check_ids(ids)
        with self._connection() as conn:
            return run_steps_sync(conn, reading.job_status(self._store, checked))

    def get_job(self, job_id: JobId) -> JobRecord | None:
        """Tell all that the database knows of a job, as ``Queries.get_job`` does."""
        checked = check_id(job_id)
        if checked is None:
            return None
        with self._connection() as conn:
            return run_steps_sync(conn, reading.get_job(self._store, checked))

    def list_jobs(
        self,
        *,
        status: JobStatus | str | None = None,
        entrypoint: str | None = None,
        limit: int = 100,
        before: JobId | None = None,
    ) -> list[JobRecord]:
        """Tell all about several jobs, as ``Queries.list_jobs`` does."""
        filters = list_filters(status, entrypoint, limit, before)
        with self._connection() as conn:
            return run_steps_sync(conn, reading.list_jobs(self._store, **filters))

    def queue_size(self, *, limit: int | None = 10_000) -> dict[str, int]:
        """Count the queued jobs, as ``Queries.queue_size`` does."""
        checked = check_limit(limit)
        with self._connection() as conn:
            return run_steps_sync(conn, reading.queue_size(self._store, limit=checked))

    def workers(self) -> list[WorkerRecord]:
        """Tell which workers there are, as ``Queries.workers`` does."""
        with self._connection() as conn:
            return run_steps_sync(conn, reading.list_workers(self._store))

    def schedules(self) -> list[ScheduleRecord]:
        """Tell which schedules there are, as ``Queries.schedules`` does."""
        with self._connection() as conn:
            return run_steps_sync(conn, operating.list_schedules(self._store))

    def pause_schedule(self, name: str, expression: str | None = None) -> list[tuple[str, str]]:
        """Pause a schedule, as ``Queries.pause_schedule`` does."""
        key = check_schedule(name, expression)
        with self._connection() as conn:
            return run_steps_sync(conn, operating.set_paused(self._store, *key, paused=True))

    def resume_schedule(self, name: str, expression: str | None = None) -> list[tuple[str, str]]:
        """Resume a schedule, as ``Queries.resume_schedule`` does."""
        key = check_schedule(name, expression)
        with self._connection() as conn:
            return run_steps_sync(conn, operating.set_paused(self._store, *key, paused=False))

    def run_schedule(self, name: str, expression: str | None = None) -> list[tuple[str, str]]:
        """Run a schedule now, as ``Queries.run_schedule`` does."""
        key = check_schedule(name, expression)
        with self._connection() as conn:
            return run_steps_sync(conn, operating.run_schedules(self._store, *key))

    def remove_schedule(
        self, name: str, expression: str | None = None, *, force: bool = False
    ) -> list[tuple[str, str]]:
        """Forget a schedule, as ``Queries.remove_schedule`` does."""
        key = check_schedule(name, expression)
        with self._connection() as conn:
            return run_steps_sync(conn, operating.remove_schedules(self._store, *key, force=force))

    @contextmanager
    def _connection(self, given: psycopg.Connection[Any] | None = None) -> Iterator[psycopg.Connection[Any]]:
        """The connection of a call. What several threads share here it has to itself; one that was passed with the call
        is the caller's, and a call on it may wait for another thread's transaction.
        """
        if given is not None:
            _check_connection(given)
            if given is not self._source:
                yield given
                return
        self._notice_fork()
        with self._lock:
            yield self._open()

    def _open(self) -> psycopg.Connection[Any]:
        """The connection that was given, or an own one that works as far as can be seen without asking the server."""
        if not isinstance(self._source, str):
            return self._source
        if self._own is not None and not _is_alive(self._own):
            self._own.close()
            self._own = None
        if self._own is None:
            own = connect_blocking(self._source)
            try:
                if is_pooled_sync(own):
                    own.prepare_threshold = None
            except BaseException:
                own.close()  # it would go on without knowing
                raise
            self._own = own
        return self._own

    def _notice_fork(self) -> None:
        """Leave the parent's connection to the parent: its close here would end the parent's session."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._lock = threading.RLock()
            _left_behind.append(self._own)
            self._own = None


#: Connections of a parent process, kept from being finalised here.
_left_behind: list[psycopg.Connection[Any] | None] = []


def _is_alive(conn: psycopg.Connection[Any]) -> bool:
    """Whether an idle connection can be used: a server that closed it has left something to read."""
    try:
        while not conn.closed and poll_nowait(conn.pgconn.socket, Wait.R):
            conn.pgconn.consume_input()
    except psycopg.Error:
        return False
    return not conn.closed


def _check_connection(given: object) -> None:
    """:raises ConfigurationError: if this is no blocking connection of psycopg's"""
    if isinstance(given, psycopg.AsyncConnection):
        raise ConfigurationError("this connection is asynchronous: use Queries with it, or a psycopg.Connection")
    if not isinstance(given, psycopg.Connection):
        raise ConfigurationError(f"a DSN or a psycopg.Connection is needed, not a {type(given).__name__}")

"""What handlers did, by their own account: a table that no scenario touches.

The table is on the server of the run, while the queue of a scenario that stops or crashes a server is on another one.
Each entry is written in a transaction of its own on a connection of the log's own, before the handler does anything and
after it has done everything, so that it survives whatever happens to the worker. Times are the log server's: entries of
all processes compare.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import attrs
import psycopg
from psycopg import sql

_CREATE = """
create table {} (
    run text, job_id bigint, entrypoint text, pid integer, event text, at timestamptz default clock_timestamp()
)
"""
_WRITE = "insert into {} (run, job_id, entrypoint, pid, event) values (%s, %s, %s, %s, %s)"
_RUNS = """
select run, min(job_id), min(entrypoint), min(pid), min(at), max(at) filter (where event <> 'start'),
    max(event) filter (where event <> 'start')
from {} where job_id is not null group by run order by min(at)
"""


@attrs.frozen
class LoggedRun:
    """One call of a handler."""

    run: str
    job_id: int
    entrypoint: str
    #: the worker's process
    pid: int
    started_at: datetime
    #: when and how the handler ended: ``end``, ``failed`` or ``cancelled:<reason>``; ``None`` if it never said
    ended_at: datetime | None
    event: str | None

    @property
    def is_through(self) -> bool:
        """Whether the handler came to its end: what it does to the world is done."""
        return self.event in ("end", "failed")


@attrs.define(eq=False)
class JobLog:
    """The table of one scenario, written by its workers and read by its test."""

    dsn: str
    table: str
    _connection: psycopg.Connection[Any] | None = attrs.field(default=None, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _numbers: Iterator[int] = attrs.field(factory=itertools.count, init=False)

    def next_run(self) -> str:
        """A name for one call of a handler."""
        return f"{os.getpid()}:{next(self._numbers)}"

    def write(self, run: str, job_id: int | None, entrypoint: str, event: str) -> None:
        """Add an entry. Handlers in threads may do so at the same time."""
        self._execute(_WRITE, run, job_id, entrypoint, os.getpid(), event)

    def runs(self) -> list[LoggedRun]:
        """Every call of a handler, in the order of their starts."""
        return [LoggedRun(*row) for row in self._execute(_RUNS)]

    def find(self, job_id: int) -> list[LoggedRun]:
        """The calls for one job, in the order of their starts."""
        return [run for run in self.runs() if run.job_id == job_id]

    def now(self) -> datetime:
        """The time by which entries are dated."""
        ((now,),) = self._execute("select clock_timestamp()")
        assert isinstance(now, datetime)
        return now

    def ticks(self) -> list[datetime]:
        """The occurrences of the schedule that were run, in the order of their runs."""
        return [
            row[0] for row in self._execute("select event::timestamptz from {} where entrypoint = 'tick' order by at")
        ]

    def holders(self) -> list[int]:
        """The processes of the runs that hold a slot now, one entry for each run."""
        query = "select pid from {} where entrypoint = 'hold' group by run, pid having count(*) = 1"
        return [row[0] for row in self._execute(query)]

    def starters(self) -> list[int]:
        """The processes of the runs that have started within the last 50 ms and go on."""
        query = (
            "select pid from {} where job_id is not null group by run, pid"
            " having count(*) = 1 and min(at) > clock_timestamp() - interval '50 ms'"
        )
        return [row[0] for row in self._execute(query)]

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _execute(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            if self._connection is None:
                self._connection = psycopg.connect(self.dsn, autocommit=True, application_name="job log")
            text = sql.SQL(query).format(sql.Identifier(self.table))
            cursor = self._connection.execute(text, parameters or None)
            return cursor.fetchall() if cursor.description is not None else []


@contextmanager
def open_job_log(dsn: str, table: str) -> Iterator[JobLog]:
    """A new table, which is dropped at the end."""
    log = JobLog(dsn, table)
    log._execute(_CREATE)
    try:
        yield log
    finally:
        log._execute("drop table {}")
        log.close()

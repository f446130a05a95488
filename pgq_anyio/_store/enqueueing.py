"""Enqueueing any number of jobs, all or none of them, with their ids in input order.

One statement takes what most calls bring, and a plain one the single job that is due at once. Larger batches of jobs
that are due at once go by COPY, whose rows cost the server less than the elements of arrays and whose size has no
bound; larger batches of others are cut into several statements. Both then need a transaction, which is a savepoint
inside the caller's.

Measured on two cores, microseconds a job with 100 bytes of payload, arrays / COPY: 135 / 460 for one job, 6.2 / 8.6 for
a hundred, 4.6 / 4.0 for a thousand, 5.0 / 3.5 for ten thousand. Without prepared statements COPY wins from a hundred.
In another run a single job took 267 with arrays, 145 by itself, and 80 as a bare INSERT.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from .._models import JobId
from ._sql import Store
from ._steps import AnyConnection, CopyIn, Execute, Fetch, InTransaction, Steps, is_in_pipeline, is_in_transaction
from .queued import NewJobs

#: The number of jobs from which COPY is faster than arrays.
COPY_FROM: Final = 1000
#: The most jobs, and bytes of payload, in one statement: a parameter fits into 1 GB, and into memory several times.
MAX_JOBS: Final = 20_000
MAX_BYTES: Final = 32 * 2**20
_COPY_TYPES: Final = ("int8", "text", "int4", "bytea")


def enqueue(store: Store, conn: AnyConnection, jobs: NewJobs, *, always_notify: bool) -> Steps[list[JobId]]:
    """Enqueue jobs.

    :param conn: the connection that the steps are for; only looked at
    :param always_notify: whether workers are notified even if none of them sleeps
    :return: the ids in the order of ``jobs``
    """
    number = len(jobs.entrypoints)
    if number == 0:
        return []
    if number >= COPY_FROM and not is_in_pipeline(conn) and not any(jobs.run_ats) and jobs.delays.count(None) == number:
        yield from _begin(conn)
        ids: list[JobId] = yield InTransaction(_copy(store, jobs, always_notify))
        return ids
    if number == 1 and jobs.delays[0] is None and jobs.run_ats[0] is None:
        return (yield from _insert_one(store, jobs, always_notify))
    parts = list(_parts(jobs))
    if len(parts) == 1:
        return (yield from _insert(store, parts, always_notify))
    yield from _begin(conn)
    # The commit may come long after the first of them: a worker that was awake then may be asleep.
    ids = yield InTransaction(_insert(store, parts, always_notify=True))
    return ids


def _begin(conn: AnyConnection) -> Steps[None]:
    """Open the transaction that a connection without autocommit opens with its first statement: a block that finds none
    open would commit at its end, and with it what the caller may still roll back.
    """
    if is_in_transaction(conn):
        yield Execute("select 1")


def _insert_one(store: Store, jobs: NewJobs, always_notify: bool) -> Steps[list[JobId]]:
    parameters = {"entrypoint": jobs.entrypoints[0], "payload": jobs.payloads[0], "priority": jobs.priorities[0]}
    rows = yield Fetch(store, "enqueue_job", {**parameters, "always_notify": always_notify})
    return [rows[0][0]]


def _insert(store: Store, parts: list[NewJobs], always_notify: bool) -> Steps[list[JobId]]:
    ids: list[JobId] = []
    for part in parts:
        rows = yield Fetch(store, "enqueue_jobs", part.parameters(always_notify=always_notify))
        ids += rows[0][0]
    return ids


def _copy(store: Store, jobs: NewJobs, always_notify: bool) -> Steps[list[JobId]]:
    ids: list[JobId] = (yield Fetch(store, "allot_job_ids", {"count": len(jobs.entrypoints)}))[0][0]
    rows = zip(ids, jobs.entrypoints, jobs.priorities, jobs.payloads, strict=True)
    yield CopyIn(store, "copy_jobs", _COPY_TYPES, rows)
    names = list(dict.fromkeys(jobs.entrypoints))
    yield Fetch(store, "notify_queued", {"entrypoints": names, "always_notify": always_notify})
    return ids


def _parts(jobs: NewJobs) -> Iterator[NewJobs]:
    """Cut jobs into what one statement takes."""
    start = size = 0
    for index, payload in enumerate(jobs.payloads):
        size += len(payload or b"")
        if index > start and (size > MAX_BYTES or index - start == MAX_JOBS):
            yield _slice(jobs, start, index)
            start, size = index, len(payload or b"")
    yield _slice(jobs, start, len(jobs.payloads))


def _slice(jobs: NewJobs, start: int, stop: int) -> NewJobs:
    if (start, stop) == (0, len(jobs.payloads)):
        return jobs
    return NewJobs(
        jobs.entrypoints[start:stop],
        jobs.payloads[start:stop],
        jobs.priorities[start:stop],
        jobs.delays[start:stop],
        jobs.run_ats[start:stop],
    )

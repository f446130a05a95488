"""Enqueueing any number of jobs, all or none of them, with their ids in input order.

One statement takes what most calls bring. Larger batches of jobs that are due at once go by COPY, whose rows cost the
server less than the elements of arrays and whose size has no bound; larger batches of others are cut into several
statements. Both then need a transaction, which is a savepoint inside the caller's.

The COPY data is written here, in PostgreSQL's binary format: row by row through psycopg it takes three times as long.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from .._models import JobId
from ._sql import Store
from ._steps import AnyConnection, CopyIn, Fetch, InTransaction, Steps, is_in_pipeline
from .queued import NewJobs

#: The number of jobs from which COPY is faster than arrays.
COPY_FROM: Final = 1000
#: The most jobs, and bytes of payload, in one statement: a parameter fits into 1 GB, and into memory several times.
MAX_JOBS: Final = 20_000
MAX_BYTES: Final = 32 * 2**20
#: Bytes of COPY data that are handed over at a time.
BLOCK: Final = 2**17

_COPY_START: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_COPY_END: Final = b"\xff\xff"
#: Number of columns; length and value of the id; length of the name.
_ROW: Final = struct.Struct("!hiqi")
#: Length and value of the priority; length of the payload (-1: null).
_REST: Final = struct.Struct("!iii")


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
        ids: list[JobId] = yield InTransaction(_copy(store, jobs, _encoding(conn), always_notify))
        return ids
    parts = list(_parts(jobs))
    if len(parts) == 1:
        return (yield from _insert(store, parts, always_notify))
    ids = yield InTransaction(_insert(store, parts, always_notify))
    return ids


def _insert(store: Store, parts: list[NewJobs], always_notify: bool) -> Steps[list[JobId]]:
    ids: list[JobId] = []
    for part in parts:
        rows = yield Fetch(store, "enqueue_jobs", part.parameters(always_notify=always_notify))
        ids += rows[0][0]
    return ids


def _copy(store: Store, jobs: NewJobs, encoding: str, always_notify: bool) -> Steps[list[JobId]]:
    names = {name: name.encode(encoding) for name in dict.fromkeys(jobs.entrypoints)}
    ids: list[JobId] = (yield Fetch(store, "allot_job_ids", {"count": len(jobs.entrypoints)}))[0][0]
    yield CopyIn(store, "copy_jobs", copy_blocks(ids, jobs, names))
    yield Fetch(store, "notify_queued", {"entrypoints": list(names), "always_notify": always_notify})
    return ids


def copy_blocks(ids: list[JobId], jobs: NewJobs, names: dict[str, bytes]) -> Iterator[bytes]:
    """The data of ``copy_jobs``, in blocks.

    :param names: each name in the encoding of the connection
    """
    block = bytearray(_COPY_START)
    for job_id, entrypoint, priority, payload in zip(
        ids, jobs.entrypoints, jobs.priorities, jobs.payloads, strict=True
    ):
        name = names[entrypoint]
        block += _ROW.pack(4, 8, job_id, len(name))
        block += name
        if payload is None:
            block += _REST.pack(4, priority, -1)
        else:
            block += _REST.pack(4, priority, len(payload))
            block += payload
        if len(block) >= BLOCK:
            yield bytes(block)
            block.clear()
    block += _COPY_END
    yield bytes(block)


def _encoding(conn: AnyConnection) -> str:
    """The client encoding, by Python's name; as psycopg does, UTF-8 where the database has none."""
    encoding = conn.info.encoding
    return "utf-8" if encoding == "ascii" else encoding


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

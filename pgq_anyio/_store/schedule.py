"""The table ``schedule``: which occurrence was the last, and who runs one now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from .._db import Connection
from .._lifecycle import Again, Cancelled, Failed, GivenBack, Outcome, Succeeded
from .._timetable import HeldSchedule, ScheduleKey, ScheduleState, Wanted
from ._sql import Store


@attrs.frozen
class Rows:
    """What the database says of schedules."""

    #: the database's clock (in seconds since 1970)
    clock: float
    states: list[ScheduleState]


@attrs.frozen
class Taken(Rows):
    """The answer to a request for occurrences."""

    #: the schedules whose occurrence is now ours
    fired: list[ScheduleKey]


async def register_schedules(conn: Connection, store: Store, schedules: Sequence[tuple[str, str, str]]) -> int:
    """Make schedules known, given as (name, expression, time zone); how many rows were new or changed."""
    names, expressions, timezones = _columns(schedules, 3)
    rows = await store.statement("register_schedules").fetch(
        conn, names=names, expressions=expressions, timezones=timezones
    )
    count: int = rows[0][0]
    return count


async def serve_schedules(conn: Connection, store: Store, keys: Sequence[ScheduleKey], *, worker_id: int) -> None:
    """Say which schedules a worker has code for."""
    names, expressions = _columns(keys, 2)
    await store.statement("serve_schedules").run(conn, names=names, expressions=expressions, worker_id=worker_id)


async def read_schedules(conn: Connection, store: Store, keys: Sequence[ScheduleKey]) -> Rows:
    """What the rows of these schedules say now; there may be fewer than keys."""
    names, expressions = _columns(keys, 2)
    rows = await store.statement("read_schedules").fetch(conn, names=names, expressions=expressions)
    return Rows(rows[0][0], [ScheduleState(*row[1:]) for row in rows if row[1] is not None])


async def fire_schedules(
    conn: Connection, store: Store, wanted: Sequence[Wanted], *, worker_id: int, claim_no: int
) -> Taken:
    """Take those occurrences that nobody has taken and that are due by the database's clock."""
    names, expressions, last_due_ats, given_back_due_ats, due_ats = _columns(
        [(w.state.name, w.state.expression, w.state.last_due_at, w.state.given_back_due_at, w.due_at) for w in wanted],
        5,
    )
    rows = await store.statement("fire_schedules").fetch(
        conn,
        names=names,
        expressions=expressions,
        last_due_ats=last_due_ats,
        given_back_due_ats=given_back_due_ats,
        due_ats=due_ats,
        worker_id=worker_id,
        claim_no=claim_no,
    )
    states = [ScheduleState(*row[1:10]) for row in rows if row[1] is not None]
    return Taken(rows[0][0], states, [(row[1], row[2]) for row in rows if row[1] is not None and row[10]])


async def release_schedules(
    conn: Connection, store: Store, endings: Sequence[tuple[HeldSchedule, Outcome]], *, leaving: bool = False
) -> list[tuple[str, str, int]]:
    """Record the ends of runs; (name, expression, claim number) of those that were still ours.

    :param leaving: whether this worker starts nothing any more, so that others must know of what came due meanwhile
    """
    names, expressions, worker_ids, claim_nos, statuses, types, messages, tracebacks = _columns(
        [
            (held.name, held.expression, held.worker_id, held.claim_no, *_ending(outcome))
            for held, outcome in sorted(endings, key=lambda ending: ending[0].key)
        ],
        8,
    )
    rows = await store.statement("release_schedules").fetch(
        conn,
        names=names,
        expressions=expressions,
        worker_ids=worker_ids,
        claim_nos=claim_nos,
        statuses=statuses,
        error_types=types,
        error_messages=messages,
        error_tracebacks=tracebacks,
        leaving=leaving,
    )
    return [(row[0], row[1], row[2]) for row in rows]


def _ending(outcome: Outcome) -> tuple[str, str | None, str | None, str | None]:
    """Give the columns of one row: status, error type, message, traceback."""
    match outcome:
        case Succeeded():
            return "successful", None, None, None
        case GivenBack():
            return "given_back", None, None, None
        case Cancelled(reason):
            return "cancelled", None, reason, None
        case Failed(error):
            return "failed", error.type, error.message, error.traceback
        case Again():
            raise AssertionError("a scheduled run is not tried again")


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Turn rows into one list per column."""
    return [[row[place] for row in rows] for place in range(width)]

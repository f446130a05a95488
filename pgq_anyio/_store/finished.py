"""The table ``finished``: one partition a day, made ahead and dropped when it is old.

- Days are made and dropped by functions in the database, which have the rights of the tables' owner: the role of the
  workers needs none of them. To attach a day, PostgreSQL locks and reads the default partition; that one is empty
  unless no worker ran for a week.
- A day that the default partition already holds a part of is left to it: PostgreSQL refuses it a partition.
- Dropping a day locks out everybody for a moment. Whoever waits for such a lock stalls all that come after it, for as
  long as a dump or a report runs, so the functions give up after 50 ms and are called again with the next pass.
- What is to go before its day is old is deleted, by ranges of blocks: no index on the time of every success is worth
  its upkeep. A day that nothing can be added to, and nothing has to be deleted from, is not read again.
- All workers do this at the same time without harm: an advisory lock makes one wait for the other (but no longer than
  for any lock), and what another has done is found done.
"""

from __future__ import annotations

import logging
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

import attrs
from psycopg import errors

from .._db import Connection
from .._retention import Retention
from ._sql import Store

logger = logging.getLogger("pgq_anyio.store")

#: Rows that are deleted in one transaction.
PRUNE_BATCH: Final = 5000
#: Blocks that are read in one transaction.
SWEEP_BLOCKS: Final = 256

#: Somebody else makes it, or a record of that day has just gone to the default partition.
_TAKEN: Final = (errors.DuplicateTable, errors.InvalidObjectDefinition, errors.CheckViolation)


async def ensure_partitions(conn: Connection, store: Store, *, days: int = 7) -> int:
    """Make the partitions of today and the days ahead (UTC, by the database's clock).

    What cannot be made now, because of locks or for want of privileges, is left to a later call; the default partition
    takes its rows if there is none in time.

    :param conn: a connection outside of any transaction
    :param days: how many days ahead. Defaults to 7.
    :return: how many were made
    """
    rows = await store.statement("list_days").fetch(conn, retention=0.0)
    today, _, present = rows[0]
    made = 0
    for ahead in range(days + 1):
        day = today + timedelta(days=ahead)
        if _partition(day) in present:
            continue
        try:
            made += await _make_day(conn, store, day)
        except _TAKEN as error:
            logger.debug("the partition of %s is not made: %s", day, error)
        except errors.LockNotAvailable:
            logger.info("the partition of %s cannot be made now, because the table is locked", day)
            break
        except errors.InsufficientPrivilege as error:
            logger.warning("partitions of finished jobs cannot be made, which makes pruning slow: %s", error)
            break
    return made


async def prune_finished(conn: Connection, store: Store, *, retention: Retention) -> int:
    """Remove records of jobs that ended long ago.

    Days are dropped as a whole. Everything else is deleted row by row.

    :param conn: a connection outside of any transaction
    :param retention: how long records are kept; days go when the longest time has passed since their end
    :return: how many partitions and rows were removed
    """
    rows = await store.statement("list_days").fetch(conn, retention=retention.longest)
    _, first_kept, present = rows[0]
    removed = 0
    for name in present:
        if name >= _partition(first_kept):
            break
        try:
            removed += (await store.statement("drop_day").fetch(conn, day=_day(name)))[0][0]
        except errors.UndefinedTable:
            logger.debug("the partition %s is dropped by another worker", name)
        except errors.LockNotAvailable:
            logger.info("the partition %s cannot be dropped now, because the table is locked", name)
            break
        except errors.InsufficientPrivilege as error:
            logger.warning("partitions of finished jobs cannot be dropped: %s", error)
            break
    return removed + await _prune_rows(conn, store, "prune_default", **_times(retention))


async def prune_leftovers(conn: Connection, store: Store, *, retention: Retention) -> int:
    """Remove old errors and cancel requests that no job and no record needs any more.

    :return: how many rows were removed
    """
    removed = 0
    for statement in ("prune_errors", "prune_cancels"):
        removed += await _prune_rows(conn, store, statement, retention=retention.longest)
    return removed


async def sweep_finished(conn: Connection, store: Store, *, retention: Retention, swept: set[str]) -> int:
    """Delete what is to go from days that stay.

    :param conn: a connection outside of any transaction
    :param swept: days that need not be looked at any more; days are added
    :return: how many rows were removed
    """
    times = retention.swept
    if not times:
        return 0
    list_days = store.statement("list_days")
    (_, newest, present), *_ = await list_days.fetch(conn, retention=times[0])
    (_, first_unfinished, _), *_ = await list_days.fetch(conn, retention=times[-1])
    removed = 0
    for name in present:
        if name > _partition(newest):
            break
        if name not in swept:
            gone = await _sweep_day(conn, store, name, retention)
            removed += gone
            # Rows that somebody had locked were left out, so a day is done with when there was nothing left to remove.
            if name < _partition(first_unfinished) and not gone:
                swept.add(name)
    return removed


async def _sweep_day(conn: Connection, store: Store, name: str, retention: Retention) -> int:
    starts_at = datetime.combine(_day(name), time(), UTC)
    rows = await store.statement("count_blocks").fetch(conn, name=name)
    removed = 0
    for first in range(0, rows[0][0], SWEEP_BLOCKS):
        removed += await store.statement("sweep_day").run(
            conn,
            starts_at=starts_at,
            ends_at=starts_at + timedelta(days=1),
            first=first,
            until=first + SWEEP_BLOCKS,
            **_times(retention),
        )
    return removed


def _times(retention: Retention) -> dict[str, float]:
    return attrs.asdict(retention)


async def _make_day(conn: Connection, store: Store, day: date) -> bool:
    """Make one partition; whether it was made, for its day may belong to the default partition, or be there."""
    starts_at = datetime.combine(day, time(), UTC)
    ends_at = starts_at + timedelta(days=1)
    rows = await store.statement("is_in_default").fetch(conn, starts_at=starts_at, ends_at=ends_at)
    if rows[0][0]:
        return False
    made: bool = (await store.statement("make_day").fetch(conn, day=day))[0][0]
    return made


async def _prune_rows(conn: Connection, store: Store, statement: str, **times: float) -> int:
    """Delete old rows, batch by batch."""
    removed = 0
    while True:
        count = await store.statement(statement).run(conn, limit=PRUNE_BATCH, **times)
        removed += count
        if count < PRUNE_BATCH:
            return removed


def _partition(day: date) -> str:
    """The name of the partition of a day; names are in the order of their days."""
    return f"finished_{day:%Y%m%d}"


def _day(partition: str) -> date:
    """The day that a partition is for."""
    return datetime.strptime(partition.removeprefix("finished_"), "%Y%m%d").replace(tzinfo=UTC).date()

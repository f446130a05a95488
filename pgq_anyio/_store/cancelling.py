"""The cancel request, as a loop.

One statement sees one snapshot. A claim that commits while the statement waits for its row has taken the job out of
``queued`` into a ``running`` that the snapshot does not show, and a retry or a promotion likewise: the job is seen, and
not affected. So the statement is repeated for those, each time with a fresh snapshot, until every job that was seen has
either been affected or ended. That needs READ COMMITTED: in a transaction with one snapshot for all of it, the loop
would never see what slipped through.

By filter, the jobs are found first and then cancelled like any others: what is enqueued after that is not met. Only the
state can have changed meanwhile, so it goes into the statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import attrs
from psycopg import errors

from .._models import JobId, JobStatus
from ._sql import Store
from ._steps import AnyConnection, Ask, Fetch, Steps, is_in_transaction

#: Ids in one statement, where each is a transaction of its own: rows stay locked for a few dozen milliseconds.
CHUNK: Final = 1000

_ISOLATION: Final = "select pg_catalog.current_setting('transaction_isolation')"


#: The states of jobs that have not ended.
UNFINISHED: Final = (JobStatus.DEFERRED, JobStatus.QUEUED, JobStatus.RUNNING)


@attrs.frozen(kw_only=True)
class UnfinishedFilter:
    """Which of the jobs that have not ended."""

    states: tuple[JobStatus, ...]
    entrypoint: str | None
    #: seconds since the job was created, by the database's clock
    older_than: float | None
    created_before: datetime | None


def cancel_matching(
    store: Store, conn: AnyConnection, wanted: UnfinishedFilter, reason: str | None
) -> Steps[list[JobId]]:
    """Cancel every job that matches now, and still is in one of the states that were asked for.

    :return: the ids that were affected, in their order
    :raises RuntimeError: as ``cancel_jobs``
    """
    rows = yield Fetch(
        store,
        "find_unfinished",
        {
            "states": [str(state) for state in wanted.states],
            "entrypoint": wanted.entrypoint,
            "older_than": wanted.older_than,
            "created_before": wanted.created_before,
        },
    )
    return (yield from cancel_jobs(store, conn, rows[0][0], reason, states=wanted.states))


def cancel_jobs(
    store: Store,
    conn: AnyConnection,
    ids: Sequence[JobId],
    reason: str | None,
    *,
    states: Sequence[JobStatus] = UNFINISHED,
) -> Steps[list[JobId]]:
    """Cancel every job that has not ended.

    Inside a transaction all ids go in one statement: locks are held until the commit, and only within a statement are
    they taken in one order.

    :param conn: the connection that the steps are for; only looked at
    :param ids: the jobs; ids that are unknown, have ended or are being cancelled already are passed over
    :param reason: recorded with the jobs
    :param states: only jobs that are in one of these states when their turn comes
    :return: the ids that were affected, in the order of ``ids``
    :raises RuntimeError: if the transaction is REPEATABLE READ or SERIALIZABLE
    """
    in_transaction = is_in_transaction(conn)
    if in_transaction:
        isolation = (yield Ask(_ISOLATION))[0][0]
        if isolation != "read committed":
            raise RuntimeError(
                f"jobs cannot be cancelled in a transaction that is {isolation.upper()}: it cannot see the jobs that "
                "are being started or finished meanwhile. Use READ COMMITTED, or call it without connection="
            )
    ordered = sorted(set(ids))
    wanted = [str(state) for state in states]
    size = max(len(ordered), 1) if in_transaction else CHUNK
    affected: set[JobId] = set()
    for start in range(0, len(ordered), size):
        left = ordered[start : start + size]
        while left:
            try:
                rows = yield Fetch(store, "cancel_jobs", {"job_ids": left, "reason": reason, "states": wanted})
            except (errors.DeadlockDetected, errors.SerializationFailure):
                if in_transaction:
                    raise
                continue
            affected.update(job_id for job_id, was_affected, _ in rows if was_affected)
            left = sorted(job_id for job_id, was_affected, _ in rows if not was_affected)
    return [job_id for job_id in dict.fromkeys(ids) if job_id in affected]

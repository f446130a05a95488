"""The cancel request, as a loop.

One statement sees one snapshot. A claim that commits while the statement waits for its row has taken the job out of
``queued`` into a ``running`` that the snapshot does not show, and a retry or a promotion likewise: the job is seen, and
not affected. So the statement is repeated for those, each time with a fresh snapshot, until every job that was seen has
either been affected or ended. That needs READ COMMITTED: in a transaction with one snapshot for all of it, the loop
would never see what slipped through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from psycopg import errors

from .._models import JobId
from ._sql import Store
from ._steps import AnyConnection, Execute, Fetch, Steps, is_in_transaction

#: Ids in one statement, where each is a transaction of its own: rows stay locked for a few dozen milliseconds.
CHUNK: Final = 1000

_ISOLATION: Final = "select pg_catalog.current_setting('transaction_isolation')"


def cancel_jobs(store: Store, conn: AnyConnection, ids: Sequence[JobId], reason: str | None) -> Steps[list[JobId]]:
    """Cancel every job that has not ended.

    Inside a transaction all ids go in one statement: locks are held until the commit, and only within a statement are
    they taken in one order.

    :param conn: the connection that the steps are for; only looked at
    :param ids: the jobs; ids that are unknown, have ended or are being cancelled already are passed over
    :param reason: recorded with the jobs
    :return: the ids that were affected, in the order of ``ids``
    :raises RuntimeError: if the transaction is REPEATABLE READ or SERIALIZABLE
    """
    in_transaction = is_in_transaction(conn)
    if in_transaction:
        isolation = (yield Execute(_ISOLATION))[0][0]
        if isolation != "read committed":
            raise RuntimeError(
                f"jobs cannot be cancelled in a transaction that is {isolation.upper()}: it cannot see the jobs that "
                "are being started or finished meanwhile. Use READ COMMITTED, or call it without connection="
            )
    ordered = sorted(set(ids))
    size = max(len(ordered), 1) if in_transaction else CHUNK
    affected: set[JobId] = set()
    for start in range(0, len(ordered), size):
        left = ordered[start : start + size]
        while left:
            try:
                rows = yield Fetch(store, "cancel_jobs", {"job_ids": left, "reason": reason})
            except (errors.DeadlockDetected, errors.SerializationFailure):
                if in_transaction:
                    raise
                continue
            affected.update(job_id for job_id, was_affected, _ in rows if was_affected)
            left = sorted(job_id for job_id, was_affected, _ in rows if not was_affected)
    return [job_id for job_id in dict.fromkeys(ids) if job_id in affected]

"""The table ``running``: jobs that a worker holds, and every way out of it."""

from __future__ import annotations

from collections.abc import Sequence

from .._db import Connection
from .._lifecycle import Again, Cancelled, Failed, GivenBack, Outcome, Succeeded
from .._models import Held, JobId
from ._sql import Store

Ending = tuple[Held, Outcome]


async def finish_jobs(conn: Connection, store: Store, held: Sequence[Held]) -> list[JobId]:
    """Record successes (or cancels, where one was requested); the ids that were still ours."""
    ordered = sorted(held, key=lambda h: h.job.id)
    rows = await store.statement("finish_jobs").fetch(
        conn,
        job_ids=[h.job.id for h in ordered],
        worker_ids=[h.worker_id for h in ordered],
        claim_nos=[h.claim_no for h in ordered],
    )
    ids: list[JobId] = rows[0][0]
    return ids


async def settle_jobs(conn: Connection, store: Store, endings: Sequence[Ending]) -> list[tuple[JobId, str]]:
    """Record every other outcome; (id, where it went) for those that were still ours."""
    ordered = sorted(endings, key=lambda ending: ending[0].job.id)
    columns = [_settlement(held, outcome) for held, outcome in ordered]
    started = [not (isinstance(outcome, Cancelled | GivenBack) and outcome.unstarted) for _, outcome in ordered]
    actions, delays, attempts, types, messages, tracebacks, reasons = (list(c) for c in zip(*columns, strict=True))
    rows = await store.statement("settle_jobs").fetch(
        conn,
        job_ids=[held.job.id for held, _ in ordered],
        worker_ids=[held.worker_id for held, _ in ordered],
        claim_nos=[held.claim_no for held, _ in ordered],
        actions=actions,
        delays=delays,
        next_attempts=attempts,
        error_types=types,
        error_messages=messages,
        error_tracebacks=tracebacks,
        reasons=reasons,
        started=started,
    )
    return [(row[0], row[1]) for row in rows]


def _settlement(
    held: Held, outcome: Outcome
) -> tuple[str, float | None, int | None, str | None, str | None, str | None, str | None]:
    """Give the columns of one row: action, delay, next attempt, error type, message, traceback, reason."""
    match outcome:
        case Failed(error):
            return "failed", None, None, error.type, error.message, error.traceback, None
        case Cancelled(reason):
            return "cancelled", None, None, None, None, None, reason
        case Again(delay, counted, error):
            attempt = held.job.attempt + 1 if counted else held.job.attempt
            if error is None:
                return "again", delay, attempt, None, None, None, None
            return "again", delay, attempt, error.type, error.message, error.traceback, None
        case GivenBack():
            return "back", None, None, None, None, None, None
        case Succeeded():
            raise AssertionError("successes go through finish_jobs")


async def give_back_claims(
    conn: Connection, store: Store, *, worker_id: int, unknown: Sequence[tuple[JobId | None, int]]
) -> list[JobId]:
    """Give back jobs that their worker does not know.

    :param unknown: (job id, claim number); ``None`` for the id means all that the claim took
    :return: the ids of the jobs that were given back
    """
    rows = await store.statement("give_back_claims").fetch(
        conn,
        worker_id=worker_id,
        job_ids=[job_id for job_id, _ in unknown],
        claim_nos=[claim_no for _, claim_no in unknown],
    )
    ids: list[JobId] = rows[0][0]
    return ids


async def list_claims(conn: Connection, store: Store, *, worker_id: int) -> list[tuple[JobId, int]]:
    """(job id, claim number) of every row that the database holds for this worker."""
    rows = await store.statement("list_claims").fetch(conn, worker_id=worker_id)
    return [(row[0], row[1]) for row in rows]


async def find_cancelled(
    conn: Connection, store: Store, *, worker_id: int, job_ids: Sequence[JobId]
) -> list[tuple[JobId, int]]:
    """(job id, claim number) of those of a worker's jobs that are to be cancelled.

    :param job_ids: the jobs to look at
    """
    rows = await store.statement("find_cancelled").fetch(conn, worker_id=worker_id, job_ids=list(job_ids))
    return [(row[0], row[1]) for row in rows]


async def mark_overdue(conn: Connection, store: Store, held: Held) -> int:
    """Note that a handler ignores its cancellation."""
    return await store.statement("mark_overdue").run(
        conn, job_id=held.job.id, worker_id=held.worker_id, claim_no=held.claim_no
    )

"""A job that is cancelled between its claim and its start does not start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from pgq_anyio import Job, JobId, JobStatus, PgQueuer, Queries
from pgq_anyio._holdings import Holdings
from pgq_anyio._services import claimer
from pgq_anyio._services.limited import claiming
from pgq_anyio._term import Term
from pgq_anyio.testing import running_worker
from tests.worker.test_cancel import wait_status

pytestmark = [pytest.mark.anyio, pytest.mark.promise(25)]


def present_term(app: PgQueuer) -> Term:
    worker = app._worker
    assert worker is not None
    assert worker.term is not None
    return worker.term


@pytest.mark.parametrize(
    ("heard", "kind", "limit"),
    [
        ("by notification", "async", 0),
        ("by notification", "thread", 5),
        ("by heartbeat", "async", 5),
        ("by heartbeat", "thread", 0),
        ("after the answer", "async", 0),
        ("after the answer", "thread", 5),
    ],
)
async def test_it_does_not_start(
    app: PgQueuer, queries: Queries, monkeypatch: pytest.MonkeyPatch, heard: str, kind: str, limit: int
) -> None:
    """Whether the worker hears of the request before the claim's answer, or between the answer and the first step of
    the handler. The job has one record, and its slot is free again.
    """
    ran: list[JobId] = []
    asked: list[JobId] = []
    delivered, deliver = anyio.Event(), Holdings.request_cancel

    async def handle(job: Job) -> None:
        ran.append(job.id)

    def handle_in_thread(job: Job) -> None:
        ran.append(job.id)

    app.entrypoint("fetch", concurrency_limit=limit)(handle if kind == "async" else handle_in_thread)
    service: Any = claiming if limit else claimer
    name = "claim_limited" if limit else "_claim"
    claim_rows = getattr(service, name)

    async def claim_and_cancel(*arguments: Any, **options: Any) -> Any:
        """The rows are claimed, and the claimer waits for the answer."""
        claim = await claim_rows(*arguments, **options)
        if claim.jobs and not asked:
            asked.extend(await queries.mark_job_as_cancelled([job.id for job, _ in claim.jobs]))
            if heard == "by heartbeat":
                term.heart.beat_soon()
            if heard != "after the answer":
                await delivered.wait()
        return claim

    def request_cancel(holdings: Holdings, job_id: JobId, claim_no: int) -> bool:
        """The request has arrived."""
        is_new = deliver(holdings, job_id, claim_no)
        delivered.set()
        return is_new

    monkeypatch.setattr(Holdings, "request_cancel", request_cancel)
    async with running_worker(app, max_concurrency=1):
        term = present_term(app)
        service_claimer: Any = term.limited if limit else term.claimer
        start_jobs = service_claimer.start_jobs

        def start_and_cancel(jobs: Sequence[Job], claim_no: int) -> None:
            """The jobs are on their way to their tasks."""
            start_jobs(jobs, claim_no)
            for job in jobs:
                if job.id in asked:
                    term.holdings.request_cancel(job.id, claim_no)

        if heard != "by notification":
            monkeypatch.setattr(term.ear, "on_notification", _only_wakes(term))
        if heard == "after the answer":
            service_claimer.start_jobs = start_and_cancel
        monkeypatch.setattr(service, name, claim_and_cancel)
        (job_id,) = await queries.enqueue("fetch", b"kept")
        await wait_status(queries, job_id, JobStatus.CANCELLED)
        (later,) = await queries.enqueue("fetch")
        await wait_status(queries, later, JobStatus.SUCCESSFUL)
    assert [job_id] == asked
    assert [later] == ran
    record = await queries.get_job(job_id)
    assert record is not None
    assert (b"kept", 1, 0) == (record.payload, record.attempt, record.crashes)
    assert record.claimed_at is not None


def _only_wakes(term: Term) -> Any:
    """What hears everything but cancel requests."""
    hear = term.ear.on_notification

    def hear_some(payload: str) -> None:
        if not payload.startswith("cancel:"):
            hear(payload)

    return hear_some

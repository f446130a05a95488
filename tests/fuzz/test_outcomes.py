"""What handlers raise to say how their jobs go on, with anything for a reason: all jobs end, in one run of a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from pgq_anyio import Cancel, ConfigurationError, Discard, Job, JobStatus, PgQueuer, PsycopgDriver, Queries, Retry
from tests.fuzz.values import HOSTILE

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]

REASONS: tuple[Any, ...] = (*HOSTILE, None, 0, 7, True, b"bytes", ["list"], object(), ValueError("error"))


@pytest.mark.parametrize("make", [Cancel, Discard, Retry], ids=lambda make: make.__name__)
async def test_any_reason(dsn: str, schema: str, make: Callable[..., Exception]) -> None:
    """It is stored as far as PostgreSQL can, or refused where it is written, which is that job's failure."""
    app = PgQueuer(dsn, schema=schema)
    refused: set[int] = set()

    @app.entrypoint("fetch", max_attempts=2)
    async def fetch(job: Job) -> None:
        if job.attempt == 2:
            return
        reason = REASONS[int(job.payload or b"")]
        try:
            outcome = make(0, reason) if make is Retry else make(reason)
        except ConfigurationError:
            refused.add(int(job.payload or b""))
            raise Discard("refused") from None
        raise outcome

    async with PsycopgDriver(dsn) as driver:
        queries = Queries(driver, schema=schema)
        ids = await queries.enqueue("fetch", [str(number).encode() for number in range(len(REASONS))])
        with anyio.fail_after(30):
            await app.run(mode="drain")
        records = {record.id: record for record in await queries.list_jobs()}
    expected = {"Cancel": JobStatus.CANCELLED, "Discard": JobStatus.FAILED, "Retry": JobStatus.SUCCESSFUL}[
        make.__name__
    ]
    for number, job_id in enumerate(ids):
        record, reason = records[job_id], REASONS[number]
        assert (JobStatus.FAILED if number in refused else expected) is record.status, reason
        if isinstance(reason, str):
            assert number not in refused
            told = record.cancel_reason if make is Cancel else record.errors[0].message
            assert told is not None
            if reason.isprintable() and reason.strip():
                assert reason[:400] in told or "\ud800" in reason

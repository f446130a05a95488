"""Nothing that is read from the database is unpickled or evaluated, in the worker, its children, and for who reads."""

from __future__ import annotations

import pickle
from pathlib import Path

import anyio
import pytest

from pgq_anyio import Job, PgQueuer, ProcessExecutor, PsycopgDriver, Queries
from pgq_anyio.testing import drain
from tests.security.audited import PAYLOADS, SOURCE, in_a_process


def test_the_hook_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever unpickled or evaluated a value would be seen."""
    monkeypatch.setenv("PGQ_TEST_AUDIT", str(tmp_path / "audit"))
    pickle.loads(PAYLOADS[0])
    compile(SOURCE, "?", "eval")
    seen = (tmp_path / "audit").read_text()
    for event in ("pickle.find_class", "os.system", "compile"):
        assert event in seen


@pytest.mark.anyio
async def test_values_stay_values(dsn: str, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads, names, reasons and errors that are programs come through handlers of each kind as they are."""
    audit = tmp_path / "audit"
    monkeypatch.setenv("PGQ_TEST_AUDIT", str(audit))
    app = PgQueuer(dsn, schema=schema)
    seen: list[bytes | None] = []

    @app.entrypoint(SOURCE)
    async def asynchronous(job: Job) -> None:
        seen.append(job.data)
        raise ValueError(SOURCE, job.data)

    @app.entrypoint("thread")
    def thread(job: Job) -> None:
        seen.append(job.data)
        raise ValueError(SOURCE, job.data)

    app.entrypoint("process", executor_factory=ProcessExecutor)(in_a_process)
    async with PsycopgDriver(dsn) as driver:
        queries = Queries(driver, schema=schema)
        names = [SOURCE, "thread", "process"]
        ids = await queries.enqueue([name for name in names for _ in PAYLOADS], PAYLOADS * 3)
        with anyio.fail_after(50):
            await drain(app)
        (cancelled,) = await queries.enqueue(SOURCE, PAYLOADS[0])
        await queries.mark_job_as_cancelled([cancelled], SOURCE)
        records = {record.id: record for record in await queries.list_jobs()}
        assert PAYLOADS * 3 == [records[job_id].payload for job_id in ids]
        assert SOURCE == records[cancelled].cancel_reason
        for job_id, payload in zip(ids[6:], PAYLOADS, strict=True):
            error = records[job_id].errors[-1]
            assert ("ValueError", str((repr(payload), payload))) == (error.type, error.message)
    assert sorted(PAYLOADS * 2) == sorted(data or b"" for data in seen)
    assert not audit.exists(), audit.read_text()

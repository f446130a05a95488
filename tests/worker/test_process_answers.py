"""What handlers in processes raise to say how their jobs go on: it counts, and is recorded, as it is for a thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from pgq_anyio import (
    Cancel,
    Discard,
    Job,
    JobRecord,
    JobStatus,
    PgQueuer,
    ProcessExecutor,
    PsycopgDriver,
    Queries,
    Retry,
    Schedule,
    Snooze,
)
from pgq_anyio._lifecycle import HandlerOutcome
from pgq_anyio.testing import running_worker

pytestmark = pytest.mark.anyio

#: Long enough that the job is not run again (in seconds).
LATER = 3600.0


class RateLimitedError(Retry):
    """An answer of the application's own, with an ``__init__`` of its own."""

    def __init__(self, limit: int, *, unit: str) -> None:
        super().__init__(LATER, f"no more than {limit} {unit}")
        self.limit = limit


class BusyError(Snooze):
    def __init__(self) -> None:
        super().__init__(LATER)
        #: cannot travel
        self.callback = lambda: None


class UnwantedError(Cancel):
    pass


class HopelessError(Discard):
    pass


class OddError(Exception):
    """Pickles, and cannot be built again."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"odd {code}")


def local() -> HandlerOutcome:
    """An answer whose class no other process finds."""

    class LocalError(Retry):
        pass

    return LocalError(LATER, "local")


ANSWERS: dict[str, Callable[[], Exception]] = {
    "retry": lambda: Retry(LATER, "busy"),
    "snooze": lambda: Snooze(LATER),
    "cancel": lambda: Cancel("not needed"),
    "discard": lambda: Discard("hopeless"),
    "retry-subclass": lambda: RateLimitedError(5, unit="a minute"),
    "snooze-subclass": BusyError,
    "cancel-subclass": lambda: UnwantedError("not needed"),
    "discard-subclass": lambda: HopelessError("hopeless"),
    "local-subclass": local,
    "group": lambda: ExceptionGroup("all", [RateLimitedError(5, unit="a minute")]),
    "local-group": lambda: ExceptionGroup("all", [local()]),
}
CAUSES: dict[str, Callable[[], Exception] | None] = {
    "alone": None,
    "from": lambda: ConnectionError("refused"),
    "from-odd": lambda: OddError(code=5),
}


def answer(job: Job) -> None:
    """Raise what the payload says, with a cause."""
    kind, cause = (job.payload or b"").decode().split()
    say(kind, cause)


def say(kind: str, cause: str) -> None:
    fail, make = CAUSES[cause], ANSWERS[kind]
    if fail is None:
        raise make()
    try:
        raise fail()
    except Exception as error:
        said = make()
        if isinstance(said, ExceptionGroup):
            said.exceptions[0].__cause__ = error
        raise said from error


def discard(schedule: Schedule) -> None:
    """As ``answer``, with a cause."""
    say("discard", "from")


def told(record: JobRecord | None) -> Any:
    """What became of a job, but for its traceback."""
    assert record is not None
    errors = [(error.type, error.message, error.attempt) for error in record.errors]
    return record.status, record.attempt, record.cancel_reason, record.run_at is not None, errors


@pytest.mark.promise(49)
async def test_answers_count_as_those_of_a_thread(app: PgQueuer, queries: Queries) -> None:
    """With and without a cause, in a group, and as a class of the application's own: the same state, and the same type
    and message in the record.
    """
    app.entrypoint("thread")(answer)
    app.entrypoint("process", executor_factory=ProcessExecutor)(answer)
    cases = [f"{kind} {cause}".encode() for kind in ANSWERS for cause in CAUSES]
    ids = await queries.enqueue(["thread"] * len(cases) + ["process"] * len(cases), cases * 2)
    ended = {JobStatus.CANCELLED, JobStatus.FAILED, JobStatus.DEFERRED}
    async with running_worker(app):
        with anyio.fail_after(30):
            while not ended.issuperset((await queries.job_status(ids)).values()):  # noqa: ASYNC110  (facts)
                await anyio.sleep(0.02)
    records = [await queries.get_job(job_id) for job_id in ids]
    assert dict(zip(cases, map(told, records[: len(cases)]), strict=True)) == dict(
        zip(cases, map(told, records[len(cases) :]), strict=True)
    )
    for case, record in zip(cases * 2, records, strict=True):
        kind, cause = case.decode().split()
        texts = [error.traceback or "" for error in record.errors] if record is not None else []
        assert (0 if kind.startswith(("snooze", "cancel")) else 1) == len(texts), case
        for text in texts:
            # A leaf that nobody has raised has no traceback.
            assert "in say" in text or (cause == "alone" and "group" in kind), case
            assert ("raise fail()" in text) is (cause != "alone"), case
            assert "_child.py" not in text, case


@pytest.mark.promise(49)
async def test_the_answer_of_a_scheduled_run(app: PgQueuer, driver: PsycopgDriver, queries: Queries) -> None:
    """Its cause is recorded with the schedule."""
    app.schedule("report", "0 0 1 1 *", executor_factory=ProcessExecutor)(discard)
    async with running_worker(app):
        await queries.run_schedule("report")
        with anyio.fail_after(20):
            while (record := (await queries.schedules())[0]).last_status is None:  # noqa: ASYNC110  (a fact)
                await anyio.sleep(0.01)
    assert ("failed", "ConnectionError", "refused") == (
        record.last_status,
        record.last_error_type,
        record.last_error_message,
    )
    assert "raise fail()" in (record.last_error_traceback or "")

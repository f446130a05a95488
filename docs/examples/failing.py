"""Failures that are final, that are tried again, and answers of a handler that are no failures."""

import os
from functools import partial

import anyio

from pgq_anyio import (
    Cancel,
    Discard,
    Job,
    PgQueuer,
    PsycopgDriver,
    Queries,
    Retry,
    RetryPolicy,
    RetryWithBackoffEntrypointExecutor,
    Snooze,
)

DSN = os.environ["PGQ_ANYIO_DSN"]
app = PgQueuer(DSN)
calls = 0


@app.entrypoint("final")
async def final(job: Job) -> None:
    raise ValueError("one attempt is the default")


@app.entrypoint("limit", timeout=0.1)
async def limit(job: Job) -> None:
    await anyio.sleep_forever()


@app.entrypoint("again", max_attempts=3, retry_policy=RetryPolicy(initial_delay=0.1, retry_on=(ConnectionError,)))
async def again(job: Job) -> None:
    if job.attempt < 3:
        raise ConnectionError(f"attempt {job.attempt} failed")


@app.entrypoint("asked")
async def asked(job: Job) -> None:
    if job.attempt == 1:
        raise Retry(delay=0.1, reason="the other side is busy")


@app.entrypoint("snoozed")
async def snoozed(job: Job) -> None:
    global calls
    calls += 1
    if calls == 1:
        raise Snooze(0.1)


@app.entrypoint("cancelled")
async def cancelled(job: Job) -> None:
    raise Cancel("there is nothing to do")


@app.entrypoint("discarded", max_attempts=10)
async def discarded(job: Job) -> None:
    raise Discard("this payload will never be right")


in_memory = partial(RetryWithBackoffEntrypointExecutor, max_attempts=3, initial_delay=0.01)
failures = [OSError("first call"), OSError("second call")]


@app.entrypoint("in_one_run", executor_factory=in_memory)
async def in_one_run(job: Job) -> None:
    if failures:
        raise failures.pop(0)


async def main() -> None:
    async with PsycopgDriver(DSN) as driver:
        queries = Queries(driver)
        await queries.enqueue(
            ["final", "limit", "again", "asked", "snoozed", "cancelled", "discarded", "in_one_run"], None
        )
        await app.run(mode="drain")
        for record in reversed(await queries.list_jobs()):
            said = [f"{error.type}: {error.message}" for error in record.errors] or [record.cancel_reason or "no error"]
            print(f"{record.entrypoint}: {record.status}, attempt {record.attempt} ({'; '.join(said)})")


if __name__ == "__main__":
    anyio.run(main)

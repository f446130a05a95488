"""Limits that hold for two workers together: so many at once, one after the other, and so many a second."""

import os
import time

import anyio

from pgq_anyio import Job, PgQueuer, PsycopgDriver, Queries

DSN = os.environ["PGQ_ANYIO_DSN"]
running = most = 0
last_start = 0.0


def make_app() -> PgQueuer:
    app = PgQueuer(DSN)

    @app.entrypoint("resize", concurrency_limit=2)
    async def resize(job: Job) -> None:
        global running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.05)
        running -= 1

    @app.entrypoint("ledger", serialized_dispatch=True)
    async def ledger(job: Job) -> None:
        await anyio.sleep(0.01)
        print("ledger", (job.payload or b"").decode())

    @app.entrypoint("call_out", requests_per_second=5)
    async def call_out(job: Job) -> None:
        global last_start
        last_start = time.monotonic()

    return app


async def main() -> None:
    async with PsycopgDriver(DSN) as driver:
        queries = Queries(driver)
        await queries.enqueue(["resize"] * 10)
        await queries.enqueue(["ledger"] * 3, [b"first", b"second", b"third"])
        enqueued = time.monotonic()
        await queries.enqueue(["call_out"] * 4)

    async with anyio.create_task_group() as tasks:
        for _ in range(2):  # two workers, which might as well be on two machines
            tasks.start_soon(lambda: make_app().run(mode="drain"))

    print("resize: at most", most, "at once")
    print("call_out: four starts, three fifths of a second:", last_start - enqueued >= 0.6)


if __name__ == "__main__":
    anyio.run(main)

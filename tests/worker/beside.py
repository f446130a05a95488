"""A worker with a name without limits beside limited ones: ``python -m tests.worker.beside BACKEND OPTIONS``."""

from __future__ import annotations

import sys

import anyio

from pgq_anyio import Job
from tests.worker import process
from tests.worker.apps import app
from tests.worker.limited import log


@app.entrypoint("full", concurrency_limit=2)
async def full(job: Job) -> None:
    """Never end by itself."""
    await anyio.sleep_forever()


@app.entrypoint("churn", concurrency_limit=5)
@app.entrypoint("serial", serialized_dispatch=True)
@app.entrypoint("rated", requests_per_second=10)
async def churn(job: Job) -> None:
    """Take 5 ms."""
    await anyio.sleep(0.005)


@app.entrypoint("free")
async def free(job: Job) -> None:
    """Say when it starts."""
    log(job.id, "start")


if __name__ == "__main__":
    process.main(sys.argv[1], sys.argv[2])

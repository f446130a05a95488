"""A web application that enqueues jobs, asks what became of them, and cancels them. Workers run elsewhere.

::

    pip install fastapi uvicorn
    PGQ_ANYIO_DSN=postgresql://localhost/shop uvicorn fastapi_producer:web
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request

from pgq_anyio import JobId, PsycopgDriver, Queries


@asynccontextmanager
async def lifespan(web: FastAPI) -> AsyncIterator[dict[str, Queries]]:
    async with PsycopgDriver(os.environ["PGQ_ANYIO_DSN"]) as driver:
        yield {"queries": Queries(driver)}


def get_queries(request: Request) -> Queries:
    queries: Queries = request.state.queries
    return queries


QueriesDep = Annotated[Queries, Depends(get_queries)]
web = FastAPI(lifespan=lifespan)


@web.post("/fetch", status_code=202)
async def enqueue(url: str, queries: QueriesDep) -> dict[str, int]:
    (job_id,) = await queries.enqueue("fetch", url.encode())
    return {"id": job_id}


@web.get("/jobs/{job_id}")
async def show(job_id: int, queries: QueriesDep) -> dict[str, str]:
    record = await queries.get_job(JobId(job_id))
    if record is None:
        raise HTTPException(404, "no such job")
    return {"entrypoint": record.entrypoint, "status": record.status}


@web.delete("/jobs/{job_id}")
async def cancel(job_id: int, queries: QueriesDep) -> dict[str, bool]:
    return {"cancelled": bool(await queries.mark_job_as_cancelled([JobId(job_id)], "asked for by a user"))}

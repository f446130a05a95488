"""A worker that has lost its lease, and is ended before it could give back what it still had."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import anyio
import pytest

from pgq_anyio import Job, PgQueuer, Queries
from pgq_anyio._db import Connection
from pgq_anyio._term import term
from tests.worker.proxy import Proxy, executes

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]


async def wait_for(fact: Callable[[], object]) -> None:
    """Look at a fact of this process until it is true."""
    with anyio.fail_after(30):
        while not fact():  # noqa: ASYNC110  (it can only be looked at)
            await anyio.sleep(0.005)


@pytest.mark.promise(17)
@pytest.mark.parametrize("end", ["stop", "cancel"])
async def test_nothing_stays_claimed(
    proxy: Proxy,
    schema: str,
    queries: Queries,
    conn: Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    """It took a job without knowing it, then its network went silent, and its farewell failed. The network comes back
    just after it was told to end.
    """
    # Or a heartbeat might give the job back before the network is silent.
    monkeypatch.setattr(term, "SHORTEST_CLAIM_TIMEOUT", 30.0)
    app = PgQueuer(proxy.dsn, schema=schema)

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        raise AssertionError("the answer to the claim was lost")

    async def rows(table: str) -> list[tuple[object, ...]]:
        cursor = await conn.execute(f"select 1 from {schema}.{table}")
        return await cursor.fetchall()

    caplog.set_level(logging.WARNING)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            # Before it starts: of an idle worker, the answer that is lost may be that there is nothing.
            await queries.enqueue("fetch")
            proxy.lose_answer(executes("claim_sweep"), "silent")
            await tasks.start(partial(app.run, lease=2, dequeue_timeout=3600))
            await wait_for(lambda: proxy.has_lost)
            proxy.silence()
            await wait_for(lambda: "registering anew" in caplog.text)
            assert await rows("running")
            if end == "stop":
                app.stop()
            else:
                tasks.cancel_scope.cancel()
            proxy.resume()
    assert [] == await rows("running")
    assert [] == await rows("worker")
    assert 1 == len(await rows("queued"))

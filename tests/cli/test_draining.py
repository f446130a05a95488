"""The progress bar of ``run --drain``."""

from __future__ import annotations

import io
import re
from datetime import timedelta
from functools import partial

import anyio
import pytest
from rich.console import Console

from pgq_anyio import Job, PgQueuer, PsycopgDriver, Queries
from pgq_anyio._cli import draining

pytestmark = pytest.mark.anyio


async def test_the_bar_counts_all_that_is_waited_for(dsn: str, schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queued, deferred and running jobs of the app's names, and no others."""
    shown = io.StringIO()
    monkeypatch.setattr(draining, "make_console", lambda **_: Console(file=shown, force_terminal=True, width=120))
    monkeypatch.setattr(draining, "INTERVAL", 0.01)
    app = PgQueuer(dsn, schema=schema)
    seen = anyio.Event()

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        if job.payload == b"hold":
            await seen.wait()

    async def wait_shown(figures: str) -> None:
        with anyio.fail_after(10):
            while figures not in re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue()):  # noqa: ASYNC110
                await anyio.sleep(0.01)

    async with PsycopgDriver(dsn) as driver:
        queries = Queries(driver, schema=schema)
        await queries.enqueue("other")
        await queries.enqueue("fetch", b"hold")
        await queries.enqueue("fetch", execute_after=timedelta(seconds=0.7))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(draining.show_draining, app, partial(app.run, mode="drain"))
            await wait_shown("0/2")  # one runs, one is deferred
            await wait_shown("1/2")
            seen.set()

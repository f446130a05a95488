"""The programs in ``examples/``, run as they stand by the commands that they name."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgq_anyio import JobStatus, SyncQueries
from tests.cli.processes import Command, Commands
from tests.worker.fleet import wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"

on_both_backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@pytest.fixture
def commands(database: str) -> Iterator[Commands]:
    """Starts commands in the directory of the examples; all have ended afterwards."""
    with Commands(database, EXAMPLES) as commands:
        yield commands


def start(commands: Commands, *arguments: str) -> Command:
    """Start a command on the database that the environment names."""
    return commands.start(*arguments, environment={"PGQ_ANYIO_DSN": commands.dsn, "PYTHONDONTWRITEBYTECODE": "1"})


@on_both_backends
def test_quickstart(commands: Commands, backend: str) -> None:
    """The first thing that anybody tries: short, and it works."""
    assert len((EXAMPLES / "quickstart.py").read_text("utf-8").splitlines()) <= 15
    assert start(commands, "enqueue", "fetch", "--payload", "https://example.org").wait() == 0
    worker = start(commands, "run", "quickstart:app", "--drain", f"--backend={backend}")
    assert worker.wait() == 0, worker.output
    worker.wait_said("fetched b'https://example.org'")


@on_both_backends
def test_cancellable(commands: Commands, backend: str) -> None:
    """Every kind of handler ends soon after it was cancelled, and cleans up as it says."""
    worker = start(commands, "run", "cancellable:app", f"--backend={backend}")
    with SyncQueries(commands.dsn) as queries:
        ids = queries.enqueue(["download", "transaction", "resize", "crunch"])
        for said in ("download: part 2", "transaction: begun", "resize: in a thread", "crunch: in a process"):
            worker.wait_said(said)
        assert start(commands, "cancel", *map(str, ids)).wait() == 0
        wait_until(lambda: {JobStatus.CANCELLED} == set(queries.job_status(ids).values()), timeout=5)
    for said in ("download: cancelled (user), removing", "transaction: rolled back", "resize: the thread ends"):
        worker.wait_said(said)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0, worker.output


@on_both_backends
def test_scheduled(commands: Commands, backend: str) -> None:
    """A schedule of every second fires, and the worker stops cleanly."""
    worker = start(commands, "run", "scheduled:app", f"--backend={backend}")
    worker.wait_said("due at ")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0, worker.output


@pytest.mark.anyio
async def test_fastapi(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are enqueued, shown and cancelled over HTTP."""
    pytest.importorskip("fastapi", reason="fastapi is not installed (dependency group test)")
    httpx = pytest.importorskip("httpx", reason="httpx is not installed (dependency group test)")
    monkeypatch.setenv("PGQ_ANYIO_DSN", database)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    web: Any = __import__("fastapi_producer").web
    async with web.router.lifespan_context(web) as state:

        async def with_state(scope: dict[str, Any], receive: Any, send: Any) -> None:
            await web({**scope, "state": dict(state)}, receive, send)

        transport = httpx.ASGITransport(with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post("/fetch", params={"url": "https://example.org"})
            assert answer.status_code == 202
            path = f"/jobs/{answer.json()['id']}"
            assert {"entrypoint": "fetch", "status": "queued"} == (await client.get(path)).json()
            assert {"cancelled": True} == (await client.delete(path)).json()
            assert {"cancelled": False} == (await client.delete(path)).json()
            assert (await client.get("/jobs/999999")).status_code == 404

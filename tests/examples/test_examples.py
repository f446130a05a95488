"""The programs in ``examples/``, run as they stand by the commands that they name."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from pgq_anyio import JobId, JobStatus, SyncQueries
from tests.cli.processes import Command, Commands
from tests.worker.fleet import wait_until

pytestmark = pytest.mark.heavy

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


def run(commands: Commands, *arguments: str) -> None:
    """Run a command to its end."""
    command = start(commands, *arguments)
    assert command.wait() == 0, command.output


@on_both_backends
def test_quickstart(commands: Commands, backend: str) -> None:
    """The first thing that anybody tries: short, and it works."""
    assert len((EXAMPLES / "quickstart.py").read_text("utf-8").splitlines()) <= 15
    run(commands, "enqueue", "fetch", "--payload", "https://example.org")
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
        run(commands, "cancel", *map(str, ids))
        wait_until(lambda: {JobStatus.CANCELLED} == set(queries.job_status(ids).values()))
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


@on_both_backends
def test_create_pgqueuer(commands: Commands, backend: str) -> None:
    """A function gives the app; a dotted path names it; its schedule runs when it is asked to."""
    options = ("--dequeue-timeout", "10s", f"--backend={backend}")
    worker = start(commands, "run", "create_pgqueuer.main", *options)
    worker.wait_said("ready")
    run(commands, "enqueue", "fetch", "--payload", "hello")
    worker.wait_said("processed message: b'hello'")
    run(commands, "schedules", "run", "scheduled_every_minute")
    worker.wait_said("executed every minute: scheduled_every_minute, ")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0, worker.output


@on_both_backends
def test_producer(database: str, backend: str) -> None:
    """What is for later and what is cancelled is told as such."""
    said = run_program("producer.py", backend, dsn=database)
    assert "enqueued 1002 jobs, cancelled 1001\njob 1: cancelled\njob 2: queued\n" == said
    with SyncQueries(database) as queries:
        urgent = queries.get_job(JobId(2))
    assert urgent is not None
    assert (b"Job data", 5) == (urgent.payload, urgent.priority)


@on_both_backends
def test_own_program(database: str, backend: str) -> None:
    """The worker is a task of the program: its job is cancelled, another enqueues a third, and it stops when told."""
    assert "no longer watching\ndeferred: ['my_task']\n" == run_program("own_program.py", backend, dsn=database)
    with SyncQueries(database) as queries:
        assert ["cancelled", "successful", "deferred"] == list(
            queries.job_status([JobId(number) for number in (1, 2, 3)]).values()
        )
        assert [] == queries.workers()


def run_program(*command: str, dsn: str) -> str:
    """Run a program that ends by itself; what it said."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=EXAMPLES,
        env={**os.environ, "PGQ_ANYIO_DSN": dsn, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@on_both_backends
def test_limits(commands: Commands, backend: str) -> None:
    """At an even pace, no more than four at once, and one by one in order."""
    with SyncQueries(commands.dsn) as queries:
        queries.enqueue("send_mail", [None] * 8)
        queries.enqueue("data_processing", [None] * 8)
        queries.enqueue("shared_resource", [b"c", b"a", b"b"], [0, 5, 0])
    worker = start(commands, "run", "limits:app", "--drain", "--dequeue-timeout", "10s", f"--backend={backend}")
    assert worker.wait() == 0, worker.output
    # What a thread and the event loop print at the same time may stand on one line.
    said_by = re.compile(r"(send_mail|data_processing|shared_resource): (\d+\.\d\d|(?:\w )?(?:begins|ends))")
    lines = said_by.findall(worker.output)
    times = [float(said) for name, said in lines if name == "send_mail"]
    assert 8 == len(times)
    assert times[-1] - times[0] > 0.6, "eight starts, a tenth of a second between two of them"
    running = list(accumulate({"begins": 1, "ends": -1}[said] for name, said in lines if name == "data_processing"))
    assert (16, 4, 0) == (len(running), max(running), running[-1])
    order = [said for name, said in lines if name == "shared_resource"]
    assert [f"{job} {what}" for job in "acb" for what in ("begins", "ends")] == order


@on_both_backends
def test_executors(commands: Commands, backend: str) -> None:
    """The executor of one's own does the work, its error is recorded, and a call that fails twice is made again."""
    with SyncQueries(commands.dsn) as queries:
        ids = queries.enqueue("user_notification", [b"email|hello", b"sms|hello", b"pigeon|hello"])
        ids += queries.enqueue(["ask_api", "call_api"])
        worker = start(commands, "run", "executors:app", "--drain", f"--backend={backend}")
        assert worker.wait() == 0, worker.output
        for said in ("sending email: hello", "sending sms: hello"):
            assert said in worker.output
        for name in ("ask_api", "call_api"):
            assert f"{name}: answered at call 3" in worker.output
        states = queries.job_status(ids)
        assert ["successful", "successful", "failed", "successful", "successful"] == [states[job_id] for job_id in ids]
        pigeon = queries.get_job(ids[2])
    assert pigeon is not None
    assert "user_notification knows no way called 'pigeon'" == pigeon.errors[0].message


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

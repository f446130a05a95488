"""Any role that may connect can send any notification: it makes a worker look, and does nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import anyio
import psycopg
import pytest

from pgq_anyio import Job, JobId, JobStatus, PgQueuer, SyncQueries
from pgq_anyio._db import Connection
from pgq_anyio._services import heartbeat
from pgq_anyio._services.listener import parse_notification, worker_channel
from pgq_anyio._store._sql import Store
from pgq_anyio._store.running import find_cancelled
from pgq_anyio.testing import running_worker
from tests.security.conftest import Roles

anyio_test = pytest.mark.anyio


class Looks:
    """What the worker asked the database about, and what was answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[JobId] = []
        self.answers: list[list[tuple[JobId, int]]] = []
        monkeypatch.setattr(heartbeat, "find_cancelled", self._look)

    async def _look(self, *arguments: Any, job_ids: Sequence[JobId], **options: Any) -> list[tuple[JobId, int]]:
        found = await find_cancelled(*arguments, job_ids=job_ids, **options)
        self.asked.extend(job_ids)
        self.answers.append(found)
        return found


def forge(roles: Roles, channel: str, *payloads: str) -> None:
    """Send notifications as a role that was granted nothing, each in a transaction of its own."""
    with roles.connect("nobody") as conn:
        for payload in payloads:
            conn.execute("select pg_notify(%s, %s)", [channel, payload])


def forged_cancel(roles: Roles, job_id: JobId) -> str:
    """What the worker would hear if somebody had cancelled its running job."""
    with roles.connect("admin") as conn:
        ((worker_id, claim_no),) = conn.execute(
            roles.bind("select worker_id, claim_no from {schema}.running where job_id = %s"), [job_id]
        ).fetchall()
    return f"cancel:{worker_id}:{job_id}.{claim_no}"


@pytest.mark.promise(24)
@anyio_test
async def test_a_forged_cancel_cancels_nothing(roles: Roles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker asks the database, with few statements however many are forged; a real request gets through."""
    app = PgQueuer(roles.conninfo("work"), schema=roles.schema)
    started, release = anyio.Event(), anyio.Event()
    running: list[JobId] = []

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        running.append(job.id)
        if len(running) == 2:
            started.set()
        await release.wait()

    looks = Looks(monkeypatch)
    channel = Store(roles.schema).channel
    with roles.connect("admin") as conn, anyio.fail_after(30):
        queries = SyncQueries(conn, schema=roles.schema)
        async with running_worker(app):
            kept, cancelled = queries.enqueue(["fetch"] * 2)
            await started.wait()
            began_at = anyio.current_time()
            await anyio.to_thread.run_sync(forge, roles, channel, *[forged_cancel(roles, kept)] * 500)
            while kept not in looks.asked:  # noqa: ASYNC110  (a fact of another task)
                await anyio.sleep(0.01)
            assert [] == [key for answer in looks.answers for key in answer]
            assert len(looks.answers) <= 2 + (anyio.current_time() - began_at) / heartbeat.PAUSE_IN_VAIN
            assert [cancelled] == queries.mark_job_as_cancelled([cancelled])
            while queries.job_status([cancelled]) != {cancelled: JobStatus.CANCELLED}:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            release.set()
            while queries.job_status([kept]) != {kept: JobStatus.SUCCESSFUL}:  # noqa: ASYNC110
                await anyio.sleep(0.01)


@pytest.mark.parametrize("payload", ["cancel:{worker}:{job}.{claim}", "cancel:{worker}:{other}.{claim}"])
@anyio_test
async def test_what_is_not_running_is_not_asked_about(
    roles: Roles, monkeypatch: pytest.MonkeyPatch, payload: str
) -> None:
    """A job that has ended and one that never was cost the database nothing."""
    app = PgQueuer(roles.conninfo("work"), schema=roles.schema)
    started, release = anyio.Event(), anyio.Event()

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        started.set()
        await release.wait()

    looks = Looks(monkeypatch)
    channel = Store(roles.schema).channel
    with roles.connect("admin") as conn, anyio.fail_after(30):
        queries = SyncQueries(conn, schema=roles.schema)
        async with running_worker(app):
            (job_id,) = queries.enqueue("fetch")
            await started.wait()
            _, worker, numbers = forged_cancel(roles, job_id).split(":")
            release.set()
            while queries.job_status([job_id]) != {job_id: JobStatus.SUCCESSFUL}:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            claim = numbers.partition(".")[2]
            forge(roles, channel, payload.format(worker=worker, job=job_id, other=job_id + 1, claim=claim))
            # Notifications arrive in their order: the job that the second one announces has run after the first.
            (later,) = queries.enqueue("fetch")
            while queries.job_status([later]) != {later: JobStatus.SUCCESSFUL}:  # noqa: ASYNC110
                await anyio.sleep(0.01)
    assert [] == looks.asked


GARBAGE = [
    "",
    ":",
    "\n",
    "cancel",
    "cancel:",
    "cancel:x:y",
    "cancel:{worker}:",
    "cancel:{worker}:1",
    "cancel:{worker}:1.2.3",
    "cancel:{worker}:0.1,-1.1",
    "cancel:{worker}:" + "9" * 5000 + ".1",
    "cancel:{worker}:99999999999999999999.1",
    "deferred:x",
    "deferred:nan",
    "deferred:inf",
    "deferred:-inf",
    "deferred:1e300",
    "deferred:-1e18",
    "deferred:-62135596801",
    "deferred:253402300801",
    "queued:" + "x" * 7000,
    "front:%s{}",
    "slot:\x01",
    "limits:x",
    "schedule:x",
    "echo:x",
    "é" * 3000,
]


@anyio_test
async def test_garbage_is_ignored(roles: Roles) -> None:
    """Whatever is sent to its channels, the worker goes on: it hears of jobs, due times and cancel requests."""
    app = PgQueuer(roles.conninfo("work"), schema=roles.schema)
    started = anyio.Event()

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None: ...

    @app.entrypoint("limited", concurrency_limit=1)
    async def limited(job: Job) -> None:
        started.set()
        await anyio.sleep_forever()

    with roles.connect("admin") as conn, anyio.fail_after(30):
        queries = SyncQueries(conn, schema=roles.schema)
        async with running_worker(app):
            ((worker,),) = conn.execute(roles.bind("select worker_id from {schema}.worker")).fetchall()
            assert isinstance(worker, int)
            for channel in (Store(roles.schema).channel, worker_channel(worker)):
                forge(roles, channel, *(payload.format(worker=worker) for payload in GARBAGE if "{}" not in payload))
            (running,) = queries.enqueue("limited")
            await started.wait()
            later = queries.enqueue(["fetch"] * 2, execute_after=[None, timedelta(milliseconds=50)])
            assert [running] == queries.mark_job_as_cancelled([running])
            while set(queries.job_status([running, *later]).values()) != {JobStatus.CANCELLED, JobStatus.SUCCESSFUL}:  # noqa: ASYNC110
                await anyio.sleep(0.01)


@pytest.mark.parametrize("job_id", ["0", "-1", str(2**63), "9" * 5000, "x"])
def test_ids_that_no_job_has_are_not_read(job_id: str) -> None:
    """They would make a statement fail."""
    assert parse_notification(f"cancel:1:{job_id}.1") is None
    assert parse_notification(f"cancel:1:{2**63 - 1}.1") is not None


@pytest.mark.parametrize("kind", ["text", "bytes"])
@anyio_test
async def test_what_is_no_text_is_ignored(dsn: str, kind: str) -> None:
    """In a database without an encoding, bytes that are no text reach a listener: it hears what comes after them."""
    name = f"no_encoding_{os.getpid()}"
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(f"drop database if exists {name}")
        admin.execute(f"create database {name} encoding 'SQL_ASCII' locale 'C' template template0")
        try:
            conn = await Connection.connect(dsn, dbname=name)
            try:
                await conn.execute("listen channel")
                await conn.execute(b"notify channel, '" + ("é".encode() if kind == "text" else b"\xe9") + b"'")
                await conn.execute("notify channel, 'after it'")
                assert ["after it"] == [one.payload for one in await conn.wait_notifies(10)]
            finally:
                conn.abort()
        finally:
            admin.execute(f"drop database {name} with (force)")

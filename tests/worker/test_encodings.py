"""Databases whose texts are not UTF-8."""

from __future__ import annotations

import os
from collections.abc import Iterator

import anyio
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgq_anyio import Job, JobStatus, PgQueuer, PsycopgDriver, Queries, Schedule, SyncQueries
from pgq_anyio._store.migrations import migrate_sync
from pgq_anyio.testing import drain, running_worker

pytestmark = pytest.mark.anyio

ARROW = "\N{RIGHTWARDS ARROW}"


@pytest.fixture(scope="module")
def latin_dsn(server_dsn: str) -> Iterator[str]:
    """A database that knows the characters of Western Europe, with tables."""
    name = f"latin_{os.getpid()}"
    create = "create database {} template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'"
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        if conn.info.server_version >= 150_000:
            create += " locale_provider libc"
        conn.execute(sql.SQL(create).format(sql.Identifier(name)))
        try:
            dsn = make_conninfo(server_dsn, dbname=name)
            with psycopg.connect(dsn, autocommit=True) as latin:
                migrate_sync(latin, "pgq_anyio")
            yield dsn
        finally:
            conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.mark.promise(29)
@pytest.mark.parametrize("environment", ["", "latin1"])
async def test_an_error_that_the_database_cannot_keep(
    latin_dsn: str, monkeypatch: pytest.MonkeyPatch, environment: str
) -> None:
    """The job fails all the same, the others end as ever, and the worker goes on, whatever libpq's environment says."""
    monkeypatch.setenv("PGCLIENTENCODING", environment)
    app = PgQueuer(latin_dsn)

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        text = (job.payload or b"").decode()
        if text:
            raise ValueError(text)

    async with PsycopgDriver(latin_dsn) as driver:
        queries = Queries(driver)
        ids = await queries.enqueue("fetch", [b"", "caf\xe9".encode(), ARROW.encode(), b"x" * 1_000_000, b""])
        await drain(app)
        records = [await queries.get_job(job_id) for job_id in ids]
    assert [record and record.status for record in records] == [
        JobStatus.SUCCESSFUL,
        JobStatus.FAILED,
        JobStatus.FAILED,
        JobStatus.FAILED,
        JobStatus.SUCCESSFUL,
    ]
    assert "caf\xe9" == (records[1].errors[0].message if records[1] else None)
    with SyncQueries(latin_dsn) as blocking, pytest.raises(psycopg.DataError):
        blocking.enqueue(ARROW)


@pytest.mark.promise(43)
async def test_an_error_of_a_schedule_that_the_database_cannot_keep(latin_dsn: str) -> None:
    """The run has failed, the others end as ever, and the worker goes on; so too if the note of a cut is to blame."""
    app = PgQueuer(latin_dsn)
    texts = {"accent": "caf\xe9", "arrow": ARROW, "fine": "", "long": "x" * 1_000_000}
    ran: set[str] = set()

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        ran.add("job")

    for name in texts:

        @app.schedule(name, "0 0 1 1 *")
        async def report(schedule: Schedule) -> None:
            ran.add(schedule.name)
            if texts[schedule.name]:
                raise ValueError(texts[schedule.name])

    async with PsycopgDriver(latin_dsn) as driver:
        queries = Queries(driver)
        async with running_worker(app):
            for name in texts:
                await queries.run_schedule(name)
            with anyio.fail_after(20):
                while any(one.last_finished_at is None for one in await queries.schedules()):  # noqa: ASYNC110  (a fact of the database)
                    await anyio.sleep(0.01)
                (job_id,) = await queries.enqueue("fetch")
                while (await queries.job_status([job_id]))[job_id] is not JobStatus.SUCCESSFUL:  # noqa: ASYNC110  (as above)
                    await anyio.sleep(0.01)
        records = await queries.schedules()
        for name in texts:
            await queries.remove_schedule(name, force=True)
    assert {"job", *texts} == ran
    assert ["failed", "failed", "successful", "failed"] == [one.last_status for one in records]
    assert "caf\xe9" == records[0].last_error_message
    assert "UntranslatableCharacter" == records[1].last_error_type == records[3].last_error_type

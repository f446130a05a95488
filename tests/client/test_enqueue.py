"""Enqueueing through the pool: what arrives in the database, and when nothing does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgq_anyio import ConfigurationError, JobStatus, PsycopgDriver
from pgq_anyio._client import Queries, SyncQueries
from pgq_anyio._store import enqueueing
from tests.client.conftest import Look

pytestmark = pytest.mark.anyio


@pytest.mark.promise(1)
@pytest.mark.parametrize(
    "payload",
    [None, b"", bytes(range(256)), b"\x00" * 7, b"\\x41", bytes(range(256)) * 4096],
    ids=["none", "empty", "every byte", "nuls", "backslash", "1 MiB"],
)
@pytest.mark.parametrize("number", [1, enqueueing.COPY_FROM])
async def test_payloads_arrive_unchanged(queries: Queries, look: Look, payload: bytes | None, number: int) -> None:
    """By arrays and by COPY, byte by byte; empty is not ``None``."""
    if number > 1 and payload is not None:
        payload = payload[:1000]
    job_ids = await queries.enqueue(["fetch"] * number, payload)
    assert [(payload, number)] == look("select payload, count(*) from {schema}.queued group by 1")
    record = await queries.get_job(job_ids[-1])
    assert record is not None
    assert (payload, JobStatus.QUEUED, 1, 0) == (record.payload, record.status, record.attempt, record.crashes)


@pytest.mark.promise(1, 7)
@pytest.mark.parametrize("payload", [b"%s", b"%(name)s", b"%%", b"{schema}"])
async def test_placeholders_in_payloads_are_none(
    queries: Queries, sync_queries: SyncQueries, look: Look, payload: bytes
) -> None:
    """Nothing is put in their place, whichever way they take: alone, by arrays, by COPY, by the SQL function."""
    sent = {"alone": 1, "arrays": 2, "copy": enqueueing.COPY_FROM, "sync": 1, "sync arrays": 2, "function": 1}
    await queries.enqueue("alone", payload)
    await queries.enqueue("arrays", [payload] * sent["arrays"])
    await queries.enqueue("copy", [payload] * sent["copy"])
    sync_queries.enqueue("sync", payload)
    sync_queries.enqueue("sync arrays", [payload] * sent["sync arrays"])
    look("select {schema}.enqueue('function', %s)", payload)
    found = look("select entrypoint, payload, count(*) from {schema}.queued group by 1, 2")
    assert sorted((name, payload, number) for name, number in sent.items()) == sorted(found)


@pytest.mark.promise(2)
@pytest.mark.parametrize("number", [0, 1, 2, 999, 1000, 10_000])
async def test_lists_of_any_length(queries: Queries, look: Look, number: int) -> None:
    """Distinct ids in the order of the lists, which is that of the queue; names and priorities stay together."""
    payloads = [str(n).encode() for n in range(number)]
    names = [f"naïve {n % 3}" for n in range(number)]
    priorities = [n % 5 - 2 for n in range(number)]
    job_ids = await queries.enqueue(names, payloads, priorities)
    assert sorted(set(job_ids)) == job_ids
    expected = list(zip(job_ids, names, payloads, priorities, strict=True))
    assert expected == look("select job_id, entrypoint, payload, priority from {schema}.queued order by seq")
    assert [(n,) for n in job_ids] == look("select job_id from {schema}.queued order by job_id")


@pytest.mark.promise(2, 8)
async def test_batches_cut_into_several_statements(
    queries: Queries, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deferred jobs, which no COPY takes, and payloads that are too much for one statement keep their order and ids."""
    monkeypatch.setattr(enqueueing, "MAX_JOBS", 10)
    monkeypatch.setattr(enqueueing, "MAX_BYTES", 100)
    payloads = [b"x" * (n % 7 * 20) for n in range(57)]
    whens = [timedelta(hours=n % 2) for n in range(57)]
    job_ids = await queries.enqueue("fetch", payloads, 0, whens)
    found = look(
        "select job_id, payload from {schema}.queued union all select job_id, payload from {schema}.deferred order by 1"
    )
    assert list(zip(job_ids, payloads, strict=True)) == found
    assert [(28,)] == look("select count(*) from {schema}.deferred")


@pytest.mark.promise(2)
@pytest.mark.parametrize("number", [2, 5000])
async def test_one_bad_element_and_nothing_is_enqueued(
    queries: Queries, look: Look, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is found before anything was sent, or refused by the database in the middle of the batch."""
    with pytest.raises(ConfigurationError, match=rf"payload\[{number - 1}\]"):
        await queries.enqueue("fetch", [*[b""] * (number - 1), "text"])  # type: ignore[list-item]
    look("alter table {schema}.queued add check (payload <> 'bad'::bytea)")
    monkeypatch.setattr(enqueueing, "MAX_JOBS", 1)
    for when in (None, timedelta(0)):  # by COPY and by arrays, if there are enough
        with pytest.raises(psycopg.errors.CheckViolation):
            await queries.enqueue(["fetch"] * number, [*[b""] * (number - 1), b"bad"], 0, [when] * number)
    assert [(0,)] == look("select count(*) from {schema}.queued")
    assert 1 == len(await queries.enqueue("fetch"))  # and the connection is usable


@pytest.mark.promise(8)
async def test_when_jobs_become_due(queries: Queries, look: Look) -> None:
    """By the database's clock: nothing, zero and the past are at once; the rest waits until its time."""
    moment = datetime(2040, 2, 29, 12, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    whens = [
        None,
        timedelta(0),
        timedelta(days=-3),
        timedelta.min,
        datetime(2001, 1, 1, tzinfo=UTC),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
        timedelta(hours=1),
        moment,
    ]
    job_ids = await queries.enqueue("fetch", None, 3, whens)
    assert [(n,) for n in job_ids[:6]] == look("select job_id from {schema}.queued order by job_id")
    (hour, far) = look("select job_id, run_at, run_at - clock_timestamp(), priority from {schema}.deferred order by 1")
    assert (job_ids[6], job_ids[7], moment, 3) == (hour[0], far[0], far[1], far[3])
    assert timedelta(minutes=59) < hour[2] <= timedelta(hours=1)
    record = await queries.get_job(job_ids[7])
    assert record is not None
    assert (JobStatus.DEFERRED, moment) == (record.status, record.run_at)
    assert record.run_at is not None
    assert record.run_at.tzinfo is not None


@pytest.mark.promise(8)
async def test_the_latest_moment_can_be_read_again(queries: Queries, driver: PsycopgDriver) -> None:
    """The end of what is accepted is within what Python can show, in every time zone of a session."""
    latest = datetime(9998, 12, 31, 23, 59, tzinfo=UTC)
    (job_id,) = await queries.enqueue("fetch", None, 0, latest)
    async with driver.connection() as connection:
        await connection.execute("set timezone = 'Pacific/Kiritimati'")
    record = await queries.get_job(job_id)
    assert record is not None
    assert latest == record.run_at


@pytest.mark.promise(10, 24)
async def test_a_deferred_job_can_be_cancelled(queries: Queries) -> None:
    """It is recorded once, with the reason and its payload."""
    (job_id,) = await queries.enqueue("fetch", b"kept", 0, timedelta(hours=1))
    assert [job_id] == await queries.mark_job_as_cancelled([job_id], "not needed")
    assert [] == await queries.mark_job_as_cancelled([job_id], "again")
    (record,) = await queries.list_jobs()
    assert (job_id, JobStatus.CANCELLED, "not needed", b"kept") == (
        record.id,
        record.status,
        record.cancel_reason,
        record.payload,
    )


@pytest.mark.promise(7)
@pytest.mark.parametrize("after", [None, timedelta(seconds=-1), timedelta(hours=1)])
async def test_enqueue_from_plain_sql(queries: Queries, look: Look, after: timedelta | None) -> None:
    """The function takes names, defaults and intervals, and gives the id."""
    ((job_id,),) = look(
        "select {schema}.enqueue('fetch', '\\x0041'::bytea, priority => 4, execute_after => %s::interval)", after
    )
    record = await queries.get_job(job_id)
    assert record is not None
    deferred = after is not None and after > timedelta(0)
    assert (b"\x00A", 4, JobStatus.DEFERRED if deferred else JobStatus.QUEUED) == (
        record.payload,
        record.priority,
        record.status,
    )
    ((plain,),) = look("select {schema}.enqueue('fetch')")
    assert plain > job_id


@pytest.mark.promise(7)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("null", "the entrypoint must be a name, not null"),
        ("''", "the entrypoint must be a name, not ''"),
        ("repeat('ä', 501)", "name of the entrypoint has 501 characters; at most 500"),
        ("'fetch', execute_after => interval '10000 years'", "execute_after is 10000 years, .* after the year 9998"),
        ("'fetch', execute_after => interval '290000 years'", "execute_after is 290000 years, .* after the year 9998"),
        ("'fetch', execute_after => interval '2147483647 days'", "execute_after is 2147483647 days, .* after the year"),
    ],
)
async def test_plain_sql_is_refused_what_python_is(queries: Queries, look: Look, arguments: str, message: str) -> None:
    """With an error that names the argument, and nothing is stored."""
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=f"^enqueue: .*{message}"):
        look(f"select {{schema}}.enqueue({arguments})")
    assert [] == await queries.list_jobs()


@pytest.mark.promise(7)
async def test_no_insert_makes_a_job_that_cannot_be_read(queries: Queries, look: Look) -> None:
    """Whoever writes to the table passes by the function, and not by the table's own bounds."""
    for time in ("infinity", "10000-01-01", "-infinity", "1969-12-31"):
        for table, column in (("deferred", "run_at"), ("deferred", "created_at"), ("queued", "created_at")):
            columns = dict.fromkeys(["run_at"] if table == "deferred" else [], "2031-01-01") | {column: time}
            with pytest.raises(psycopg.errors.CheckViolation, match=f"{table}_{column}"):
                look(
                    f"insert into {{schema}}.{table} (entrypoint, {', '.join(columns)}) "
                    f"values ('fetch'{', %s' * len(columns)})",
                    *columns.values(),
                )
    look("insert into {schema}.deferred (entrypoint, run_at) values ('fetch', '9998-12-31')")
    assert 1 == len(await queries.list_jobs())


@pytest.mark.promise(7)
async def test_plain_sql_notifies_at_commit(dsn: str, schema: str) -> None:
    """A listener hears of the job when it exists, and never of one that was rolled back."""
    with psycopg.connect(dsn, autocommit=True) as listener, psycopg.connect(dsn) as producer:
        listener.execute(sql.SQL("listen {}").format(sql.Identifier(f"pgq_anyio.{schema}")))
        call = sql.SQL("select {}.enqueue('fetch')").format(sql.Identifier(schema))
        producer.execute(call)
        producer.rollback()
        assert [] == list(listener.notifies(timeout=0.05))
        producer.execute(call)
        producer.execute(call)
        producer.commit()
        assert ["queued:fetch"] == [n.payload for n in listener.notifies(timeout=5, stop_after=1)]
        assert [] == list(listener.notifies(timeout=0.05))


async def test_a_closed_driver_is_named(dsn: str, schema: str) -> None:
    """The message says that it is not open, and shows no password."""
    queries = Queries(PsycopgDriver(f"{dsn} password=hunter2"), schema=schema)
    with pytest.raises(RuntimeError, match="is not open") as error:
        await queries.enqueue("fetch")
    assert "hunter2" not in f"{error.value} {queries!r}"


@pytest.mark.parametrize("number", [1, 3, 2000])
async def test_only_sleepers_are_notified(queries: Queries, dsn: str, look: Look, schema: str, number: int) -> None:
    """A job for a name that nobody sleeps on wakes nobody, whichever way it was enqueued."""
    look(
        "insert into {schema}.worker (worker_id, name, entrypoints, max_crashes, lease, sleeping) "
        "values (1, 'w', '{{fetch,other}}', '{{1,1}}', 30, true)"
    )
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute(sql.SQL("listen {}").format(sql.Identifier(f"pgq_anyio.{schema}")))
        await queries.enqueue(["elsewhere"] * number)
        await queries.enqueue(["fetch", *["elsewhere"] * (number - 1)])
        heard: list[Any] = [n.payload for n in listener.notifies(timeout=5, stop_after=1)]
        assert ["queued:fetch"] == heard + [n.payload for n in listener.notifies(timeout=0.05)]


@pytest.mark.promise(6)
async def test_a_call_of_several_statements_notifies_in_any_case(
    queries: Queries, dsn: str, look: Look, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was awake when the first of them looked may be asleep when they are committed."""
    monkeypatch.setattr(enqueueing, "MAX_JOBS", 2)
    look(
        "insert into {schema}.worker (worker_id, name, entrypoints, max_crashes, lease, sleeping) "
        "values (1, 'w', '{{fetch,other}}', '{{1,1}}', 30, false)"
    )
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute(sql.SQL("listen {}").format(sql.Identifier(f"pgq_anyio.{schema}")))
        await queries.enqueue(["fetch"] * 2)
        assert [] == list(listener.notifies(timeout=0.05))
        await queries.enqueue(["fetch", "fetch", "other"])
        heard = [n.payload for n in listener.notifies(timeout=5, stop_after=2)]
        assert ["queued:fetch", "queued:other"] == sorted(heard)


async def test_the_twins_have_the_same_methods() -> None:
    """What one form can do the other can, with the same parameters."""
    public = {name for name in vars(Queries) if not name.startswith("_")}
    assert public == {name for name in vars(SyncQueries) if not name.startswith("_")} - {"close"}
    for name in public:
        ours, theirs = (getattr(form, name).__annotations__ for form in (Queries, SyncQueries))
        assert list(ours) == list(theirs)

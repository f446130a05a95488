"""Public functions, given anything: a clear error and no change, or exactly what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from pgq_anyio import ConfigurationError, JobStatus, PgQueuer, SyncQueries
from pgq_anyio._cron import CronSchedule
from pgq_anyio._store._sql import Store
from tests.fuzz.values import DUES, NUMBERS, ODD, TEXTS
from tests.profiles import scaled

pytestmark = pytest.mark.heavy


@pytest.fixture
def queries(dsn: str, schema: str) -> Iterator[SyncQueries]:
    with SyncQueries(dsn, schema=schema) as queries:
        yield queries


def counts(dsn: str, schema: str) -> dict[str, int]:
    """How many rows each table has: a table that is gone, or is new, shows too."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        tables = conn.execute(
            "select relname from pg_class where relnamespace = to_regnamespace(%s) and relkind in ('r', 'p')",
            [f'"{schema}"'],
        ).fetchall()
        found = {}
        for (table,) in tables:
            row = conn.execute(sql.SQL("select count(*) from {}").format(sql.Identifier(schema, table))).fetchone()
            assert row is not None
            found[table] = row[0]
        return found


def attempt(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result, or the error of ours, which has to say something."""
    try:
        return function(*arguments, **options)
    except ConfigurationError as error:
        refusal = error
    assert 10 < len(str(refusal)) < 12_000
    return refusal


def test_enqueue(queries: SyncQueries, dsn: str, schema: str) -> None:
    """What was accepted is in the database as it was given; what was refused has left nothing."""
    expected = counts(dsn, schema)

    @scaled(60)
    @given(name=TEXTS | ODD, payload=st.none() | st.binary(max_size=50) | TEXTS, priority=NUMBERS | ODD, due=DUES | ODD)
    def check(name: Any, payload: Any, priority: Any, due: Any) -> None:
        answer = attempt(queries.enqueue, name, payload, priority, due)
        if isinstance(answer, ConfigurationError):
            return
        for job_id in answer:
            record = queries.get_job(job_id)
            assert record is not None
            if not isinstance(priority, list) and not isinstance(name, list):
                assert (name, payload, priority) == (record.entrypoint, record.payload, record.priority)
            is_later = record.run_at is not None and record.run_at > datetime.now(UTC)
            assert is_later == (record.status is JobStatus.DEFERRED)
            expected["deferred" if is_later else "queued"] += 1

    check()
    assert expected == counts(dsn, schema)


def test_cancel_requeue_and_read(queries: SyncQueries, dsn: str, schema: str) -> None:
    """Filters and ids that fit nothing change nothing."""
    queries.enqueue("bystander")
    before = counts(dsn, schema)
    ids = st.lists(NUMBERS.filter(lambda number: not 0 < number < 10_000), max_size=5)

    @scaled(60)
    @given(ids=ids | ODD, name=TEXTS, reason=st.none() | TEXTS, number=NUMBERS)
    def check(ids: Any, name: str, reason: str | None, number: int) -> None:
        number_is_known = 0 < number < 10_000
        wanted = [one for one in ids if not 0 < one < 10_000] if isinstance(ids, list) else ids
        attempt(queries.mark_job_as_cancelled, wanted, reason)
        attempt(queries.mark_job_as_cancelled, None, reason, entrypoint=name)
        attempt(queries.requeue, wanted)
        attempt(queries.requeue, entrypoint=name, error_type=reason, limit=number)
        attempt(queries.job_status, wanted)
        attempt(queries.list_jobs, entrypoint=name, limit=number, before=number)
        attempt(queries.list_jobs, status=name)
        attempt(queries.pause_schedule, name, reason)
        attempt(queries.run_schedule, name, reason)
        attempt(queries.remove_schedule, name, reason, force=True)
        assert number_is_known or attempt(queries.get_job, number) is None

    check()
    assert before == counts(dsn, schema)


@scaled(300)
@given(expression=TEXTS | st.text("0123456789*/,-LW#?@ ", max_size=25), zone=st.just("UTC") | TEXTS)
def test_cron_expressions(expression: str, zone: str) -> None:
    """Anything that is accepted fires later than any moment it is asked for."""
    schedule = attempt(CronSchedule.parse, expression, zone)
    if isinstance(schedule, CronSchedule):
        now = datetime(2026, 1, 1, tzinfo=UTC)
        assert schedule.next_fire(now) > now


@scaled(200)
@given(name=TEXTS | ODD, rate=NUMBERS | ODD, limit=NUMBERS | ODD, timeout=DUES | NUMBERS | ODD, attempts=NUMBERS | ODD)
def test_registration(name: Any, rate: Any, limit: Any, timeout: Any, attempts: Any) -> None:
    """An entrypoint is registered with these options, or not at all."""
    app = PgQueuer("dbname=nowhere")
    options = {"concurrency_limit": limit, "timeout": timeout, "max_attempts": attempts, "requests_per_second": rate}
    register = attempt(app.entrypoint, name, **options)
    if not isinstance(register, ConfigurationError):
        register(lambda job: None)
        assert [name] == list(app._registry.entrypoints)


@scaled(200)
@given(schema=TEXTS | ODD)
def test_schema_names(schema: Any) -> None:
    """A name that is accepted is quoted wherever it stands."""
    store = attempt(Store, schema)
    if isinstance(store, Store):
        quoted = sql.Identifier(schema).as_string(None)
        assert f"from {quoted}.queued q" in store.plain_sql("list_jobs").replace("%%", "%")

"""The SQL function ``enqueue``, given anything: it refuses what ``Queries.enqueue`` refuses, with an error that names
the argument, and what it has stored can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import errors, sql

from pgq_anyio import ConfigurationError, JobId, JobStatus, SyncQueries
from pgq_anyio._client._arguments import new_jobs
from tests.fuzz.test_functions import attempt, counts
from tests.fuzz.values import ENDS, NUMBERS, TEXTS
from tests.profiles import scaled

pytestmark = pytest.mark.heavy

#: Call the function; the id of the new job, or the server's error.
Call = Callable[[Any, Any, Any, Any], Any]

SENDABLE = TEXTS.filter(lambda text: "\x00" not in text and "\ud800" not in text)
AMOUNTS = st.sampled_from([n for n in ENDS if abs(n) < 2**63]) | st.integers(-300_000, 300_000)
#: As texts, for Python has no such: without end, longer than any date, with parts of opposite signs.
INTERVALS = st.sampled_from(["infinity", "-infinity", "1 mon -30 days", "7971 years", "7974 years"]) | st.builds(
    "{} years {} mons {} days {} secs".format, AMOUNTS, st.just(0) | AMOUNTS, st.just(0) | AMOUNTS, AMOUNTS
)


@pytest.fixture
def call(dsn: str, schema: str) -> Iterator[Call]:
    query = sql.SQL("select {}.enqueue(%s, %s, {}, %s::interval)").format(sql.Identifier(schema), sql.Placeholder())
    with psycopg.connect(dsn, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:

        def call(*arguments: Any) -> Any:
            try:
                row = connection.execute(query, arguments).fetchone()
            except psycopg.Error as error:
                return error
            assert row is not None
            return row[0]

        yield call


def test_it_refuses_what_python_refuses(call: Call, dsn: str, schema: str) -> None:
    """And stores the rest as it was given."""
    expected = counts(dsn, schema)
    with SyncQueries(dsn, schema=schema) as queries:

        @scaled(100)
        @given(
            name=SENDABLE | st.none(),
            payload=st.none() | st.binary(max_size=50),
            priority=NUMBERS,
            due=st.none() | st.timedeltas() | st.sampled_from([timedelta.min, timedelta.max, timedelta(0)]),
        )
        def check(name: str, payload: bytes | None, priority: int, due: timedelta | None) -> None:
            answer = call(name, payload, priority, due)
            if isinstance(attempt(new_jobs, name, payload, priority, due), ConfigurationError):
                assert isinstance(answer, psycopg.Error), (name, priority, due)
                if isinstance(answer, errors.InvalidParameterValue):
                    assert str(answer).startswith("enqueue: "), answer
                else:  # the type of the priority has its bounds
                    assert "enqueue(" in str(answer), answer
                return
            assert isinstance(answer, int), answer
            record = queries.get_job(JobId(answer))
            assert record is not None
            assert (name, payload, priority) == (record.entrypoint, record.payload, record.priority)
            is_later = due is not None and due > timedelta(0)
            assert is_later == (record.status is JobStatus.DEFERRED)
            expected["deferred" if is_later else "queued"] += 1

        check()
    assert expected == counts(dsn, schema)


def test_any_interval(call: Call, dsn: str, schema: str) -> None:
    """Whatever its parts are, it is refused with its name, or ends before the year 9999."""
    with SyncQueries(dsn, schema=schema) as queries:

        @scaled(150)
        @given(interval=INTERVALS)
        @example(interval="10000 years")
        @example(interval="-2147483647 mons")
        def check(interval: str) -> None:
            answer = call("fetch", None, 0, interval)
            if isinstance(answer, errors.InvalidParameterValue):
                assert str(answer).startswith("enqueue: execute_after is "), answer
            elif isinstance(answer, psycopg.Error):  # no interval to PostgreSQL: the function was not called
                assert answer.diag.context is None, answer
            else:
                record = queries.get_job(JobId(answer))
                assert record is not None
                assert record.run_at is None or record.run_at < datetime(9999, 1, 1, tzinfo=UTC)

        check()
        assert queries.list_jobs()

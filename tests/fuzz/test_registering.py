"""What is written down when a program is imported, given anything: it is registered as it was given, or refused with an
error that names the option. No database is needed.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgq_anyio import (
    ConfigurationError,
    EntrypointExecutor,
    JobId,
    PgQueuer,
    ProcessExecutor,
    PsycopgDriver,
    Queries,
    RetryWithBackoffEntrypointExecutor,
    SyncQueries,
    ThreadExecutor,
)
from tests.fuzz.test_functions import attempt
from tests.fuzz.test_options import DURATIONS
from tests.fuzz.values import HOSTILE, NUMBERS, ODD, TEXTS
from tests.profiles import scaled

pytestmark = pytest.mark.heavy

#: Larger than any float, too.
ANYTHING = ODD | NUMBERS | TEXTS | st.sampled_from([10**400, -(10**400)])
FLAGS = st.booleans() | ANYTHING
EXPRESSIONS = st.sampled_from(["* * * * *", "@hourly", "*/5 * * * * *", "0 0 31 2 *"]) | ANYTHING
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "../../etc/passwd", "/etc/passwd", "posixrules", "."]) | ANYTHING
#: What a factory itself raises is its own error; it may give anything.
FACTORIES = st.sampled_from([EntrypointExecutor, ThreadExecutor, ProcessExecutor, bool, repr, type, id]) | ANYTHING


async def handle(_: Any) -> None:
    """Do nothing."""


@scaled(300)
@given(name=ANYTHING, expression=EXPRESSIONS, timezone=ZONES, missed=st.sampled_from(["skip", "catch_up"]) | ANYTHING)
def test_schedules(name: Any, expression: Any, timezone: Any, missed: Any) -> None:
    app = PgQueuer("dbname=nowhere")
    register = attempt(app.schedule, name, expression, timezone=timezone, missed=missed)
    if isinstance(register, ConfigurationError):
        assert {} == app._registry.schedules
        return
    register(handle)
    ((key, entry),) = app._registry.schedules.items()
    assert (name, " ".join(expression.split())) == key
    assert (timezone, missed) == (entry.cron.timezone, entry.missed)


@scaled(300)
@given(
    options=st.fixed_dictionaries(
        {},
        optional={
            "retry_timer": DURATIONS,
            "max_crashes": ANYTHING,
            "serialized_dispatch": FLAGS,
            "own_task": FLAGS,
            "executor_factory": FACTORIES,
            "concurrency_limit": ANYTHING,
            "requests_per_second": ANYTHING,
        },
    )
)
def test_options_of_an_entrypoint(options: dict[str, Any]) -> None:
    app = PgQueuer("dbname=nowhere")
    refusal = attempt(lambda: app.entrypoint("fetch", **options)(handle))
    if isinstance(refusal, ConfigurationError):
        assert any(option in str(refusal) for option in options) or "Executor" in str(refusal), refusal
        assert {} == app._registry.entrypoints
        return
    (entrypoint,) = app._registry.entrypoints.values()
    assert 0 < app._registry.shortest_lease(30.0) <= 30.0
    assert 1 <= entrypoint.max_crashes < 2**31
    assert all(isinstance(flag, bool) for flag in (entrypoint.own_task, entrypoint.limits.serialized))


@scaled(200)
@given(
    options=st.fixed_dictionaries(
        {},
        optional={
            "max_attempts": ANYTHING,
            "initial_delay": DURATIONS,
            "backoff_multiplier": ANYTHING | st.floats(),
            "max_delay": DURATIONS,
            "max_time": DURATIONS,
            "jitter": FLAGS,
        },
    )
)
def test_options_of_the_retry_loop(options: dict[str, Any]) -> None:
    app = PgQueuer("dbname=nowhere")
    factory = partial(RetryWithBackoffEntrypointExecutor, **options)
    refusal = attempt(lambda: app.entrypoint("fetch", executor_factory=factory)(handle))
    if isinstance(refusal, ConfigurationError):
        names = [*options, "multiplier"]
        assert any(name in str(refusal) for name in names), refusal
        return
    executor = app._registry.entrypoints["fetch"].executor
    assert isinstance(executor, RetryWithBackoffEntrypointExecutor)
    assert all(math.isfinite(executor._policy.delay(number)) for number in (1, 2, 2**31 - 1))


@scaled(300)
@given(
    conninfo=st.sampled_from(["", "dbname=nowhere", "postgresql://h/d", *HOSTILE]) | ANYTHING,
    options=st.fixed_dictionaries(
        {},
        optional={
            "max_size": ANYTHING,
            "direct_conninfo": ANYTHING | st.just("host=h"),
            "pooled": FLAGS,
            "prepare": FLAGS,
        },
    ),
)
def test_drivers(conninfo: Any, options: dict[str, Any]) -> None:
    """Whatever is accepted can be shown, and used by the producers."""
    driver = attempt(PsycopgDriver, conninfo, **options)
    if isinstance(driver, PsycopgDriver):
        assert repr(driver)
        assert 1 <= driver._pool.max_size
        assert all(flag in (None, True, False) for flag in (driver.pooled, driver.prepare))
    attempt(SyncQueries, conninfo)


@pytest.mark.anyio
@pytest.mark.parametrize("given", [0, 1, "", "dbname=x", b"", object(), [None], psycopg.Connection, len])
async def test_connections_that_are_none(given: Any) -> None:
    """They are refused by name, and nothing is connected to."""
    for call in (
        partial(SyncQueries("host=/nowhere").enqueue, "fetch"),
        partial(SyncQueries("host=/nowhere").requeue, [JobId(1)]),
        partial(SyncQueries("host=/nowhere").mark_job_as_cancelled, [JobId(1)]),
    ):
        with pytest.raises(ConfigurationError, match="psycopg"):
            call(connection=given)
    queries = Queries(PsycopgDriver("host=/nowhere"))
    for action in (
        partial(queries.enqueue, "fetch"),
        partial(queries.requeue, [JobId(1)]),
        partial(queries.mark_job_as_cancelled, [JobId(1)]),
    ):
        with pytest.raises(ConfigurationError, match="psycopg"):
            await action(connection=given)

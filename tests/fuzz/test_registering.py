"""What is written down when a program is imported, given anything: it is registered as it was given, or refused with an
error that names the option. No database is needed.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import AsyncMock, Mock

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgq_anyio import (
    AbstractEntrypointExecutor,
    ConfigurationError,
    EntrypointExecutor,
    JobId,
    PgQueuer,
    ProcessExecutor,
    PsycopgDriver,
    Queries,
    RetryPolicy,
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
POLICIES = st.sampled_from([RetryPolicy(jitter=False), RetryPolicy, {"max_delay": 1.0}]) | ANYTHING
#: A DSN that was passed by mistake may hold a password.
SOURCES = st.sampled_from([b"password=hunter2", ["password=hunter2"], ("h", "hunter2"), PsycopgDriver, len]) | ANYTHING


async def handle(_: Any) -> None:
    """Do nothing."""


class Handler:
    """Handlers that are objects and methods."""

    async def __call__(self, _: Any) -> None:
        """Do nothing."""

    def method(self, _: Any, context: Any) -> None:
        """Do nothing."""


class Generator:
    """A handler that runs nothing."""

    def __call__(self, job: Any) -> Iterator[None]:
        yield


def generate(job: Any) -> Iterator[None]:
    """As one that awaits by ``yield``, which was the way once."""
    yield


async def generate_async(job: Any) -> AsyncIterator[None]:
    """As a fixture, or a lifespan."""
    yield


@asynccontextmanager
async def open_lifespan() -> AsyncIterator[None]:
    """What is called too early can be called once more: it serves as a decorator, too."""
    yield


#: What can be called with a job, or with a job and its context.
HANDLERS = (
    handle,
    Handler(),
    Handler().method,
    partial(handle),
    partial(Handler.method, Handler()),
    staticmethod(handle),
    lambda *_: None,
    lambda _, option=1: option,
    print,
    dict,
    Mock(),
    AsyncMock(),
)
#: What cannot.
NO_HANDLERS = st.sampled_from(
    [
        Handler,
        generate,
        generate_async,
        partial(generate_async),
        Generator(),
        classmethod(handle),
        property(handle),
        (handle,),
        {"fetch": handle},
        ...,
        NotImplemented,
        object(),
        math,
        partial(handle, None),
        lambda: None,
        lambda **_: None,
        lambda _, *, option: option,
        lambda _, context, option: (context, option),
    ]
)


def decorate(app: PgQueuer, kind: str, handler: Any, **options: Any) -> Any:
    """Use the decorator of an entrypoint or of a schedule."""
    if kind == "entrypoint":
        return app.entrypoint("fetch", **options)(handler)
    return app.schedule("fetch", "@hourly", **options)(handler)


@pytest.mark.parametrize("kind", ["entrypoint", "schedule"])
@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: type(handler).__name__)
def test_handlers(kind: str, handler: Any) -> None:
    """Whatever can be called with a job is registered, and given back as it is."""
    app = PgQueuer("dbname=nowhere")
    assert handler is decorate(app, kind, handler)
    assert (kind == "entrypoint", kind == "schedule") == (
        bool(app._registry.entrypoints),
        bool(app._registry.schedules),
    )


@pytest.mark.parametrize("kind", ["entrypoint", "schedule"])
@scaled(100)
@given(handler=NO_HANDLERS | ANYTHING)
def test_handlers_that_are_none(kind: str, handler: Any) -> None:
    """They are refused with the name that they would have had, and the name is free."""
    app = PgQueuer("dbname=nowhere")
    refusal = attempt(decorate, app, kind, handler)
    assert isinstance(refusal, ConfigurationError)
    assert "'fetch'" in str(refusal)
    assert ({}, {}) == (app._registry.entrypoints, app._registry.schedules)
    decorate(app, kind, handle)


@scaled(150)
@given(factory=FACTORIES)
def test_executors_of_a_schedule(factory: Any) -> None:
    """A schedule has the executor that its factory gives, or is not registered."""
    app = PgQueuer("dbname=nowhere")
    refusal = attempt(decorate, app, "schedule", handle, executor_factory=factory)
    if isinstance(refusal, ConfigurationError):
        assert "executor_factory" in str(refusal) or "Executor" in str(refusal), refusal
        assert {} == app._registry.schedules
        return
    (entry,) = app._registry.schedules.values()
    assert isinstance(entry.executor, AbstractEntrypointExecutor)
    assert factory in (None, type(entry.executor))


async def await_lifespan() -> AsyncExitStack:
    """As one that has no ``yield``."""
    return AsyncExitStack()


LIFESPANS = (open_lifespan, nullcontext, AsyncExitStack, partial(nullcontext, 1), lambda *more: nullcontext())
#: What can be called, and is seen not to give an async context manager when it is.
NO_LIFESPANS = (handle, generate, generate_async, await_lifespan, partial(generate_async, 1))
CALLED_LIFESPANS = (open_lifespan(), nullcontext(), AsyncExitStack())


@scaled(150)
@given(lifespan=st.sampled_from([*LIFESPANS, *NO_LIFESPANS, *CALLED_LIFESPANS]) | ANYTHING)
def test_lifespans(lifespan: Any) -> None:
    """A lifespan is something to call without arguments that has not been called."""
    app = attempt(PgQueuer, "dbname=nowhere", lifespan=lifespan)
    if lifespan is None or any(lifespan is one for one in LIFESPANS):
        assert isinstance(app, PgQueuer)
    elif not callable(lifespan) or any(lifespan is one for one in (*NO_LIFESPANS, *CALLED_LIFESPANS)):
        assert isinstance(app, ConfigurationError)
    if isinstance(app, ConfigurationError):
        assert str(app).startswith("lifespan must be a function")


@scaled(150)
@given(source=SOURCES)
def test_sources(source: Any) -> None:
    """What is no source is refused by its type and never shown; what is a text is read when it is needed."""
    takers: list[Any] = [Queries]
    takers += [] if isinstance(source, str) else [SyncQueries, PsycopgDriver]
    takers += [] if source is None or isinstance(source, str) else [PgQueuer]
    for taker in takers:
        refusal = attempt(taker, source)
        assert isinstance(refusal, ConfigurationError), taker
        assert type(source).__name__ in str(refusal)
        assert "hunter2" not in str(refusal)


@pytest.mark.anyio
async def test_texts_that_are_no_source() -> None:
    """An app says so when it is run, in words of its own."""
    for source in (*HOSTILE, "dbname=prod\x00uction"):
        with pytest.raises(ConfigurationError, match=r"^the app's DSN "):
            await PgQueuer(source).run()
    with pytest.raises(ConfigurationError) as refusal:
        Queries("postgresql://u:hunter2@h/d")  # type: ignore[arg-type]
    assert "hunter2" not in str(refusal.value)


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
            "retry_policy": POLICIES,
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
    assert isinstance(entrypoint.retry_policy, RetryPolicy)
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

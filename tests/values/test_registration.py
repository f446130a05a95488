"""What ``entrypoint`` and ``schedule`` refuse, at once and by name: nothing is registered then."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from pgq_anyio import ConfigurationError, Job, PgQueuer, ProcessExecutor

pytestmark = pytest.mark.promise(22)


async def handler(job: Job) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("timers", "expected"),
    [
        ([], 30.0),
        ([None, None], 30.0),
        ([None, 10, 20], 10.0),
        ([timedelta(seconds=4.5), 10], 4.5),
        ([60, 31], 30.0),
    ],
)
def test_the_shortest_sign_of_life_is_the_lease(timers: list[Any], expected: float) -> None:
    """Of the worker's own and all ``retry_timer``: none can make it longer."""
    app = PgQueuer("")
    for number, timer in enumerate(timers):
        app.entrypoint(f"fetch {number}", retry_timer=timer)(handler)
    assert expected == app._registry.shortest_lease(30.0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("retry_timer", v) for v in (-1, 0, 1.9, timedelta(seconds=1), True, "5", math.nan, math.inf)],
        *[("timeout", v) for v in (-1, 0, timedelta(0), True, "5", math.nan, math.inf, 10**11)],
        *[("max_attempts", v) for v in (-1, 0, 1.0, True, "5", None, math.inf, 2**31)],
        *[("max_crashes", v) for v in (-1, 0, 1.0, True, "5", None, math.nan, 2**31)],
        *[("retry_policy", v) for v in (5, "none", True)],
        *[("own_task", v) for v in (1, "yes", None)],
        *[("executor_factory", v) for v in (5, "process")],
    ],
)
def test_bad_options(option: str, value: Any) -> None:
    """Negative, not a number, a bool, or of another type: the message names the option. It is a ``ValueError``."""
    app = PgQueuer("")
    with pytest.raises(ConfigurationError, match=option) as error:
        app.entrypoint("fetch", **{option: value})(handler)
    assert isinstance(error.value, ValueError)
    assert {} == app._registry.entrypoints


def test_an_unknown_option() -> None:
    """Python names it."""
    app = PgQueuer("")
    with pytest.raises(TypeError, match="concurency_limit"):
        app.entrypoint("fetch", concurency_limit=5)  # type: ignore[call-arg]
    assert {} == app._registry.entrypoints


@pytest.mark.parametrize("name", ["", "x" * 501, "a\x00b", "\ud800", 5, None, b"fetch"])
def test_names_that_cannot_be_stored(name: Any) -> None:
    """They are refused before the handler is looked at."""
    with pytest.raises(ConfigurationError, match="name of an entrypoint"):
        PgQueuer("").entrypoint(name)


def test_a_name_that_is_taken() -> None:
    """The first handler stays, with its options."""
    app = PgQueuer("")
    app.entrypoint("fetch", timeout=3)(handler)
    with pytest.raises(RuntimeError, match="'fetch' is registered already"):

        @app.entrypoint("fetch", timeout=5)
        async def fetch(job: Job) -> None:
            """Never called."""

    app.entrypoint("fetch too")(handler)
    assert [("fetch", 3.0), ("fetch too", None)] == [(e.name, e.timeout) for e in app._registry.entrypoints.values()]


def test_handlers_that_nobody_could_call() -> None:
    """They take the job, or the job and its context; a process takes no context."""

    def nothing() -> None: ...

    def three(job: Any, context: Any, more: Any) -> None: ...

    def keyword(job: Any, *, more: Any) -> None: ...

    def context(job: Any, context: Any) -> None: ...

    app = PgQueuer("")
    for function, message in ((nothing, "must take the job"), (three, "must take the job"), (keyword, "'more'")):
        with pytest.raises(ConfigurationError, match=message):
            app.entrypoint("fetch")(function)
    with pytest.raises(ConfigurationError, match="must be a function"):
        app.entrypoint("fetch")("fetch")  # type: ignore[type-var]
    with pytest.raises(ConfigurationError, match="takes a context"):
        app.entrypoint("fetch", executor_factory=ProcessExecutor)(context)
    assert {} == app._registry.entrypoints


@pytest.mark.promise(41)
def test_a_schedule_that_is_taken() -> None:
    """Name and expression, however the fields are spaced; another expression of the name, or another name, is free."""
    app = PgQueuer("")

    async def report(schedule: Any) -> None: ...

    app.schedule("report", "*/5 * * * *")(report)
    with pytest.raises(RuntimeError, match=r"'report' is registered with '\*/5 \* \* \* \*' already"):
        app.schedule("report", "*/5  *  * * *", timezone="Europe/Berlin")(report)
    app.schedule("report", "@hourly")(report)
    app.schedule("report too", "*/5 * * * *")(report)
    assert ["UTC"] * 3 == [entry.cron.timezone for entry in app._registry.schedules.values()]


@pytest.mark.promise(41)
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"expression": "61 * * * *"}, "61"),
        ({"expression": "* * * *"}, "4 fields"),
        ({"timezone": "Europe/Nowhere"}, "Europe/Nowhere"),
        ({"missed": "never"}, "missed must be"),
    ],
)
def test_schedules_that_could_never_run(options: dict[str, str], told: str) -> None:
    """The message names what is wrong, and nothing is registered."""
    app = PgQueuer("")
    with pytest.raises(ConfigurationError, match=told):
        app.schedule("report", **{"expression": "* * * * *", **options})(handler)  # type: ignore[arg-type]
    assert {} == app._registry.schedules

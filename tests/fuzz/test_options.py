"""Options that durations, counts and policies go into, given anything: a clear error that names one, or values that can
be computed with. No database is needed to refuse them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgq_anyio import ConfigurationError, Job, PgQueuer, Retry, RetryPolicy, Snooze
from pgq_anyio.testing import run_job, temporary_schema
from tests.fuzz.test_functions import attempt
from tests.fuzz.values import DUES, HOSTILE, NUMBERS, ODD, TEXTS
from tests.profiles import scaled

pytestmark = pytest.mark.heavy

DURATIONS = (
    st.sampled_from([math.nan, math.inf, -math.inf, -1.0, -0.0, 0, 1e-300, 5e-324, 1e300])
    | NUMBERS
    | DUES
    | ODD
    | TEXTS
)
FLAWED = ODD | NUMBERS | TEXTS | st.sampled_from(["True", "no", bool, 10**400])
CLASS = st.sampled_from([BaseException, ValueError, KeyError, KeyboardInterrupt, OSError])


class Named(NamedTuple):
    """A tuple that ``subgroup`` of an exception group refuses."""

    error: type[BaseException]


#: Also what ``except`` or ``isinstance`` would take, or nearly.
CLASSES = (
    st.lists(CLASS, max_size=3).map(tuple)
    | st.lists(CLASS, max_size=2)
    | CLASS
    | st.just(Named(ValueError))
    | st.sampled_from([ValueError(), (ValueError(),), (ValueError, int), (ValueError, (KeyError,)), ("ValueError",)])
    | st.sampled_from([ValueError | KeyError, (list[int],), (None,), {ValueError}, {ValueError: None}])
    | FLAWED
)
#: Options of ``run()`` whose value no one else has checked before.
OPTIONS = [name for name in inspect.signature(PgQueuer.run).parameters if name not in ("self", "task_status")]


@pytest.mark.anyio
async def test_options_of_run() -> None:
    """Each bad value is refused with the name of its option, before anything is connected to."""
    app = PgQueuer("host=/nowhere")
    accepted = {name: inspect.signature(PgQueuer.run).parameters[name].default for name in OPTIONS}
    refused = 0
    for name in OPTIONS:
        for value in (math.nan, -1, "'; drop table queued; --", "\x00", 10**30, b"", [None], [10**6], object()):
            with pytest.raises(ConfigurationError) as caught:
                await app.run(**{**accepted, name: value})
            assert name in str(caught.value), f"{name}={value!r}"
            refused += 1
    assert 9 * len(OPTIONS) == refused


@scaled(200)
@given(
    initial=DURATIONS, multiplier=NUMBERS | st.floats() | ODD, longest=DURATIONS, jitter=st.booleans(), number=NUMBERS
)
def test_retry_policy(initial: Any, multiplier: Any, longest: Any, jitter: bool, number: int) -> None:
    """Every pause of a policy that was accepted is finite, and not longer than its longest."""
    policy = attempt(RetryPolicy, initial_delay=initial, multiplier=multiplier, max_delay=longest, jitter=jitter)
    if isinstance(policy, RetryPolicy):
        for attempts in (1, 2, 64, 2**31 - 1, max(1, abs(number))):
            assert 0.0 <= policy.delay(attempts) <= policy.max_delay


@pytest.mark.parametrize("name", ["timeout", "max_attempts", "concurrency_limit", "requests_per_second", "own_task"])
def test_numbers_that_cannot_be_written(name: str) -> None:
    """Python writes no whole number of more than 4300 digits; an error message is no place to find out."""
    options: Any = {name: -(10**5000)}
    with pytest.raises(ConfigurationError, match=rf"^{name} must be"):
        PgQueuer("dbname=nowhere").entrypoint("fetch", **options)


@scaled(200)
@given(jitter=st.booleans() | FLAWED, classes=st.just((ValueError,)) | CLASSES)
def test_jitter_and_errors_of_a_retry_policy(jitter: Any, classes: Any) -> None:
    """Only ``True``, ``False`` and a tuple of exception classes are accepted, and any error can be held against it."""
    policy = attempt(RetryPolicy, jitter=jitter, retry_on=classes)
    is_tuple = isinstance(classes, tuple) and all(
        isinstance(one, type) and issubclass(one, BaseException) for one in classes
    )
    assert isinstance(policy, RetryPolicy) == (isinstance(jitter, bool) and is_tuple)
    if isinstance(policy, ConfigurationError):
        assert str(policy).startswith("retry_on" if isinstance(jitter, bool) else "jitter")
        return
    for error in (ValueError(), KeyboardInterrupt()):
        assert isinstance(error, classes) == policy.retries(error) == policy.retries(BaseExceptionGroup("", [error]))


@scaled(200)
@given(delay=DURATIONS, make=st.sampled_from([Retry, Snooze]))
def test_delays_of_outcomes(delay: Any, make: Callable[..., Retry | Snooze]) -> None:
    outcome = attempt(make, delay)
    if not isinstance(outcome, ConfigurationError) and outcome.delay is not None:
        assert 0.0 <= outcome.delay < 101 * 366 * 86400.0


@pytest.mark.anyio
@pytest.mark.parametrize("name", [*HOSTILE, None, 7, b"fetch"], ids=lambda name: ascii(name)[:20])
async def test_running_a_job_by_any_name(name: Any) -> None:
    """A name that is not registered is a ``LookupError`` which shows it; one that is runs with what it was given."""
    app = PgQueuer("host=/nowhere")
    seen: list[Job] = []
    with pytest.raises(LookupError, match="no entrypoint"):
        await run_job(app, name)
    register = attempt(app.entrypoint, name)
    if not isinstance(register, ConfigurationError):

        async def handler(job: Job) -> None:
            seen.append(job)

        register(handler)
        await run_job(app, name, b"\x00", priority=-(2**31), attempt=2**31 - 1)
        (job,) = seen
        assert (name, b"\x00", -(2**31), 2**31 - 1) == (job.entrypoint, job.payload, job.priority, job.attempt)


@pytest.mark.parametrize("name", ["\x00", "a\x00b", "x" * 10_000, "\ud800", 7, b"x"], ids=lambda name: ascii(name)[:20])
def test_names_that_no_schema_can_have(name: Any) -> None:
    """They are refused before anything is connected to."""
    with pytest.raises(ConfigurationError), temporary_schema("host=/nowhere", name):
        pass

"""Retries inside one run."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import anyio
import pytest

from pgq_anyio import (
    Cancel,
    ConfigurationError,
    Context,
    Job,
    PgQueuer,
    PsycopgDriver,
    Queries,
    RetryWithBackoffEntrypointExecutor,
    Schedule,
)
from pgq_anyio.testing import run_job, running_worker

pytestmark = [pytest.mark.anyio, pytest.mark.promise(30)]

QUICK = partial(RetryWithBackoffEntrypointExecutor, initial_delay=0.001)
UVLOOP = ("asyncio", {"use_uvloop": True})
#: Its timers and its clock count whole milliseconds (in seconds).
UVLOOP_STEP = 0.001


@pytest.mark.parametrize("failures", [0, 1, 4])
@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_k_failures_then_success_are_k_plus_one_calls(failures: int, kind: str) -> None:
    app = PgQueuer()
    calls: list[int] = []

    def call(job: Job) -> None:
        calls.append(1)
        if len(calls) <= failures:
            raise ConnectionError("not yet")

    async def call_async(job: Job) -> None:
        call(job)

    app.entrypoint("fetch", executor_factory=QUICK)(call_async if kind == "async" else call)
    await run_job(app, "fetch")
    assert failures + 1 == len(calls)


async def test_always_failing_is_five_calls_and_the_last_cause() -> None:
    app = PgQueuer()
    calls: list[int] = []

    @app.entrypoint("fetch", executor_factory=QUICK)
    async def fetch(job: Job) -> None:
        calls.append(1)
        raise ConnectionError(f"call {len(calls)}")

    with pytest.raises(ConnectionError, match="call 5") as caught:
        await run_job(app, "fetch")
    assert 5 == len(calls)
    assert ["the handler was called 5 times"] == caught.value.__notes__


async def test_pauses_grow_are_capped_and_jittered(anyio_backend: object) -> None:
    app = PgQueuer()
    times: list[float] = []
    factory = partial(
        RetryWithBackoffEntrypointExecutor, max_attempts=6, initial_delay=0.02, backoff_multiplier=3, max_delay=0.1
    )

    @app.entrypoint("fetch", executor_factory=factory)
    async def fetch(job: Job) -> None:
        times.append(anyio.current_time())
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await run_job(app, "fetch")
    pauses = [after - before for before, after in pairwise(times)]
    step = UVLOOP_STEP if anyio_backend == UVLOOP else 0
    for pause, nominal in zip(pauses, (0.02, 0.06, 0.1, 0.1, 0.1), strict=True):
        assert nominal / 2 - step <= pause < nominal + 0.5


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What executors have paused for (in seconds), by a clock that nothing else moves on."""
    asked: list[float] = []

    async def pause(context: Context, delay: float) -> None:
        asked.append(delay)

    monkeypatch.setattr(Context, "pause", pause)
    clock = SimpleNamespace(current_time=lambda: 1000.0 + sum(asked))
    monkeypatch.setattr("pgq_anyio._executors._backoff.anyio", clock)
    return asked


async def test_the_defaults(pauses: list[float]) -> None:
    """0.1 s, twice as long each time, at most 10 s, jittered, and no call later than 5 min after the first."""
    app = PgQueuer()

    @app.entrypoint("fetch", executor_factory=partial(RetryWithBackoffEntrypointExecutor, max_attempts=1000))
    async def fetch(job: Job) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await run_job(app, "fetch")
    nominal = [min(10.0, 0.1 * 2**number) for number in range(len(pauses))]
    shares = [pause / most for pause, most in zip(pauses, nominal, strict=True)]
    assert 0.5 <= min(shares) < 0.6
    assert 0.9 < max(shares) <= 1.0
    assert 300 - 10 < sum(pauses) <= 300


async def test_the_total_time_is_bounded(pauses: list[float]) -> None:
    app = PgQueuer()
    calls: list[int] = []
    factory = partial(RetryWithBackoffEntrypointExecutor, initial_delay=0.05, jitter=False, max_time=0.12)

    @app.entrypoint("fetch", executor_factory=factory)
    async def fetch(job: Job) -> None:
        calls.append(1)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await run_job(app, "fetch")
    assert [0.05] == pauses  # the next one would end 0.15 s after the first call
    assert 2 == len(calls)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_scheduled_run_is_called_again(dsn: str, schema: str, kind: str) -> None:
    """Schedules take the same executor; the occurrence is run once, by as many calls as it needs."""
    app = PgQueuer(dsn, schema=schema)
    calls: list[Schedule] = []

    def call(schedule: Schedule) -> None:
        calls.append(schedule)
        if len(calls) < 3:
            raise ConnectionError

    async def call_async(schedule: Schedule) -> None:
        call(schedule)

    app.schedule("report", "0 0 1 1 *", executor_factory=QUICK)(call_async if kind == "async" else call)
    async with PsycopgDriver(dsn) as driver:
        queries = Queries(driver, schema=schema)
        async with running_worker(app):
            await queries.run_schedule("report")
            with anyio.fail_after(10):
                while (record := (await queries.schedules())[0]).last_status is None:  # noqa: ASYNC110  (the database tells no event)
                    await anyio.sleep(0.01)
    assert 3 == len(calls)
    assert 1 == len({schedule.due_at for schedule in calls})
    assert "successful" == record.last_status


async def test_the_total_time_counts_what_calls_take(pauses: list[float]) -> None:
    """Not the pauses alone: a call that uses it up is the last one."""
    app = PgQueuer()
    factory = partial(RetryWithBackoffEntrypointExecutor, initial_delay=0.05, jitter=False, max_time=10.0)
    calls: list[int] = []

    @app.entrypoint("fetch", executor_factory=factory)
    async def fetch(job: Job) -> None:
        calls.append(1)
        pauses.append(4.96)  # what this call took, by the clock that the pauses move on
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await run_job(app, "fetch")
    assert 2 == len(calls)


@pytest.mark.promise(26)
async def test_a_cancellation_ends_the_loop() -> None:
    app = PgQueuer()
    failed = anyio.Event()
    factory = partial(RetryWithBackoffEntrypointExecutor, initial_delay=60, max_delay=60)

    @app.entrypoint("fetch", executor_factory=factory)
    async def fetch(job: Job) -> None:
        failed.set()
        raise ConnectionError

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_job, app, "fetch")
            await failed.wait()
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()


@pytest.mark.promise(30)
@pytest.mark.parametrize("in_group", [False, True])
async def test_answers_of_the_handler_are_not_retried(in_group: bool) -> None:
    """Nor those that come out of a task group."""
    app = PgQueuer()
    calls: list[int] = []

    @app.entrypoint("fetch", executor_factory=QUICK)
    async def fetch(job: Job) -> None:
        calls.append(1)
        if not in_group:
            raise Cancel("no")
        async with anyio.create_task_group():
            raise Cancel("no")

    with pytest.raises(ExceptionGroup if in_group else Cancel):
        await run_job(app, "fetch")
    assert 1 == len(calls)


@pytest.mark.parametrize(
    "options",
    [{"max_attempts": 0}, {"max_time": 0}, {"initial_delay": -1}, {"backoff_multiplier": 0.5}, {"max_delay": "x"}],
)
def test_bad_options_are_refused_at_registration(options: dict[str, object]) -> None:
    app = PgQueuer()
    with pytest.raises(ConfigurationError):

        @app.entrypoint("fetch", executor_factory=partial(RetryWithBackoffEntrypointExecutor, **options))  # type: ignore[arg-type]  # the point of the test
        async def fetch(job: Job) -> None: ...

"""Ctrl-C and SIGTERM at any moment of a command that runs on an event loop."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator

import anyio
import anyio.lowlevel
import pytest

from pgq_anyio import PgQueuer
from pgq_anyio._cli.backends import Backend, BackendName, run_on
from pgq_anyio._cli.interrupts import NUMBERS, Interrupts
from tests.cli.processes import Commands
from tests.worker.fleet import Fleet

LOOPS = {
    "asyncio": Backend(BackendName.ASYNCIO, uvloop=False),
    "uvloop": Backend(BackendName.ASYNCIO, uvloop=True),
    "trio": Backend(BackendName.TRIO, uvloop=False),
}


@pytest.fixture(params=LOOPS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return LOOPS[request.param]


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """Those of the test runner are there again afterwards, whatever the test has done."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def press(number: signal.Signals, times: int = 1) -> None:
    for _ in range(times):
        signal.raise_signal(number)


async def press_at_the_end(number: signal.Signals, times: int) -> AsyncIterator[None]:
    """Left open: the loop closes it, while it closes itself."""
    try:
        yield
    finally:
        press(number, times)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("once", [False, True])
def test_while_it_runs(backend: Backend, number: signal.Signals, once: bool) -> None:
    """It is cancelled, may clean up in peace, and the interrupt is raised when the loop is gone."""
    seen: list[str] = []

    async def function() -> None:
        try:
            press(number)
            seen.append("went on")
            await anyio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            seen.append("cleaned up")

    interrupts = Interrupts(once=once)
    with pytest.raises(KeyboardInterrupt), interrupts.handled():
        run_on(backend, function, interrupts)
    assert seen == ["went on", "cleaned up"]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("once", [False, True])
def test_while_the_loop_closes(backend: Backend, number: signal.Signals, once: bool, times: int) -> None:
    """Nothing of the loop's own trouble is told instead."""
    opened = press_at_the_end(number, times)
    interrupts = Interrupts(once=once)
    with pytest.raises(KeyboardInterrupt), interrupts.handled():
        run_on(backend, opened.__anext__, interrupts)


@pytest.mark.parametrize("number", NUMBERS)
def test_when_it_is_over(backend: Backend, number: signal.Signals) -> None:
    """What comes after the loop is raised at once; and once only, if that was asked for."""
    interrupts = Interrupts(once=True)
    with interrupts.handled():
        run_on(backend, anyio.lowlevel.checkpoint, interrupts)
        with pytest.raises(KeyboardInterrupt):
            press(number)
        press(number, 3)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_second_one_ends_what_hangs(backend: Backend, number: signal.Signals) -> None:
    """Code that blocks the loop cannot be cancelled, but interrupted."""

    async def function() -> None:
        press(number)
        press(number)
        raise AssertionError("nothing was raised")

    interrupts = Interrupts()
    with pytest.raises(KeyboardInterrupt), interrupts.handled():
        run_on(backend, function, interrupts)


def test_errors_are_told(backend: Backend) -> None:
    """Also one that comes while what was interrupted cleans up."""

    async def function() -> None:
        try:
            press(signal.SIGINT)
            await anyio.sleep(60)
        finally:
            raise ZeroDivisionError

    interrupts = Interrupts()
    with pytest.raises(ZeroDivisionError), interrupts.handled():
        run_on(backend, function, interrupts)


def test_handlers_are_put_back() -> None:
    """Also one that ignores the signal, as in the background of a script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts = Interrupts()
    with interrupts.handled(), pytest.raises(KeyboardInterrupt):
        press(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.promise(35)
@pytest.mark.parametrize("number", NUMBERS)
def test_a_worker_gives_the_signals_back(dsn: str, schema: str, backend: Backend, number: signal.Signals) -> None:
    """What handled them before the worker does so again after it."""
    heard: list[int] = []
    signal.signal(number, lambda number, _: heard.append(number))

    async def function() -> None:
        app = PgQueuer(dsn, schema=schema)
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda *, task_status: app.run(signals=[number], task_status=task_status))
            press(number)
        press(number)
        await anyio.lowlevel.checkpoint()

    options = {"use_uvloop": backend.uvloop} if backend.name is BackendName.ASYNCIO else {}
    anyio.run(function, backend=backend.name.value, backend_options=options)
    assert heard == [number]


@pytest.mark.promise(35)
def test_while_the_app_closes(commands: Commands, fleet: Fleet, loop: list[str]) -> None:
    """After the worker has ended, a further signal cancels what the app's own code still waits for."""
    worker = commands.start_worker(fleet.schema, *loop, target="tests.cli.apps:left_open")
    worker.signal(signal.SIGINT)
    worker.wait_said("closing")
    worker.signal(signal.SIGINT)
    assert worker.wait() == 0
    said = worker.output.splitlines()
    assert any("closed at last" in line for line in said)
    assert said[-1].endswith("stopped")
    assert "Traceback" not in worker.output

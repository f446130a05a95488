"""Calls in child processes: results, errors, output, concurrency."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import anyio
import psutil
import pytest
import sniffio

from pgq_anyio import Job, JobId
from pgq_anyio._errors import ConfigurationError
from pgq_anyio._executors._process import ProcessDied, ProcessPool, RemoteError, _pool
from tests.executors import process_handlers
from tests.executors.processes import children, is_gone, wait_for_pid, wait_until

pytestmark = pytest.mark.anyio

H = "tests.executors.process_handlers:"


@pytest.fixture
async def pool(anyio_backend: object) -> AsyncIterator[ProcessPool]:
    async with ProcessPool(1) as pool:
        yield pool


async def test_returns_the_result(pool: ProcessPool) -> None:
    """Sync and async functions are called in another process, with the arguments given."""
    assert {"a": (1, None)} == await pool.run(H + "echo", ({"a": (1, None)},))
    assert os.getpid() != await pool.run(H + "pid")


@pytest.mark.promise(40, 49)
async def test_async_functions_run_on_the_backend_of_the_caller(pool: ProcessPool) -> None:
    """What runs in the worker's event loop runs in a process, too."""
    assert (sniffio.current_async_library(), 5) == await pool.run(H + "backend_name", (5,))


async def test_children_are_reused(pool: ProcessPool) -> None:
    """The next call finds the child warm, also after an exception."""
    first = await pool.run(H + "pid")
    with pytest.raises(process_handlers.PlainError):
        await pool.run(H + "fail", ("plain",))
    assert first == await pool.run(H + "pid")


@pytest.mark.promise(49)
async def test_exceptions_come_back_as_themselves(pool: ProcessPool) -> None:
    """Type and arguments survive, and the traceback of the child is the cause."""
    with pytest.raises(process_handlers.PlainError) as caught:
        await pool.run(H + "fail", ("plain",))
    assert ("plain", 1) == caught.value.args
    cause = str(caught.value.__cause__)
    assert "process_handlers.py" in cause
    assert "in fail" in cause
    assert "_child.py" not in cause


async def test_groups_keep_their_leaves(pool: ProcessPool) -> None:
    """An exception group comes back with its leaves."""
    with pytest.RaisesGroup(process_handlers.PlainError, ValueError):
        await pool.run(H + "fail", ("group",))


@pytest.mark.parametrize(
    ("kind", "type_name", "message"),
    [
        ("local", "tests.executors.process_handlers.fail.<locals>.LocalError", "local"),
        ("odd", "tests.executors.process_handlers.OddError", "odd 5"),
        ("exit", "SystemExit", "3"),
        ("interrupt", "KeyboardInterrupt", ""),
        ("cancelled", "asyncio.exceptions.CancelledError", "not ours"),
    ],
)
@pytest.mark.promise(32)
async def test_exceptions_that_cannot_be_raised_here(
    pool: ProcessPool, kind: str, type_name: str, message: str
) -> None:
    """What cannot be pickled, or would end or cancel the worker, becomes a RemoteError with its name and text."""
    first = await pool.run(H + "pid")
    with pytest.raises(RemoteError) as caught:
        await pool.run(H + "fail", (kind,))
    assert (type_name, message) == (caught.value.type_name, caught.value.message)
    assert "in fail" in str(caught.value.__cause__)
    assert first == await pool.run(H + "pid")


async def test_exception_whose_text_cannot_be_had(pool: ProcessPool) -> None:
    """An exception with a broken ``__str__`` comes back like any other."""
    with pytest.raises(process_handlers.DumbError):
        await pool.run(H + "fail", ("dumb",))


@pytest.mark.parametrize("target", ["tests.executors.no_such_module:f", H + "no_such_function"])
async def test_function_that_cannot_be_found(pool: ProcessPool, target: str) -> None:
    """An unknown target is an error of the call, and the child goes on."""
    with pytest.raises((ImportError, AttributeError), match="no_such"):
        await pool.run(target)
    assert 1 == await pool.run(H + "echo", (1,))


async def test_values_that_cannot_travel(pool: ProcessPool) -> None:
    """Arguments and results that cannot be pickled or read again are clear errors, and the child goes on."""
    first = await pool.run(H + "pid")
    with pytest.raises(TypeError, match=r"arguments of .*:echo cannot be sent"):
        await pool.run(H + "echo", (lambda: None,))
    with pytest.raises(ValueError, match="cannot be read"):
        await pool.run(H + "echo", (process_handlers.Unreadable(),))
    with pytest.raises(TypeError, match="returned a function, which cannot be sent back"):
        await pool.run(H + "unpicklable_result")
    with pytest.raises(TypeError, match=r"result of .*:unreadable_result cannot be read: cannot be read"):
        await pool.run(H + "unreadable_result")
    assert first == await pool.run(H + "pid")


async def test_large_values(pool: ProcessPool) -> None:
    """10 MB go there and back, more than a pipe holds."""
    payload = os.urandom(10_000_000)
    assert payload == await pool.run(H + "echo", (payload,))


@pytest.mark.parametrize(
    ("how", "exit_code", "signal_name"),
    [("exit", 7, None), ("SIGKILL", None, "SIGKILL"), ("SIGSEGV", None, "SIGSEGV"), ("SIGTERM", None, "SIGTERM")],
)
@pytest.mark.promise(32)
async def test_child_that_dies(pool: ProcessPool, how: str, exit_code: int | None, signal_name: str | None) -> None:
    """A child that ends under its handler is an error that says how, and the next call gets a new one."""
    with pytest.raises(ProcessDied) as caught:
        await pool.run(H + "die", (how,))
    assert (exit_code, signal_name) == (caught.value.exit_code, caught.value.signal_name)
    assert f"{H}die" in str(caught.value)
    assert str(signal_name or exit_code) in str(caught.value)
    assert 1 == await pool.run(H + "echo", (1,))


async def test_child_that_dies_while_idle(pool: ProcessPool) -> None:
    """Nobody notices that an idle child was killed: the call gets a new one."""
    first = await pool.run(H + "pid")
    assert isinstance(first, int)
    psutil.Process(first).kill()
    await wait_until(lambda: is_gone(first))
    second = await pool.run(H + "pid")
    assert first != second


async def test_child_that_closes_its_end(pool: ProcessPool) -> None:
    """A handler that closes descriptors which are not its own loses its process, and the call ends."""
    with anyio.fail_after(20), pytest.raises(ProcessDied, match="SIGKILL"):
        await pool.run(H + "close_everything")
    assert 1 == await pool.run(H + "echo", (1,))


async def test_child_that_cannot_start(pool: ProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that ends at once is an error, not an endless repetition."""
    monkeypatch.setattr("sys.executable", "/bin/false")
    with anyio.fail_after(20), pytest.raises(ProcessDied, match="exit code 1 before it could start the handler"):
        await pool.run(H + "pid")


def at_start(directory: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let every Python that starts from now on begin with this."""
    (directory / "sitecustomize.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(directory))


async def test_child_that_hangs_at_its_start(
    pool: ProcessPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ended, and the error names the handler; the next call gets one that is well."""
    before = children()
    with monkeypatch.context() as patch:
        patch.setattr(_pool, "READY_PATIENCE", 1)
        at_start(tmp_path, patch, "import time; time.sleep(3600)")
        with anyio.fail_after(20), pytest.raises(TimeoutError, match=f"{H}pid was not ready"):
            await pool.run(H + "pid")
    assert before == children()
    assert 1 == await pool.run(H + "echo", (1,))


@pytest.mark.parametrize("text", ["hi", "something is deprecated here"])
async def test_child_that_talks_at_its_start(
    pool: ProcessPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """What is printed before the child has its pipe for itself is not taken for the length of a message."""
    with monkeypatch.context() as patch:
        at_start(tmp_path, patch, f"print({text!r}, flush=True)")
        with anyio.fail_after(20), pytest.raises(RuntimeError, match=f"{H}pid sent something"):
            await pool.run(H + "pid")
    assert 1 == await pool.run(H + "echo", (1,))


async def test_output_passes_through(pool: ProcessPool, capfd: pytest.CaptureFixture[str]) -> None:
    """What a handler prints, in any way, goes to the parent's own streams; its standard input is empty."""
    assert "" == await pool.run(H + "talk")
    out, err = capfd.readouterr()
    assert ["from print", "from write", "from a program"] == out.splitlines()
    assert ["from stderr"] == err.splitlines()


async def test_calls_run_at_the_same_time(tmp_path: Path) -> None:
    """Four workers hold four handlers at once."""
    with anyio.fail_after(30):
        async with ProcessPool(4) as workers, anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(workers.run, H + "meet", (str(tmp_path), str(number), 4))


async def test_more_calls_than_workers() -> None:
    """50 calls at once on 4 workers: each gets its own answer, and there are never more children."""
    answers: dict[int, object] = {}
    pids: set[object] = set()

    async def call(number: int) -> None:
        answers[number] = await workers.run(H + "echo", (number,))
        pids.add(await workers.run(H + "pid"))

    async with ProcessPool(4) as workers, anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(call, number)
    assert {number: number for number in range(50)} == answers
    assert 1 <= len(pids) <= 4


async def test_a_call_that_waits_for_too_long(tmp_path: Path) -> None:
    """It says so once, and goes on waiting; a call that need not wait says nothing."""
    said: list[str] = []

    async def call(name: str) -> None:
        path = str(tmp_path / name)
        job = Job(JobId(1), "hold", path.encode(), 0, 1, 0, datetime.now(UTC))
        await worker.run(H + "hold_a_job", (job,), patience=0.01, on_impatient=lambda: said.append(name))

    async with ProcessPool(1) as worker, anyio.create_task_group() as tasks:
        tasks.start_soon(call, "first")
        await wait_for_pid(tmp_path / "first")
        tasks.start_soon(call, "second")
        await wait_until(lambda: bool(said))
        (tmp_path / "first.go").touch()
        (tmp_path / "second.go").touch()
    assert ["second"] == said
    assert (tmp_path / "second").exists()


async def test_overhead(pool: ProcessPool, figures: bool) -> None:
    """A call of a warm child starts nothing anew: below a millisecond, in the best of five rounds."""
    start = time.perf_counter()
    await pool.run(H + "pid")
    first = time.perf_counter() - start
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(100):
            await pool.run(H + "pid")
        rounds.append((time.perf_counter() - start) / 100)
    assert min(rounds) < (0.001 if figures else first / 4)


async def test_forks_of_handlers_stay_out(pool: ProcessPool) -> None:
    """A process that a handler forks never returns into the child's loop; its exit code is the usual one."""
    first = await pool.run(H + "pid")
    assert 0 == await pool.run(H + "fork_and_return")
    assert 4 == await pool.run(H + "fork_and_exit", (4,))
    assert first == await pool.run(H + "pid")


@pytest.mark.parametrize("number", [0, -1, True, 1.5, "2"])
def test_bad_number_of_workers(number: object) -> None:
    """A number of workers that makes no sense is refused."""
    with pytest.raises(ConfigurationError, match="max_workers"):
        ProcessPool(number)  # type: ignore[arg-type]


async def test_must_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool works between entering and leaving, in the process that opened it, and opens once."""
    pool = ProcessPool(1)
    with pytest.raises(RuntimeError, match="not open"):
        await pool.run(H + "pid")
    async with pool:
        with pytest.raises(RuntimeError, match="open already"):
            await pool.__aenter__()
        with monkeypatch.context() as patch:
            patch.setattr("os.getpid", lambda: -1)
            with pytest.raises(RuntimeError, match="a fork of it cannot use it"):
                await pool.run(H + "pid")
    with pytest.raises(RuntimeError, match="not open"):
        await pool.run(H + "pid")

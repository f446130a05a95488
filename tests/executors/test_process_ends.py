"""How calls in child processes end: cancelled, killed, with everything they started, and without a trace."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from pgq_anyio._executors._process import ProcessDied, ProcessPool
from tests.executors.processes import children, is_gone, let_go, wait_for_pid, wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]

H = "tests.executors.process_handlers:"
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def pool(anyio_backend: object) -> AsyncIterator[ProcessPool]:
    async with ProcessPool(1) as pool:
        yield pool


class Call:
    """A call in a task of its own, that can be cancelled and says when it has ended."""

    def __init__(self, pool: ProcessPool, target: str, *arguments: object, grace: float = 20) -> None:
        self.overdue = 0
        self.has_returned = False
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        self._run = (pool, target, arguments, grace)

    async def run(self) -> None:
        pool, target, arguments, grace = self._run
        try:
            with self.scope:
                await pool.run(H + target, arguments, cancel_grace=grace, on_overdue=self._count)
                self.has_returned = True
        finally:
            self.ended.set()

    def _count(self) -> None:
        self.overdue += 1


async def cancel_when_there(call: Call, path: Path) -> int:
    """Run the call until it has told its process id, cancel it, and wait for its end."""
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(call.run)
            pid = await wait_for_pid(path)
            call.scope.cancel()
    assert call.scope.cancelled_caught != call.has_returned
    return pid


@pytest.mark.parametrize("target", ["wait_here", "wait_here_async"])
@pytest.mark.promise(23)
async def test_cancel_ends_the_process(pool: ProcessPool, tmp_path: Path, target: str) -> None:
    """A cancelled call returns when its process has ended, long before the grace is over; the next gets a new one."""
    path = tmp_path / "pid"
    call = Call(pool, target, str(path), grace=3600)
    pid = await cancel_when_there(call, path)
    assert is_gone(pid)
    assert pid not in children()
    assert 0 == call.overdue
    assert pid != await pool.run(H + "pid")


@pytest.mark.promise(23)
async def test_cancel_of_a_handler_that_ignores_it(pool: ProcessPool, tmp_path: Path) -> None:
    """A process that ignores SIGTERM is reported as overdue and killed after the grace."""
    path = tmp_path / "pid"
    call = Call(pool, "ignore_term", str(path), grace=0.2)
    pid = await cancel_when_there(call, path)
    assert is_gone(pid)
    assert 1 == call.overdue


async def test_the_grace_is_kept(pool: ProcessPool, tmp_path: Path) -> None:
    """Before the grace is over, a process that ignores SIGTERM is left alone and its call goes on."""
    path = tmp_path / "pid"
    call = Call(pool, "ignore_term", str(path), grace=1)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(call.run)
            pid = await wait_for_pid(path)
            start = anyio.current_time()
            call.scope.cancel()
            with anyio.move_on_after(0.5):
                await call.ended.wait()
            assert not call.ended.is_set()
            assert not is_gone(pid)
            await call.ended.wait()
            assert anyio.current_time() - start >= 1
    assert is_gone(pid)


async def test_no_grace_kills_at_once(pool: ProcessPool, tmp_path: Path) -> None:
    """With a grace of zero SIGKILL follows at once."""
    path = tmp_path / "pid"
    assert is_gone(await cancel_when_there(Call(pool, "ignore_term", str(path), grace=0), path))


async def test_handler_that_cleans_up_and_returns(pool: ProcessPool, tmp_path: Path) -> None:
    """A handler may catch SIGTERM and return in its own time: it is not killed, the grace is not waited for, and it has
    done its work.
    """
    path = tmp_path / "pid"
    call = Call(pool, "return_on_term", str(path), grace=3600)
    pid = await cancel_when_there(call, path)
    assert call.has_returned
    assert (tmp_path / "pid.tidied").exists()
    assert is_gone(pid)
    assert 0 == call.overdue


async def test_handler_that_cleans_up_and_raises(pool: ProcessPool, tmp_path: Path) -> None:
    """One that raises then was interrupted, whatever it raises."""
    path = tmp_path / "pid"
    call = Call(pool, "raise_on_term", str(path), grace=3600)
    await cancel_when_there(call, path)
    assert not call.has_returned


@pytest.mark.skipif(not hasattr(psutil.Process, "io_counters"), reason="nothing tells that the reply was written")
async def test_handler_that_has_returned_already(pool: ProcessPool, tmp_path: Path) -> None:
    """A reply that is in the pipe when the call is cancelled counts."""
    path = tmp_path / "held"
    call = Call(pool, "hold", str(path))
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(call.run)
            pid = await wait_for_pid(path)
            await anyio.wait_all_tasks_blocked()
            wait_for_a_write(pid, lambda: let_go(path))
            call.scope.cancel()
    assert call.has_returned
    assert is_gone(pid)


def wait_for_a_write(pid: int, act: Callable[[], None]) -> None:
    """Block the event loop until a process has written something, so that nobody here has read it."""
    process = psutil.Process(pid)
    before = process.io_counters().write_count
    act()
    until = time.monotonic() + 20
    while process.io_counters().write_count == before:
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The groups that a signal was sent to, or would have been, from now on."""
    groups: list[int] = []
    send = os.killpg

    def killpg(group: int, number: int) -> None:
        groups.append(group)
        send(group, number)

    monkeypatch.setattr(os, "killpg", killpg)
    return groups


@pytest.mark.parametrize("target", ["return_on_term", "wait_here"])
async def test_a_child_that_was_ended_gets_no_signal_later(
    pool: ProcessPool, tmp_path: Path, signalled: list[int], target: str
) -> None:
    """Its process id may be somebody else's by then."""
    path = tmp_path / "pid"
    pid = await cancel_when_there(Call(pool, target, str(path), grace=3600), path)
    assert pid in signalled
    signalled.clear()
    assert pid != await pool.run(H + "pid")
    assert pid not in signalled


@pytest.mark.parametrize("is_asked", [True, False])
async def test_a_child_that_died_while_idle_gets_no_signal(signalled: list[int], is_asked: bool) -> None:
    """Nobody knows when that was."""
    with anyio.fail_after(20):
        async with ProcessPool(1) as pool:
            pid = await pool.run(H + "pid")
            assert isinstance(pid, int)
            psutil.Process(pid).kill()
            (child,) = pool._idle
            await wait_until(lambda: child._process.returncode is not None)
            if is_asked:
                assert pid != await pool.run(H + "pid")
    assert pid not in signalled


async def test_cancelled_before_it_starts(pool: ProcessPool, tmp_path: Path) -> None:
    """A call in a scope that is cancelled already does not reach its handler, and costs no child."""
    warm = await pool.run(H + "pid")
    path = tmp_path / "pid"
    with anyio.CancelScope() as scope:
        scope.cancel()
        await pool.run(H + "wait_here", (str(path),))
    assert scope.cancelled_caught
    assert warm == await pool.run(H + "pid")
    assert not path.exists()


async def test_cancelled_while_it_waits_for_a_worker(pool: ProcessPool, tmp_path: Path) -> None:
    """A call that waits for a free child goes at once, and the one that has it stays."""
    first, second = tmp_path / "first", tmp_path / "second"
    running, waiting = Call(pool, "wait_here", str(first)), Call(pool, "wait_here", str(second))
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(running.run)
            pid = await wait_for_pid(first)
            group.start_soon(waiting.run)
            await anyio.wait_all_tasks_blocked()
            waiting.scope.cancel()
            await waiting.ended.wait()
            assert not is_gone(pid)
            running.scope.cancel()
    assert not second.exists()


async def test_cancelled_after_its_end(pool: ProcessPool) -> None:
    """A scope that is cancelled after the call has returned costs no child."""
    with anyio.CancelScope() as scope:
        pid = await pool.run(H + "pid")
        scope.cancel()
    assert pid == await pool.run(H + "pid")


@pytest.mark.promise(23)
async def test_cancel_ends_what_the_handler_started(pool: ProcessPool, tmp_path: Path) -> None:
    """A program that the handler started and that ignores SIGTERM is killed after the grace, with the whole group."""
    path = tmp_path / "pid"
    call = Call(pool, "stubborn_program", str(path), grace=0.3)
    await cancel_when_there(call, path)
    program = await wait_for_pid(tmp_path / "pid.program")
    await wait_until(lambda: is_gone(program))
    assert 0 == call.overdue


async def test_programs_have_the_grace_too(pool: ProcessPool, tmp_path: Path) -> None:
    """A program that the handler started can clean up after SIGTERM, though the handler itself ends at once."""
    path = tmp_path / "pid"
    await cancel_when_there(Call(pool, "tidy_program", str(path), grace=20), path)
    assert (tmp_path / "pid.program.tidied").exists()


async def test_death_of_a_handler_ends_what_it_started(pool: ProcessPool, tmp_path: Path) -> None:
    """When a child dies by itself, nothing of its group stays."""
    with anyio.fail_after(20), pytest.raises(ProcessDied, match="exit code 7"):
        await pool.run(H + "die_and_leave", (str(tmp_path / "pid"),))
    program = await wait_for_pid(tmp_path / "pid")
    await wait_until(lambda: is_gone(program))


async def test_death_is_seen_though_a_fork_lives(tmp_path: Path) -> None:
    """A fork that inherits every descriptor does not hide that the child has died."""
    with anyio.fail_after(20):
        async with ProcessPool(1) as pool:
            with pytest.raises(ProcessDied, match="exit code 9"):
                await pool.run(H + "fork_and_die", (str(tmp_path / "pid"),))
    fork = await wait_for_pid(tmp_path / "pid")
    await wait_until(lambda: is_gone(fork))


async def test_signal_handlers_do_not_stay(pool: ProcessPool) -> None:
    """SIGTERM is at its default again for the next job, and programs started from a handler have the default SIGINT."""
    pid = await pool.run(H + "pid")
    await pool.run(H + "keep_term_handler")
    assert (True, True) == await pool.run(H + "dispositions")
    assert pid == await pool.run(H + "pid")


async def test_interrupt_is_for_the_parent(pool: ProcessPool) -> None:
    """SIGINT does nothing in a child."""
    assert "still here" == await pool.run(H + "interrupt_myself")


async def test_starts_with_signals_unblocked(pool: ProcessPool, tmp_path: Path) -> None:
    """A parent that blocks SIGTERM in its threads still ends its children by it."""
    path = tmp_path / "pid"
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        assert is_gone(await cancel_when_there(Call(pool, "wait_here", str(path), grace=3600), path))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


async def test_closing_leaves_nothing(tmp_path: Path) -> None:
    """After closing there is no child, no zombie, and no program that a handler left behind."""
    before = children()
    with anyio.fail_after(20):
        async with ProcessPool(2) as pool:
            async with anyio.create_task_group() as group:
                for number in range(2):
                    group.start_soon(pool.run, H + "meet", (str(tmp_path), str(number), 2))
            await pool.run(H + "leave_behind", (str(tmp_path / "pid"),))
            program = await wait_for_pid(tmp_path / "pid")
            assert not is_gone(program)
            assert len(before) + 2 == len(children())
    assert before == children()
    await wait_until(lambda: is_gone(program))


async def test_closing_under_a_call(tmp_path: Path) -> None:
    """A call made from outside of the pool's block ends with the pool."""
    before = children()
    path = tmp_path / "pid"
    pool = ProcessPool(1)
    with anyio.fail_after(20), pytest.RaisesGroup(ProcessDied):
        async with anyio.create_task_group() as group:  # noqa: SIM117 - flake8-async wants the pool outside
            async with pool:
                group.start_soon(pool.run, H + "wait_here", (str(path),))
                await wait_for_pid(path)
    assert before == children()


async def test_closing_when_cancelled(tmp_path: Path) -> None:
    """A pool whose surroundings are cancelled closes in order."""
    before = children()
    path = tmp_path / "pid"
    with anyio.fail_after(20), anyio.CancelScope() as scope:
        async with ProcessPool(2) as pool, anyio.create_task_group() as group:
            await pool.run(H + "pid")
            group.start_soon(pool.run, H + "wait_here", (str(path),))
            await wait_for_pid(path)
            scope.cancel()
    assert scope.cancelled_caught
    assert before == children()


@contextmanager
def old_asyncio_heard_out(backend: str) -> Iterator[None]:
    """Before CPython 3.11.4, asyncio reported the broken pipe to a killed process as an error unheard."""
    if backend != "asyncio" or sys.version_info >= (3, 11, 4):
        yield
        return
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    assert handler is not None, "the runner of the tests collects such errors"

    def hear(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), BrokenPipeError):
            handler(loop, context)

    loop.set_exception_handler(hear)
    try:
        yield
    finally:
        loop.set_exception_handler(handler)


async def test_random_cancels_leak_nothing(tmp_path: Path, anyio_backend_name: str) -> None:
    """Cancelled at any moment, calls leave no process, descriptor or thread, and lose no place in the pool."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    myself = psutil.Process()

    async def call(pool: ProcessPool, number: int) -> None:
        target, argument = chance.choice(
            [("echo", b"x" * 300_000), ("pid", None), ("backend_name", 1), ("wait_here", str(tmp_path / str(number)))]
        )
        with anyio.move_on_after(chance.random() * chance.choice([0.002, 0.02, 0.2])):
            await pool.run(H + target, () if argument is None else (argument,))

    async def rounds() -> None:
        async with ProcessPool(3) as pool:
            async with anyio.create_task_group() as group:
                for number in range(60):
                    group.start_soon(call, pool, number)
            assert 1 == await pool.run(H + "echo", (1,)), seed

    before = children()
    with anyio.fail_after(50), old_asyncio_heard_out(anyio_backend_name):
        await rounds()
        gc.collect()
        descriptors, threads = myself.num_fds(), threading.active_count()
        await rounds()
        gc.collect()
    assert before == children(), seed
    await wait_until(lambda: myself.num_fds() <= descriptors)
    # AnyIO and trio keep idle worker threads for a while.
    assert threading.active_count() <= threads + 3, seed


PARENT = """
import sys
import anyio
from pgq_anyio._executors._process import ProcessPool

async def main():
    async with ProcessPool(2) as pool, anyio.create_task_group() as group:
        print(await pool.run({h!r} + "pid"), flush=True)
        if {busy}:
            group.start_soon(pool.run, {h!r} + "stubborn_program", ({path!r},))
        await anyio.sleep_forever()

anyio.run(main, backend={backend!r}, backend_options={options!r})
"""


@pytest.mark.parametrize("busy", [False, True])
async def test_children_end_when_the_parent_is_killed(
    anyio_backend_name: str, anyio_backend_options: dict[str, Any], tmp_path: Path, busy: bool
) -> None:
    """After SIGKILL of the parent its children end: idle ones, busy ones, and what those have started."""
    path = tmp_path / "pid"
    how = {"backend": anyio_backend_name, "options": anyio_backend_options}
    program = PARENT.format(h=H, busy=busy, path=str(path), **how)
    parent = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with parent:
        assert parent.stdout is not None
        try:
            pids = [int(await anyio.to_thread.run_sync(parent.stdout.readline))]
            if busy:
                pids += [await wait_for_pid(path), await wait_for_pid(tmp_path / "pid.program")]
            assert [False] * len(pids) == [is_gone(pid) for pid in pids]
        finally:
            parent.kill()
        await wait_until(lambda: all(is_gone(pid) for pid in pids), 10)

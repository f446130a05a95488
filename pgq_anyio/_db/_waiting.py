"""Waiting for sockets, on the event loop that runs.

psycopg's generators yield "wait until readable" or "until writable". Reading waits; writing is nearly always possible
at once, so the socket is polled first (about 1 µs) and waited for only if the send buffer is full.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import anyio
from psycopg.abc import PQGenConn
from psycopg.waiting import Ready, Wait

T = TypeVar("T")

NOT_READY: Final = Ready.NONE
READABLE: Final = Ready.R

if sys.platform != "win32":
    _EVENTS: Final = {
        Wait.R: select.POLLIN,
        Wait.W: select.POLLOUT,
        Wait.RW: select.POLLIN | select.POLLOUT,
    }

    def poll_nowait(fd: int, want: Wait) -> Ready:
        """Ask what the socket is ready for, without waiting.

        :return: ``NOT_READY`` if nothing of what is wanted is possible
        """
        poll = select.poll()
        poll.register(fd, _EVENTS[want])
        found = poll.poll(0)
        if not found:
            return NOT_READY
        events = found[0][1]
        ready = (Ready.R if events & select.POLLIN else 0) | (Ready.W if events & select.POLLOUT else 0)
        # Neither means an error or the end of the stream: libpq has to find that out by itself.
        return Ready(ready or int(want))

else:

    def poll_nowait(fd: int, want: Wait) -> Ready:
        """Ask what the socket is ready for, without waiting. Windows has no ``select.poll``."""
        reads, writes, _ = select.select([fd] if want & Wait.R else [], [fd] if want & Wait.W else [], [], 0)
        return Ready((Ready.R if reads else 0) | (Ready.W if writes else 0))


def readable_waiter() -> tuple[Callable[[Any], Awaitable[None]], tuple[type[BaseException], ...]]:
    """How the running backend waits for a readable socket.

    trio's own function is called directly: AnyIO's wrapper costs 3 to 8 % of a request there.

    :return: the function, and what it raises if the socket is closed meanwhile
    """
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return trio.lowlevel.wait_readable, (anyio.ClosedResourceError, trio.ClosedResourceError)
    return anyio.wait_readable, (anyio.ClosedResourceError,)


async def wait_ready(fd: int, want: Wait) -> Ready:
    """Wait until the socket is ready for (some of) what is wanted.

    :raises anyio.ClosedResourceError: if the socket is closed meanwhile
    """
    if want == Wait.R:
        await anyio.wait_readable(fd)
        return Ready.R
    if want == Wait.W:
        await anyio.wait_writable(fd)
        return Ready.W
    # Only if both sides' buffers are full, so this may be slow.
    ready = 0
    failures: list[anyio.ClosedResourceError | OSError] = []

    async def wait_one(wait: Callable[[int], Awaitable[None]], flag: Ready) -> None:
        nonlocal ready
        try:
            await wait(fd)
        except (anyio.ClosedResourceError, OSError) as error:
            failures.append(error)  # raised below: the task group would wrap it
        else:
            ready |= flag
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait_one, anyio.wait_readable, Ready.R)
        tasks.start_soon(wait_one, anyio.wait_writable, Ready.W)
    if failures:
        raise failures[0]
    return Ready(ready)


async def drive_connecting(steps: PQGenConn[T]) -> T:
    """Run a generator of (socket, what to wait for): connecting, or sending a cancel request."""
    try:
        fd, want = next(steps)
        while True:
            fd, want = steps.send(await wait_ready(fd, want))
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()

"""A task of a group that ends alone, whatever asyncio's own ``cancel()`` was called on it for.

AnyIO takes a child that ends cancelled for a request to cancel the whole group, without an error. A handler that calls
``cancel()`` on its task and returns, or somebody who has kept the task of a job that has ended, would stop the worker.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVarTuple

import anyio

from .._context import outer_cancelled

ArgsT = TypeVarTuple("ArgsT")


async def end_alone(function: Callable[[*ArgsT], Coroutine[Any, Any, None]], *args: *ArgsT) -> None:
    """Be a whole task of a group: no cancellation leaves it that no scope explains."""
    try:
        await function(*args)
    except anyio.get_cancelled_exc_class():  # noqa: ASYNC103  (one that no scope explains is this task's alone)
        if outer_cancelled():
            raise
    trio = sys.modules.get("trio")
    if trio is None or not trio.lowlevel.in_trio_task():
        await _absorb_cancel_requests()


async def _absorb_cancel_requests() -> None:
    """Let pending requests be raised here, and take them back: a task that returns with one ends as cancelled."""
    task = asyncio.current_task()
    # Under a cancelled scope each wait brings another one, and the group is cancelled anyway.
    while task is not None and task.cancelling() and not outer_cancelled():
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        task.uncancel()

"""Interrupting a coroutine at its k-th suspension: the way to try every ``await`` of a path and not one lucky place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


@coroutine
def at_suspension(work: Coroutine[Any, Any, T], k: int, interrupt: Callable[[], object]) -> Generator[Any, Any, T]:
    """Run ``work`` and call ``interrupt`` when it is about to suspend for the ``k``-th time (counted from 1)."""
    count = 0
    value: object = None
    error: BaseException | None = None
    while True:
        try:
            suspended = work.send(value) if error is None else work.throw(error)
        except StopIteration as end:
            result: T = end.value
            return result
        value = error = None
        count += 1
        if count == k:
            interrupt()
        try:
            value = yield suspended
        except BaseException as caught:
            error = caught


async def cancel_everywhere(
    work: Callable[[], Coroutine[Any, Any, object]], check: Callable[[int, bool], Awaitable[None]], *, limit: int = 200
) -> int:
    """Run ``work`` again and again, cancelled at its first suspension, its second, and so on until it ends before that.

    :param check: called after each run with its number and whether the cancellation came through
    :return: the number of suspensions that were tried
    """
    for k in range(1, limit):
        asked = False
        with anyio.fail_after(20), anyio.CancelScope() as scope:

            def interrupt(scope: anyio.CancelScope = scope) -> None:
                nonlocal asked
                asked = True
                scope.cancel()

            await at_suspension(work(), k, interrupt)
        await check(k, scope.cancelled_caught)
        if not asked:
            return k - 1
    raise AssertionError(f"still not at its end after {limit} suspensions")

"""Keeps a handler's ``SystemExit`` from ending the whole worker on asyncio.

A ``SystemExit`` or ``KeyboardInterrupt`` that leaves a *task* goes through asyncio's loop and ends it, whatever waits
for that task; on trio it reaches the parent like any other exception. The job's own task is ours and lets nothing out,
but a handler may start tasks of its own. This task factory looks at the current job: tasks that a job starts are
wrapped, so that what leaves them is a group with that exception in it. It then reaches whoever waits for the task, and
with that the job, as on trio. ``except* SystemExit`` sees the same on both backends.

The wrapper is an object that hands every call through, not a coroutine of its own: a task that is cancelled before its
first step must close the coroutine it was given, and stacks must look as they would without us.

Inside somebody else's program the loop is not ours to change, so the worker never does this by itself.
"""

from __future__ import annotations

import asyncio  # noqa: TID251  (the one thing here that anyio has no word for)
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context as ContextVariables
from typing import Any

from .._context import Context, _current_context


def contain_child_tasks() -> None:
    """Contain the tasks that jobs start, on the running asyncio loop."""
    asyncio.get_running_loop().set_task_factory(_make_task)


def _make_task(
    loop: asyncio.AbstractEventLoop,
    coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
    *,
    context: ContextVariables | None = None,
    **options: Any,
) -> asyncio.Task[Any]:
    job = _current_context.get() if context is None else context.get(_current_context)
    if job is not None and isinstance(coro, Coroutine):
        coro = _Contained(coro, job)
    return asyncio.Task(coro, loop=loop, context=context, **options)


class _Contained(Coroutine[Any, Any, Any]):
    """A coroutine that raises a group where it would have raised what ends the loop."""

    def __init__(self, coro: Coroutine[Any, Any, Any], job: Context) -> None:
        self._coro = coro
        self._job = job

    def send(self, value: Any) -> Any:
        return self._step(self._coro.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._coro.throw, *error)

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coro.__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coro, name)  # cr_frame, cr_await, __qualname__: whoever looks sees the handler's own

    def _step(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (SystemExit, KeyboardInterrupt) as error:
            job = self._job
            whose = f"job {job.job_id}" if job.schedule is None else f"the schedule {job.schedule.name!r}"
            raise BaseExceptionGroup(f"{type(error).__name__} in a child task of {whose}", [error]) from None

"""Sync handlers in threads. A thread is never abandoned: the job's task lives exactly as long as its thread.

The limiter is the worker's own and as large as its ``max_concurrency``: AnyIO's default limiter of 40 threads belongs
to the application, and a job that waited for one of its tokens would count as running although it is not. In the own
one nobody ever waits: a token is given back before its job leaves the slot to another.

AnyIO waits for a thread in a shielded scope, which asyncio's own ``Task.cancel()`` passes through: ``asyncio.run()``
cancels all tasks in this way at its end. The wait goes on here until the thread has ended.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import anyio.to_thread
import attrs

from .._context import Context
from .._errors import ConfigurationError
from .._registry import ExecutorParameters, HandlerKind
from .._stop import loop_caller
from ._base import AbstractEntrypointExecutor


@attrs.define(eq=False)
class _Call:
    """A call in a thread, which may outlive the wait for its result."""

    function: Callable[[], object]
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _has_begun: bool = attrs.field(default=False, init=False)
    _has_ended: bool = attrs.field(default=False, init=False)
    #: whether it is not to begin any more
    _is_dropped: bool = attrs.field(default=False, init=False)
    #: tells whoever waits for the end
    _tell: Callable[[], object] | None = attrs.field(default=None, init=False)

    def run(self) -> object:
        """Make the call, in the thread."""
        with self._lock:
            if self._is_dropped:
                return None
            self._has_begun = True
        try:
            return self.function()
        finally:
            with self._lock:
                self._has_ended = True
                if self._tell is not None:
                    with suppress(RuntimeError):  # the loop has ended, and nobody waits
                        self._tell()

    async def drop(self) -> None:
        """The wait for the result was broken off: wait for the end, however often this wait is broken off, too."""
        ended, soon = anyio.Event(), loop_caller()
        with self._lock:
            self._is_dropped = True
            if not self._has_begun or self._has_ended:
                return
            self._tell = lambda: soon(ended.set)
        with anyio.CancelScope(shield=True):
            while not ended.is_set():
                try:
                    await ended.wait()
                except anyio.get_cancelled_exc_class():  # noqa: ASYNC103  (the first one is raised by the caller)
                    continue  # noqa: ASYNC104  (as above)


class ThreadExecutor(AbstractEntrypointExecutor):
    """Call a sync handler in a thread. The default for functions that are not async.

    :raises ConfigurationError: if the function is async
    """

    kind: HandlerKind = HandlerKind.THREAD

    def __init__(self, parameters: ExecutorParameters) -> None:
        super().__init__(parameters)
        if parameters.is_async:
            raise ConfigurationError(
                f"ThreadExecutor calls its function; the one of {parameters.name!r} is async: use EntrypointExecutor"
            )

    async def execute(self, job: Any, context: Context) -> object:
        """Call the handler in a thread and wait for it, whatever is cancelled meanwhile.

        :raises TypeError: if it returns what would have to be awaited: nobody does
        """
        call = _Call(partial(self._call, job, context))
        try:
            return await anyio.to_thread.run_sync(
                call.run, abandon_on_cancel=False, limiter=context.tools.thread_limiter
            )
        except BaseException:
            await call.drop()  # noqa: ASYNC102, ASYNC120  (shielded inside; it is bounded by the handler)
            raise

    def _call(self, job: Any, context: Context) -> object:
        context.follow_thread()
        parameters = self.parameters
        result: object = parameters.func(job, context) if parameters.wants_context else parameters.func(job)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()  # or Python complains that nobody has awaited it
            raise TypeError(
                f"the handler of {parameters.name!r} is no async function, but gave a {type(result).__qualname__}, "
                "which nobody awaits: make it async def, and let it await that"
            )
        return result

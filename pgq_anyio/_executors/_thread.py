"""Sync handlers in threads. A thread is never abandoned: the job's task lives exactly as long as its thread.

The limiter is the worker's own and as large as its ``max_concurrency``: AnyIO's default limiter of 40 threads belongs
to the application, and a job that waited for one of its tokens would count as running although it is not. In the own
one nobody ever waits: a token is given back before its job leaves the slot to another.
"""

from __future__ import annotations

from typing import Any

import anyio.to_thread

from .._context import Context
from .._errors import ConfigurationError
from .._registry import ExecutorParameters, HandlerKind
from ._base import AbstractEntrypointExecutor


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
        """Call the handler in a thread and wait for it, whatever is cancelled meanwhile."""
        return await anyio.to_thread.run_sync(
            self._call, job, context, abandon_on_cancel=False, limiter=context.tools.thread_limiter
        )

    def _call(self, job: Any, context: Context) -> object:
        context.follow_thread()
        if self.parameters.wants_context:
            return self.parameters.func(job, context)
        return self.parameters.func(job)

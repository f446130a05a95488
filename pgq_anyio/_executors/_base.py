"""The executor that users subclass, and the one that awaits an async handler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from .._context import Context
from .._errors import ConfigurationError
from .._registry import ExecutorParameters, HandlerKind


class AbstractEntrypointExecutor(ABC):
    """How the jobs of one entrypoint are run.

    Subclass it, write ``execute``, and register it with ``executor_factory=TheClass``. It is called once, at
    registration, with the parameters of the entrypoint; ``execute`` is called for every job, many at a time.

    :param parameters: the name, function and options of the entrypoint
    """

    #: how the handler is called, which decides how it can be cancelled
    kind: HandlerKind = HandlerKind.ASYNC

    def __init__(self, parameters: ExecutorParameters) -> None:
        #: the name, function and options of the entrypoint
        self.parameters = parameters

    def check(self) -> None:  # noqa: B027  (most executors have nothing to check)
        """Look once more whether handlers can be called, when a worker starts and every module has been imported.

        :raises ConfigurationError: if they cannot; the worker then does not start
        """

    @abstractmethod
    async def execute(self, job: Any, context: Context) -> object:
        """Run one job, or one occurrence of a schedule; what it raises is the job's failure, its result is ignored."""


class EntrypointExecutor(AbstractEntrypointExecutor):
    """Await an async handler. The default for async functions.

    :raises ConfigurationError: if the function is not async
    """

    def __init__(self, parameters: ExecutorParameters) -> None:
        super().__init__(parameters)
        if not parameters.is_async:
            raise ConfigurationError(
                f"EntrypointExecutor awaits its function; that of {parameters.name!r} is not async: use ThreadExecutor"
            )
        self._func = parameters.func
        self._wants_context = parameters.wants_context

    async def execute(self, job: Any, context: Context) -> object:
        """Await the handler."""
        if self._wants_context:
            return await self._func(job, context)
        return await self._func(job)

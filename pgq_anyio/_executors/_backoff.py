"""Retries inside one run of a job: for errors that pass within seconds.

The job keeps its row, its slot and its attempt number meanwhile. For errors that last longer, or to survive the
worker, use ``max_attempts`` of the entrypoint or raise ``Retry``: these go through the database.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import anyio

from .._context import Context
from .._durations import count, seconds
from .._lifecycle import find_answer
from .._registry import ExecutorParameters, HandlerKind
from .._retry import RetryPolicy, check_multiplier
from ._base import AbstractEntrypointExecutor, EntrypointExecutor
from ._thread import ThreadExecutor


class RetryWithBackoffEntrypointExecutor(AbstractEntrypointExecutor):
    """Call the handler again when it fails, with growing, jittered pauses. Works for async and for sync handlers.

    Use ``functools.partial`` to set options: ``executor_factory=partial(RetryWithBackoffEntrypointExecutor,
    max_attempts=3)``.
    What the handler raises to say how its job goes on (``Retry``, ``Snooze``, ``Cancel``, ``Discard``) is not retried
    here, and neither is anything that is no ``Exception``. A cancellation ends the loop.

    :param parameters: the name, function and options of the entrypoint
    :param max_attempts: calls of the handler in all. Defaults to 5.
    :param initial_delay: nominal pause after the first failure (in seconds). Defaults to 0.1.
    :param backoff_multiplier: factor from one pause to the next. Defaults to 2.
    :param max_delay: no pause is longer (in seconds). Defaults to 10.
    :param max_time: no call is made later than this after the first one began (in seconds). Defaults to 300.
    :param jitter: whether each pause is drawn from the upper half of its nominal value. Defaults to ``True``.
    :raises ConfigurationError: if an option cannot be used
    """

    def __init__(
        self,
        parameters: ExecutorParameters,
        *,
        max_attempts: int = 5,
        initial_delay: float | timedelta = 0.1,
        backoff_multiplier: float = 2.0,
        max_delay: float | timedelta = 10.0,
        max_time: float | timedelta = 300.0,
        jitter: bool = True,
    ) -> None:
        super().__init__(parameters)
        self._max_attempts = count("max_attempts", max_attempts)
        self._max_time = seconds("max_time", max_time, above=0.0)
        self._policy = RetryPolicy(
            initial_delay=initial_delay,
            multiplier=check_multiplier("backoff_multiplier", backoff_multiplier),
            max_delay=max_delay,
            jitter=jitter,
        )
        self._inner = EntrypointExecutor(parameters) if parameters.is_async else ThreadExecutor(parameters)
        self.kind: HandlerKind = self._inner.kind

    async def execute(self, job: Any, context: Context) -> object:
        """Call the handler until it returns; the last error goes through, with a note of how many calls were made."""
        give_up_at = anyio.current_time() + self._max_time
        attempt = 1
        while True:
            try:
                return await self._inner.execute(job, context)
            except Exception as error:
                if find_answer(error) is not None:
                    raise
                delay = self._policy.delay(attempt)
                if attempt >= self._max_attempts or anyio.current_time() + delay > give_up_at:
                    error.add_note(f"the handler was called {attempt} times")
                    raise
                # Cancelled in the pause, the job is cancelled: this error was that of a call which was to be repeated.
                await context.pause(delay)  # noqa: ASYNC120
                # A cooperative handler has the grace to end by itself, and no further call to do so.
                if context.cancel_reason is not None:
                    raise
            attempt += 1

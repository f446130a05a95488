"""Handlers in child processes: for work that holds the interpreter, or that must be ended from outside.

A child gets the job and nothing else: a context lives in the worker's event loop and does not travel. On cancellation
the child gets SIGTERM, and SIGKILL after ``cancel_grace``; the job's task lives until the child has ended.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import Any, Final

from .._context import Context
from .._errors import ConfigurationError
from .._registry import ExecutorParameters, HandlerKind
from ._base import AbstractEntrypointExecutor
from ._process import check_importable

logger = logging.getLogger("pgq_anyio.processes")

#: A job that was claimed for a child and does not get one within this time goes back into the queue (in seconds).
LONGEST_WAIT: Final = 0.3


class ProcessExecutor(AbstractEntrypointExecutor):
    """Call a handler, sync or async, in a child process of the worker. Chosen by ``executor_factory=ProcessExecutor``.

    An async handler has an event loop of the worker's kind there, trio or asyncio.

    :raises ConfigurationError: if the handler cannot be imported by name in another process, or takes a context
    """

    kind: HandlerKind = HandlerKind.PROCESS

    def __init__(self, parameters: ExecutorParameters) -> None:
        super().__init__(parameters)
        if parameters.wants_context:
            raise ConfigurationError(
                f"the handler of {parameters.name!r} takes a context, which cannot travel to another process: "
                "let it take the job alone"
            )
        self._target = check_importable(parameters.func)

    def check(self) -> None:
        """Look whether the name leads to the handler: when it was decorated it was not bound to its name yet."""
        check_importable(self.parameters.func, bound=True)

    async def execute(self, job: Any, context: Context) -> object:
        """Run the handler in a child, as soon as one is free, and wait for its end, whatever is cancelled meanwhile.

        A job that waits too long for a child is given back: another worker may have one. A run of a schedule is not.
        """
        tools = context.tools
        if tools.process_pool is None:
            raise ConfigurationError(
                f"the executor of {self.parameters.name!r} uses a ProcessExecutor, but the worker does not know it: "
                "say kind = ProcessExecutor.kind in its class"
            )
        context.follow_process()
        return await tools.process_pool.run(
            self._target,
            (job,),
            waiting=context.waiting(),
            patience=math.inf if context.job is None else LONGEST_WAIT,
            on_impatient=context.end_wait,
            cancel_grace=tools.cancel_grace,
            on_overdue=partial(self._tell_overdue, context, tools.cancel_grace),
        )

    def _tell_overdue(self, context: Context, grace: float) -> None:
        what = "a run of the schedule" if context.job is None else f"job {context.job_id} of"
        logger.warning(
            "the process of %s %r still runs %g s after SIGTERM (%s): it is killed",
            what,
            self.parameters.name,
            grace,
            context.cancel_reason,
        )

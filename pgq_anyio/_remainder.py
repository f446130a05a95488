"""The rest of a coroutine whose first step was made elsewhere, as something that a task can await."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextvars import Context as Variables
from types import FrameType
from typing import Any, Final

#: Makes a step in the given variables: what is to be called for it, with which arguments.
Step = Callable[..., Any]

#: What a coroutine waits for may be ``None``, asyncio's ``sleep(0)``.
_NOTHING: Final = object()


class Remainder(Generator[Any, Any, None]):
    """Awaits the rest of a coroutine whose first step was made already, each step in the coroutine's own variables."""

    __slots__ = ("_step", "_steps", "_variables", "_wanted")

    def __init__(self, step: Step, wanted: Any, steps: Any, variables: Variables) -> None:
        self._step = step
        self._wanted = wanted
        self._steps = steps
        self._variables = variables

    def __await__(self) -> Generator[Any, Any, None]:
        return self

    def __next__(self) -> Any:
        """Hand out what the first step waits for; later, make a step. The ``send(None)`` of an event loop ends here."""
        wanted, self._wanted = self._wanted, _NOTHING
        return self._step(self._variables, self._steps.send, None) if wanted is _NOTHING else wanted

    def send(self, value: Any) -> Any:
        """Make the next step."""
        return self._step(self._variables, self._steps.send, value)

    def throw(self, *error: Any) -> Any:
        """Make the next step with an exception, such as a cancellation."""
        return self._step(self._variables, self._steps.throw, *error)

    def close(self) -> None:
        """End the coroutine where it is."""
        self._variables.run(self._steps.close)

    @property
    def cr_frame(self) -> FrameType | None:
        """The frame of the job, for dumps of this task."""
        frame: FrameType | None = self._steps.cr_frame
        return frame

    @property
    def cr_await(self) -> Any:
        """What the job awaits, for dumps of this task."""
        return self._steps.cr_await

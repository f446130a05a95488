"""What Ctrl-C, SIGTERM and SIGHUP do to a command on a loop: they cancel it, and are raised when the loop is gone.

Left to the loops, an interrupt is an exception that is raised wherever the program happens to be. In the middle of a
loop's own code, or while the loop closes, that leaves it half closed (seen with uvloop: ``RuntimeError: Cannot close a
running event loop``, which hid the interrupt). The handlers are therefore ours, and neither asyncio's ``Runner`` nor
trio replaces them: both look first whether SIGINT has Python's own handler.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import anyio
import attrs

from .._stop import loop_caller

#: A shell without job control starts commands in the background with SIGINT ignored (POSIX, "Asynchronous Lists"). Both
#: stop a worker that is running there, so both are to stop one that is not running yet.
NUMBERS: Final = (signal.SIGINT, signal.SIGTERM)


def stop_signals() -> tuple[signal.Signals, ...]:
    """What stops a command. When its terminal is closed it gets SIGHUP, unless it was started to live on, with that
    signal ignored (POSIX, "nohup").
    """
    lives_on = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return NUMBERS if lives_on else (*NUMBERS, signal.SIGHUP)


@attrs.define(eq=False)
class Interrupts:
    """The signals that stop a command, while it runs."""

    #: Whether what runs ends within bounds of its own, so that all but the first signal are ignored. Else the second
    #: one is raised where it finds the program: perhaps the user's code blocks the loop.
    once: bool = False
    #: whether there was one
    heard: bool = attrs.field(default=False, init=False)
    #: whether one was raised inside a loop, which may then fail in any way
    _raised: bool = attrs.field(default=False, init=False)
    #: asks for the cancellation of what runs on the loop
    _cancel: Callable[[], object] | None = attrs.field(default=None, init=False)

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle them."""
        before = {number: signal.signal(number, self._on_signal) for number in stop_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                if signal.getsignal(number) == self._on_signal:  # else they are ignored to the end of the process
                    signal.signal(number, handler)

    def ignore(self) -> None:
        """Ignore them to the end of the process, which is near: they could only leave something behind."""
        for number in stop_signals():
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Raise nothing while a loop runs and closes, unless a second signal asks for it.

        :raises KeyboardInterrupt: at the end, if there was a signal
        """
        self._cancel = _do_nothing
        try:
            yield
        except BaseException:
            if self._raised:
                raise KeyboardInterrupt from None  # noqa: ASYNC104 - the loop is gone, nothing is cancelled
            raise
        finally:
            self._cancel = None
        if self.heard:
            raise KeyboardInterrupt

    @contextmanager
    def cancelling(self) -> Iterator[None]:
        """Cancel the block when a signal comes; inside a running loop, and inside of :meth:`held_back`."""
        scope = anyio.CancelScope()
        soon = loop_caller()
        self._cancel = lambda: soon(scope.cancel)
        try:
            with scope:
                if self.heard:  # while the loop was being made
                    scope.cancel()
                yield
        finally:
            self._cancel = _do_nothing

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.heard and number == signal.SIGHUP:
            return  # of a terminal that is closed its shell tells, and then the kernel
        if self.once:
            self.ignore()
        if self._cancel is None:
            self.heard = True
            raise KeyboardInterrupt
        if self.heard:
            self._raised = True
            raise KeyboardInterrupt
        self.heard = True
        self._cancel()


def _do_nothing() -> None:
    """Nothing runs on the loop yet, or any more."""

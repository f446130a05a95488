"""The end of a worker: what signals, ``stop()``, a drained queue and an error that no retry can mend have in common."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import attrs
from anyio import CancelScope
from anyio.lowlevel import EventLoopToken, checkpoint_if_cancelled, current_token

CallSoon = Callable[[Callable[[], object]], object]


def loop_caller() -> CallSoon:
    """What makes the running event loop call a function soon: the one thing of a loop that other threads, signal
    handlers and its own callbacks may all call. It never waits.
    """
    loop: Any = current_token().native_token
    soon: CallSoon = loop.run_sync_soon if hasattr(loop, "run_sync_soon") else loop.call_soon_threadsafe
    return soon


@attrs.define(eq=False)
class Stop:
    """One request, in three degrees: gracefully, at once, and (for a program of its own) out of the process.

    An error ends the worker without any request, by cancelling its tasks; what bounds the end has to know of both.
    """

    _begun: anyio.Event = attrs.field(factory=anyio.Event, init=False)
    _requested: anyio.Event = attrs.field(factory=anyio.Event, init=False)
    _hurried: anyio.Event = attrs.field(factory=anyio.Event, init=False)
    _given_up: anyio.Event = attrs.field(factory=anyio.Event, init=False)
    _scope: CancelScope | None = attrs.field(default=None, init=False)
    #: whether the worker is to stop; asked before each job starts
    requested: bool = attrs.field(default=False, init=False)
    #: the event loop that this request belongs to
    _token: EventLoopToken = attrs.field(factory=current_token, init=False)
    _soon: CallSoon = attrs.field(factory=loop_caller, init=False)

    def request(self) -> None:
        """Stop gracefully: claim nothing, let running jobs end within the grace."""
        self.requested = True
        self._begun.set()
        self._requested.set()

    def request_from_anywhere(self) -> None:
        """The same, at once from a task of this event loop, and soon from anywhere else: from other threads, from
        signal handlers, and from callbacks of the loop, where AnyIO finds none.
        """
        try:
            here = current_token()
        except Exception:  # noqa: BLE001  (no event loop is found; AnyIO's class for it differs between versions)
            here = None
        if here == self._token:
            self.request()
        else:
            with suppress(RuntimeError):  # the loop has ended meanwhile, and the worker with it
                self._soon(self.request)

    def hurry(self) -> None:
        """Stop without the grace: cancel the jobs that still run."""
        self.request()
        self._hurry()

    def _hurry(self) -> None:
        self._hurried.set()
        if self._scope is not None:
            self._scope.cancel()

    def give_up(self) -> None:
        """Do not even wait for handlers that ignore their cancellation."""
        self.hurry()
        self._given_up.set()

    def fail(self) -> None:
        """An error ends the worker: cancel the jobs that still run, before the error does, so that they know why.
        Nothing is requested, for whoever heeds requests would take the end for a peaceful one, and the error might get
        lost.
        """
        self._begun.set()
        self._hurry()

    def bind(self, scope: CancelScope) -> None:
        """Let ``hurry`` cancel this scope (the one around the jobs of the present term)."""
        self._scope = scope
        if self._hurried.is_set():
            scope.cancel()

    async def checkpoint(self) -> None:
        """For a task that claims: raise if it is cancelled, and do not return if it is about to be.

        Claims are shielded, and may be answered without any wait. A claimer that went on after the request would claim
        what is given back, again and again.
        """
        await checkpoint_if_cancelled()
        if self.requested:
            await anyio.sleep_forever()

    async def wait_requested(self) -> None:
        """Wait for any degree."""
        await self._requested.wait()

    async def wait_begun(self) -> None:
        """Wait until the worker ends, asked to or not."""
        await self._begun.wait()

    async def wait_hurried(self, timeout: float) -> None:
        """Wait for the second degree, or an error, at most ``timeout`` seconds."""
        with anyio.move_on_after(timeout):
            await self._hurried.wait()

    async def wait_given_up(self, timeout: float) -> None:
        """Wait for the third degree, at most ``timeout`` seconds."""
        with anyio.move_on_after(timeout):
            await self._given_up.wait()

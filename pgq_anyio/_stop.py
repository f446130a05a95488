"""The end of a worker: what signals, ``stop()``, a drained queue and an error that no retry can mend have in common."""

from __future__ import annotations

import anyio
import attrs
from anyio import CancelScope
from anyio.lowlevel import EventLoopToken, checkpoint_if_cancelled, current_token


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
    #: the event loop that this request belongs to
    token: EventLoopToken = attrs.field(factory=current_token, init=False)

    @property
    def requested(self) -> bool:
        """Whether the worker is to stop."""
        return self._requested.is_set()

    def request(self) -> None:
        """Stop gracefully: claim nothing, let running jobs end within the grace."""
        self._begun.set()
        self._requested.set()

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

"""The request to stop: what signals, ``stop()`` and a drained queue have in common."""

from __future__ import annotations

import anyio
import attrs
from anyio import CancelScope
from anyio.lowlevel import EventLoopToken, checkpoint_if_cancelled, current_token


@attrs.define(eq=False)
class Stop:
    """One request, in three degrees: gracefully, at once, and (for a program of its own) out of the process."""

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
        self._requested.set()

    def hurry(self) -> None:
        """Stop without the grace: cancel the jobs that still run."""
        self._requested.set()
        self._hurried.set()
        if self._scope is not None:
            self._scope.cancel()

    def give_up(self) -> None:
        """Do not even wait for handlers that ignore their cancellation."""
        self.hurry()
        self._given_up.set()

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

    async def wait_hurried(self, timeout: float) -> None:
        """Wait for the second degree, at most ``timeout`` seconds."""
        with anyio.move_on_after(timeout):
            await self._hurried.wait()

    async def wait_given_up(self, timeout: float) -> None:
        """Wait for the third degree, at most ``timeout`` seconds."""
        with anyio.move_on_after(timeout):
            await self._given_up.wait()

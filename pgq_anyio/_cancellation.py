"""The part of a handler that a cancel request may interrupt.

A class of ours and no raw ``CancelScope``: a scope entered twice raises on trio, passes silently on asyncio, and raises
in a thread on both. Each ``with`` opens a fresh scope instead, several at once and in child tasks too.
"""

from __future__ import annotations

import threading
import weakref
from types import TracebackType
from typing import Protocol

import anyio
import anyio.from_thread
from anyio import CancelScope
from anyio.lowlevel import EventLoopToken, current_token

from ._models import CancelReason


class HasCancelReason(Protocol):
    """One run of a handler, as far as its cancellation is concerned."""

    @property
    def cancel_reason(self) -> CancelReason | None:
        """Why the run is being cancelled, if it is."""


class Cancellation:
    """The part of a handler that a cancel request may interrupt.

    Used as ``with ctx.cancellation:`` any number of times, nested, and in child tasks. Only what is inside is
    cancelled; code after the block runs. Once the job is cancelled, every further block is born cancelled. Entering it
    is what marks a handler as cooperative: it has ``cancel_grace`` to end by itself before all of it is cancelled.

    In a thread the block is allowed and changes nothing; look at ``cancel_called``, or call
    ``anyio.from_thread.check_cancelled()``.
    """

    __slots__ = ("_called", "_caught", "_loop_thread", "_open", "_run", "_token", "entered", "seen")

    def __init__(self, run: HasCancelReason, loop_thread: int) -> None:
        # Weak, or each job would be part of a cycle, and its payload stay in memory until cycles are looked for.
        self._run = weakref.ref(run)
        self._loop_thread = loop_thread
        self._token: EventLoopToken | None = None
        self._open: dict[int, list[CancelScope]] = {}
        #: whether the handler itself has cancelled its blocks
        self._called = False
        self._caught = False
        #: whether the handler has ever entered a block that can be interrupted
        self.entered: bool = False
        #: whether the handler has learnt through this object that somebody else cancels its job
        self.seen: bool = False

    @property
    def cancel_called(self) -> bool:
        """Whether this job is being cancelled, for whatever reason. Safe to read in any thread."""
        if self._called:
            return True  # by the handler itself, which learns nothing by that
        if self._reason is not None or self._thread_cancelled():
            self.seen = True
        return self.seen

    @property
    def _reason(self) -> CancelReason | None:
        run = self._run()
        return None if run is None else run.cancel_reason

    @property
    def cancelled_caught(self) -> bool:
        """Whether a block has ended because it was cancelled."""
        return self._caught

    def cancel(self) -> None:
        """Cancel what is inside the blocks, those open now and those opened later. Safe to call in any thread.

        This ends the blocks, not the job: the job's outcome is what the handler then returns or raises.
        """
        self._called = True
        if threading.get_ident() == self._loop_thread:
            self.cancel_blocks()
        elif self._token is not None:
            anyio.from_thread.run_sync(self.cancel_blocks, token=self._token)

    def cancel_blocks(self) -> None:
        """Cancel every open block (in the event loop's thread; the worker does, to deliver a cancel request)."""
        for scopes in self._open.values():
            for scope in scopes:
                scope.cancel()

    def __enter__(self) -> Cancellation:
        if threading.get_ident() != self._loop_thread:
            return self
        self.entered = True
        self._token = current_token()
        scope = CancelScope()
        self._open.setdefault(anyio.get_current_task().id, []).append(scope)
        scope.__enter__()
        if self._called or self._reason is CancelReason.USER:
            scope.cancel()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        if threading.get_ident() != self._loop_thread:
            return None
        task_id = anyio.get_current_task().id
        scopes = self._open[task_id]
        scope = scopes.pop()
        if not scopes:
            del self._open[task_id]
        suppress = scope.__exit__(exc_type, exc, tb)
        if scope.cancelled_caught:
            self._caught = True
        return suppress

    def _thread_cancelled(self) -> bool:
        """Whether the task that waits for this thread is cancelled: covers the scopes that no record names."""
        if threading.get_ident() == self._loop_thread:
            return False
        try:
            anyio.from_thread.check_cancelled()
        except Exception:  # noqa: BLE001  (a thread that AnyIO did not start; the class differs between versions)
            return False
        except BaseException:  # noqa: ASYNC103, BLE001  (the backend's cancellation, whose class a thread cannot ask for)
            return True  # noqa: ASYNC104  (the caller asks whether it is cancelled, nothing more)
        return False

"""What a handler can know of its own run, and the scopes through which it is cancelled.

Where a cancellation comes from decides how it travels. A *cancel request* is a record of this one job: it is delivered
through ``ctx.cancellation`` if the handler has ever entered it, else through the job's own scope. A *shutdown* and a
*lost lease* are scopes around all jobs, a *timeout* is a scope inside the job's: they need no code of ours to fire.

A job may have to *wait to start*, for a free process. Its task is there and its handler is not, so it is treated as
one that was never started: the clock of its timeout stands still, and already the request to stop cancels its scope.
Whether it was still waiting when it was interrupted is a record of this context, which the runner reads.
"""

from __future__ import annotations

import math
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import anyio
import attrs
from anyio import CancelScope, CapacityLimiter

from ._cancellation import Cancellation
from ._frames import awaited_frames
from ._models import CancelReason, Job, JobId, Schedule

#: A handler in a thread and the event loop may ask for one and the same cancellation for the first time at once.
_making = threading.Lock()

_current_context: ContextVar[Context | None] = ContextVar("pgq_anyio_context", default=None)


def current_context() -> Context:
    """The context of the job or scheduled run that the calling code belongs to.

    Works in the handler, in its child tasks, and in threads started with ``anyio.to_thread``.

    :raises LookupError: if the caller is not part of a running job
    """
    context = find_current_context()
    if context is None:
        raise LookupError("no job is running here: current_context() works inside a handler and its child tasks only")
    return context


def find_current_context() -> Context | None:
    """As :func:`current_context`; ``None`` if the caller is not part of a running job."""
    return _current_context.get()


@attrs.frozen(eq=False)
class ExecutionTools:
    """What executors run handlers with; the worker's own, so that no job waits behind the application's threads."""

    thread_limiter: CapacityLimiter
    #: the worker's ``ProcessPool``, if an entrypoint uses it
    process_pool: Any
    #: how long a handler may take to end after it was cancelled (in seconds)
    cancel_grace: float


@attrs.define(eq=False)
class OuterScopes:
    """The scopes around all jobs of a term, outermost first; they exist once the term has opened them."""

    lease: CancelScope
    stop: CancelScope
    #: whether the worker has been asked to stop: no handler may start any more
    is_stopping: Callable[[], bool] = lambda: False
    #: the event loop's
    thread: int = attrs.field(factory=threading.get_ident, init=False)

    def reason(self) -> CancelReason | None:
        """Which of them was cancelled; of several, the outermost."""
        if _called(self.lease):
            return CancelReason.LEASE_LOST
        if _called(self.stop):
            return CancelReason.SHUTDOWN
        return None


def _called(scope: CancelScope) -> bool:
    """``scope.cancel_called``, in any thread: trio looks at its clock, which no other thread has."""
    try:
        return scope.cancel_called
    except RuntimeError:
        return False


@attrs.define(eq=False, slots=True, kw_only=True)
class Context:
    """What a handler can know of its own run."""

    #: the job, or ``None`` in a scheduled run
    job: Job | None
    #: the occurrence, or ``None`` in a job
    schedule: Schedule | None
    #: what the app's ``lifespan`` gave, or ``None``
    resources: Any
    #: what executors run handlers with
    tools: ExecutionTools
    _outer: OuterScopes
    _cancellation: Cancellation | None = attrs.field(default=None, init=False)
    _scope: CancelScope | None = None
    _timeout_scope: CancelScope | None = None
    _requested: Literal[CancelReason.USER, CancelReason.LEASE_LOST] | None = None
    _pause_scope: CancelScope | None = None
    _has_waited: bool = False
    _is_waiting: bool = False
    _awaitable: Awaitable[object] | None = None
    _thread_id: int | None = None

    @property
    def cancellation(self) -> Cancellation:
        """See :class:`Cancellation`."""
        if self._cancellation is None:  # most handlers never ask
            with _making:
                if self._cancellation is None:
                    self._cancellation = Cancellation(self, self._outer.thread)
        return self._cancellation

    @property
    def job_id(self) -> JobId | None:
        """The id of the job, or ``None`` in a scheduled run."""
        return None if self.job is None else self.job.id

    @property
    def cancel_reason(self) -> CancelReason | None:
        """Why this run is being cancelled, if it is: the record of a request, else the outermost cancelled scope."""
        if self._requested is not None:
            return self._requested
        reason = self._outer.reason()
        if reason is None and self._timeout_scope is not None and _called(self._timeout_scope):
            return CancelReason.TIMEOUT
        return reason

    @property
    def times_out_at(self) -> float:
        """When its timeout cancels this run, or has (event loop's clock); infinite if it has none, or does not run."""
        return math.inf if self._timeout_scope is None else self._timeout_scope.deadline

    @property
    def is_requested(self) -> bool:
        """Whether this one run was asked to end, for whatever reason."""
        return self._requested is not None

    @property
    def is_waiting(self) -> bool:
        """Whether the handler has not started yet because it has to wait for something, or never will after that."""
        return self._is_waiting

    @property
    def has_seen_cancellation(self) -> bool:
        """Whether the handler has learnt of its cancellation by looking."""
        return self._cancellation is not None and self._cancellation.seen

    def open(self, scope: CancelScope) -> None:
        """Set the job's own scope (the runner does)."""
        self._scope = scope

    def close(self) -> None:
        """The handler has ended (the runner says): its scope is not to be cancelled any more."""
        self._scope = None

    def open_timeout(self, scope: CancelScope) -> None:
        """Set the scope of the job's timeout (the runner does)."""
        self._timeout_scope = scope

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait in this block for what the handler needs before it can start, such as a free process (executors do).

        In it the job counts as not started: its timeout begins after the block, a cancel request or a stop ends it at
        once, and whatever does leaves the job as if it had never been claimed. There is one such block in a run: once a
        handler may have started, a further one changes nothing.
        """
        if self._has_waited or self._scope is None:
            yield
            return
        self._has_waited = self._is_waiting = True
        timeout = self._timeout_scope
        allowed = math.inf
        # A deadline that has passed cannot be revived.
        if timeout is not None and (remaining := timeout.deadline - anyio.current_time()) > 0:
            allowed, timeout.deadline = remaining, math.inf
        try:
            self._end_wait_if_stopping()
            yield
        finally:
            # What was waited for may have come in the very moment of the request to stop.
            self._end_wait_if_stopping()
            if not outer_cancelled():
                self._is_waiting = False
                if timeout is not None and allowed < math.inf:
                    timeout.deadline = anyio.current_time() + allowed

    def _end_wait_if_stopping(self) -> None:
        if self._outer.is_stopping():
            self.end_wait()

    def end_wait(self) -> None:
        """If the handler still waits to start, it never will (the worker says so when it stops)."""
        if self._is_waiting and self._scope is not None:
            self._scope.cancel()

    async def pause(self, delay: float) -> None:
        """Wait between two calls of the handler (executors do), no longer than until a cancel request.

        :param delay: how long (in seconds)
        """
        if self._requested is None:
            with CancelScope() as self._pause_scope:
                await anyio.sleep(delay)
            self._pause_scope = None

    def follow(self, awaitable: Awaitable[object]) -> Awaitable[object]:
        """Remember what the handler is doing, for the stack of a handler that does not end."""
        self._awaitable = awaitable
        return awaitable

    def follow_thread(self) -> None:
        """Remember that the handler runs in the calling thread."""
        self._thread_id = threading.get_ident()

    def follow_process(self) -> None:
        """Remember that the handler runs in another process: what the executor awaits is no place of the handler's."""
        self._awaitable = None

    def stack(self) -> str:
        """Where the handler is now, as lines of a traceback; empty if it cannot be told (another process)."""
        if self._thread_id is not None:
            frame = sys._current_frames().get(self._thread_id)
            return "" if frame is None else "".join(traceback.format_stack(frame))
        return "".join(traceback.format_list(awaited_frames(self._awaitable)))

    def request_cancel(self, reason: Literal[CancelReason.USER, CancelReason.LEASE_LOST], *, grace: float) -> bool:
        """Deliver a cancel request: to the blocks of a cooperative handler now and to all of it after ``grace``
        seconds, to any other handler at once. Synchronous, for the event loop's thread; not for handlers.

        :return: whether this was the first request
        """
        if self._requested is not None:
            return False
        self._requested = reason
        if self._scope is None:
            return True  # not started: it never will
        if self._pause_scope is not None:
            self._pause_scope.cancel()
        self.cancellation.cancel_blocks()
        if self.cancellation.entered and reason is CancelReason.USER:
            self._scope.deadline = anyio.current_time() + grace
        else:
            self._scope.cancel()
        return True


def outer_cancelled() -> bool:
    """Whether a scope around the calling code is cancelled, seen from outside of all scopes opened by the caller."""
    return anyio.current_effective_deadline() == -math.inf


def entered_context(context: Context) -> AbstractContextManager[None]:
    """Make ``context`` the current one for the block."""
    return _Entered(context)


class _Entered(AbstractContextManager[None]):
    __slots__ = ("_context", "_token")

    def __init__(self, context: Context) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._token = _current_context.set(self._context)

    def __exit__(self, *exc: object) -> None:
        _current_context.reset(self._token)

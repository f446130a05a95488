"""A connection's waiting: running psycopg's protocol generators through AnyIO, and what an interruption does to them.

psycopg runs on asyncio only, and even there not under AnyIO's scopes: they deliver a cancellation again at every
``await``, also inside psycopg's own cleanup. Its protocol is written as generators that say what to wait for, so only
the waiting is ours. The rules under cancellation:

- A statement that is interrupted is cancelled on the server and its answer is read, shielded, within
  ``cleanup_timeout``; then the connection is usable again. If that fails, the connection is closed. Either way the
  cancellation goes on afterwards.
- COMMIT is never cancelled on the server, that would leave its outcome unknown: its answer is waited for.
- What an interruption does is a property of the connection (``Interruption``), changed only by who holds its lock.
"""

from __future__ import annotations

import enum
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import anyio
import psycopg
from anyio.lowlevel import checkpoint
from psycopg import errors, generators, pq
from psycopg.abc import PQGen
from psycopg.rows import AsyncRowFactory, tuple_row
from psycopg.waiting import Wait

from . import _private
from ._connecting import lookup_limiter
from ._waiting import READABLE, drive_connecting, poll_nowait, readable_waiter, wait_ready

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

T = TypeVar("T")

#: Steps that did not have to wait before other tasks get their turn (COPY and pipelines can run long without waiting).
MAX_STEPS: Final = 64

_ACTIVE: Final = pq.TransactionStatus.ACTIVE


class Interruption(enum.Enum):
    """What is done if the wait for the server is interrupted."""

    #: cancel the statement on the server, then read its answer
    CANCEL = enum.auto()
    #: only read the answer
    FINISH = enum.auto()
    #: close the connection: the time for cleaning up is over
    ABORT = enum.auto()


class WaitingConnection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """The part of ``Connection`` that waits."""

    #: Maximum time that a cleanup takes (in seconds), whatever the server does; past it the connection is closed.
    cleanup_timeout: float = 5.0

    def __init__(self, pgconn: PGconn, row_factory: AsyncRowFactory[Any] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.lock = anyio.Lock(fast_acquire=True)  # type: ignore[assignment]
        self._interruption = Interruption.CANCEL
        self._steps = 0
        self._pid = os.getpid()
        self._wait_readable, self._closed_errors = readable_waiter()

    async def wait(self, gen: PQGen[T], interval: float | None = None, timeout: float | None = None) -> T:
        """Run one of psycopg's protocol generators. The caller holds the lock.

        :param interval: not used; psycopg passes it
        :param timeout: not used; put a cancel scope around the call
        """
        if os.getpid() != self._pid:
            self._refuse_fork()
        if self._steps > MAX_STEPS:  # before the generator starts, so that there is nothing to undo
            self._steps = 0
            await checkpoint()
        try:
            want = next(gen)
        except StopIteration as end:
            self._steps += 1
            result: T = end.value
            return result
        try:
            return await self._drive(gen, want)
        except errors.Error:
            raise
        except BaseException:
            await self._recover(gen)  # noqa: ASYNC102  (shielded and bounded inside)
            raise

    async def _drive(self, gen: PQGen[T], want: Wait) -> T:
        fd = self.pgconn.socket
        try:
            while True:
                if want == Wait.R:
                    self._steps = 0
                    await self._wait_readable(fd)
                    ready = READABLE
                else:
                    self._steps += 1
                    if self._steps > MAX_STEPS:
                        self._steps = 0
                        await checkpoint()
                    ready = poll_nowait(fd, want) or await wait_ready(fd, want)
                want = gen.send(ready)
        except StopIteration as end:
            result: T = end.value
            return result
        except self._closed_errors:
            raise errors.OperationalError("the connection was closed while it was in use") from None
        except OSError as error:
            self.abort()
            raise errors.OperationalError(f"the connection's socket failed: {error}") from error

    async def _recover(self, gen: PQGen[Any]) -> None:
        """Make the connection usable again after an interruption, or close it."""
        if self.closed:
            return
        if self.pgconn.transaction_status != _ACTIVE:  # nothing was sent, as when waiting for notifications
            gen.close()
            return
        recovered = False
        try:
            if self._interruption is not Interruption.ABORT:
                with anyio.move_on_after(self.cleanup_timeout, shield=True):
                    recovered = await self._read_answer(gen)
        finally:
            if not recovered:
                self.abort()

    async def _read_answer(self, gen: PQGen[Any]) -> bool:
        """Bring an interrupted generator to its end.

        :return: whether the connection is usable
        """
        try:
            want = gen.send(poll_nowait(self.pgconn.socket, Wait.R))  # the answer may be there already
            if self._interruption is Interruption.CANCEL:
                await self._try_cancel()
            await self._drive(gen, want)
        except StopIteration:
            return True
        except Exception:  # noqa: BLE001
            # The answer, usually "canceled on user request". Who was interrupted hears of the interruption only.
            return not self.closed and self.pgconn.transaction_status != _ACTIVE
        return True

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Ask the server to cancel the statement under way.

        :param timeout: maximum time to wait (in seconds). Defaults to 30.
        :raises psycopg.errors.CancellationTimeout: if the request could not be sent in time
        """
        if not _private.should_cancel(self):
            return
        with anyio.move_on_after(timeout) as scope:
            if pq.version() >= 170000:
                request = self.pgconn.cancel_conn()
                request.start()
                await drive_connecting(generators.cancel(request))
            else:
                await anyio.to_thread.run_sync(
                    self.pgconn.get_cancel().cancel, abandon_on_cancel=True, limiter=lookup_limiter()
                )
        if scope.cancelled_caught:
            raise errors.CancellationTimeout(f"the cancel request could not be sent within {timeout:g} s")

    def abort(self) -> None:
        """Close at once, without waiting for anything; nothing happens if it is closed already.

        The server rolls back what was not committed. A task that waits for this connection gets an
        ``OperationalError``.
        """
        if os.getpid() != self._pid:
            _private.forget(self)  # finish() would end the session of the parent process
            return
        if not self.closed:
            _private.mark_closed(self)
            with suppress(anyio.NoEventLoopError):
                anyio.notify_closing(self.pgconn.socket)
            self.pgconn.finish()

    @contextmanager
    def interrupted_by(self, interruption: Interruption) -> Iterator[None]:
        """Change what an interruption does. The caller holds the lock."""
        before, self._interruption = self._interruption, interruption
        try:
            yield
        finally:
            self._interruption = before

    @contextmanager
    def cleanup(self) -> Iterator[None]:
        """Run a cleanup to its end, whatever is cancelled around it, within ``cleanup_timeout``.

        The caller holds the lock, or takes it inside.

        :raises psycopg.OperationalError: if there was not enough time; the connection is closed then
        """
        with anyio.move_on_after(self.cleanup_timeout, shield=True) as scope, self.interrupted_by(Interruption.ABORT):
            yield
        if scope.cancelled_caught:
            self.abort()
            raise errors.OperationalError(f"connection closed: a cleanup took longer than {self.cleanup_timeout:g} s")

    @asynccontextmanager
    async def locked_for_cleanup(self) -> AsyncIterator[None]:
        """Take the lock and clean up, as ``cleanup`` does; the wait for the lock has the same limit."""
        await self.acquire_for_cleanup()
        try:
            with self.cleanup():
                yield
        finally:
            self.lock.release()

    async def acquire_for_cleanup(self) -> None:
        """Take the lock although the scope around may be cancelled.

        :raises psycopg.OperationalError: if another task holds it for too long; the connection is closed then
        """
        with anyio.move_on_after(self.cleanup_timeout, shield=True) as scope:
            await self.lock.acquire()
        if scope.cancelled_caught:
            self.abort()
            raise errors.OperationalError(
                f"connection closed: another task used it for more than {self.cleanup_timeout:g} s during a cleanup"
            )

    def _check_connection_ok(self) -> None:
        if os.getpid() != self._pid:
            self._refuse_fork()
        super()._check_connection_ok()

    def _refuse_fork(self) -> NoReturn:
        raise RuntimeError(
            f"this connection belongs to process {self._pid} and cannot be used in process {os.getpid()}, which was "
            "forked from it: open another one"
        )

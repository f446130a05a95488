"""psycopg's asynchronous connection, waiting through AnyIO: trio, asyncio and uvloop.

psycopg runs on asyncio only, and even there not under AnyIO's scopes: they deliver a cancellation again at every
``await``, also inside psycopg's own cleanup. Its protocol is written as generators that say what to wait for, so only
the waiting is ours. The rules under cancellation:

- A statement that is interrupted is cancelled on the server and its answer is read, shielded, within
  ``cleanup_timeout``; then the connection is usable again. If that fails, the connection is closed. Either way the
  cancellation goes on afterwards.
- COMMIT is never cancelled on the server, that would leave its outcome unknown: its answer is waited for.
- What an interruption does is a property of the connection (``Interruption``), changed only by who holds its lock.

``stream()`` and ``notifies()`` are refused: async generators that hold the connection while the caller works cannot be
made correct. There are server-side cursors and ``wait_notifies``.
"""

from __future__ import annotations

import enum
import logging
import os
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeVar

import anyio
import psycopg
from anyio.lowlevel import checkpoint
from psycopg import errors, generators, pq
from psycopg.abc import AdaptContext, ConnParam, PQGen
from psycopg.rows import AsyncRowFactory
from psycopg.waiting import Ready, Wait

from . import _private
from ._connecting import lookup_limiter, open_pgconn
from ._waiting import READABLE, drive_connecting, poll_nowait, readable_waiter, wait_ready
from .copying import Cursor
from .pipeline import Pipeline
from .transaction import Transaction

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

    from .statement import Prepared, Statement

T = TypeVar("T")

logger = logging.getLogger("pgq_anyio.db")

#: Steps that did not have to wait before other tasks get their turn (COPY and pipelines can run long without waiting).
MAX_STEPS: Final = 64

_ACTIVE: Final = pq.TransactionStatus.ACTIVE
_IDLE: Final = pq.TransactionStatus.IDLE


class Interruption(enum.Enum):
    """What is done if the wait for the server is interrupted."""

    #: cancel the statement on the server, then read its answer
    CANCEL = enum.auto()
    #: only read the answer
    FINISH = enum.auto()
    #: close the connection: the time for cleaning up is over
    ABORT = enum.auto()


class Connection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A connection to PostgreSQL, for one event loop and one process."""

    #: Maximum time that a cleanup takes (in seconds), whatever the server does; past it the connection is closed.
    cleanup_timeout: float = 5.0
    #: Whether ``Statement`` may leave prepared statements on the server.
    use_statements: bool = True

    def __init__(self, pgconn: PGconn, row_factory: AsyncRowFactory[Any] | None = None) -> None:
        super().__init__(pgconn, *([row_factory] if row_factory is not None else []))
        self.lock = anyio.Lock(fast_acquire=True)  # type: ignore[assignment]
        self.cursor_factory = Cursor
        self.statements: dict[Statement, Prepared] = {}
        #: Distinguishes the names of our statements from those that a pooler's other clients left behind.
        self.statement_count = 0
        self.statement_suffix = secrets.token_hex(4)
        self._interruption = Interruption.CANCEL
        self._steps = 0
        self._pid = os.getpid()
        self._notifications: deque[psycopg.Notify] = deque()
        self._wait_readable, self._closed_errors = readable_waiter()
        self.add_notify_handler(self._notifications.append)

    @classmethod
    async def connect(  # type: ignore[override]
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = True,
        prepare_threshold: int | None = 5,
        use_statements: bool = True,
        context: AdaptContext | None = None,
        row_factory: AsyncRowFactory[Any] | None = None,
        cursor_factory: type[Cursor] | None = None,
        **kwargs: ConnParam,
    ) -> Self:
        """Open a connection.

        :param conninfo: a DSN in either of libpq's forms; what it leaves out comes from libpq's ``PG*`` variables
        :param autocommit: whether each statement is its own transaction. Defaults to ``True``, unlike psycopg.
        :param prepare_threshold: executions after which psycopg prepares a statement; ``None`` = never. Defaults to 5.
        :param use_statements: ``False`` behind a pooler that does not track prepared statements
        :param kwargs: parameters that replace those of the DSN
        :raises psycopg.OperationalError: if no host can be connected to
        """
        conn = cls(await open_pgconn(conninfo, kwargs), row_factory)
        _private.set_options(conn, autocommit=autocommit, context=context)
        conn.prepare_threshold = prepare_threshold
        conn.use_statements = use_statements
        if cursor_factory is not None:
            conn.cursor_factory = cursor_factory
        return conn

    # -- waiting -------------------------------------------------------------------------------------------------------

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
            await self._recover(gen)
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

    # -- closing -------------------------------------------------------------------------------------------------------

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

    async def close(self) -> None:
        """Close the connection, without waiting."""
        self.abort()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Commit, or roll back after an error, and close."""
        try:
            if not self.closed and self.pgconn.transaction_status != _IDLE:
                if exc_val is None:
                    await self.commit()
                else:
                    await self.reset()
        finally:
            self.abort()

    async def reset(self) -> None:
        """Roll back what is open, shielded and within ``cleanup_timeout``; if that fails, close. Never raises."""
        try:
            async with self.locked_for_cleanup():
                await self.wait(_private.rollback_steps(self))
        except psycopg.Error as error:
            logger.warning("a connection was closed because it could not be rolled back: %s", error)
            self.abort()

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

    # -- transactions and pipelines ------------------------------------------------------------------------------------

    async def commit(self) -> None:
        """Commit. An interruption waits for the answer, since the outcome would be unknown without."""
        async with self.lock:
            with self.interrupted_by(Interruption.FINISH):
                await self.wait(_private.commit_steps(self))

    async def rollback(self) -> None:
        """Roll back."""
        async with self.lock:
            with self.interrupted_by(Interruption.FINISH):
                await self.wait(_private.rollback_steps(self))

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[Transaction]:
        """Run a block in a transaction, or in a savepoint if one is open.

        An exception rolls back, a cancellation too. A cancellation that arrives during COMMIT goes on after the commit.

        :param savepoint_name: name for the savepoint. Defaults to one of psycopg's.
        :param force_rollback: roll back at the end in any case
        """
        transaction = Transaction(self, savepoint_name, force_rollback)
        if _private.current_pipeline(self) is not None:
            async with self.pipeline(), transaction, self.pipeline():
                yield transaction
        else:
            async with transaction:
                yield transaction

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[Pipeline]:
        """Send statements without waiting for the answers of earlier ones."""
        async with self.lock:
            _private.check_usable(self)
            pipeline = _private.current_pipeline(self)
            if pipeline is None:
                pipeline = Pipeline(self)
                _private.set_pipeline(self, pipeline)
        assert isinstance(pipeline, Pipeline)
        try:
            async with pipeline:
                yield pipeline
        finally:
            if pipeline.level == 0:
                _private.set_pipeline(self, None)

    @asynccontextmanager
    async def _pipeline_nolock(self) -> AsyncIterator[Pipeline]:
        """The pipeline that ``executemany`` opens while it holds the lock."""
        pipeline = Pipeline(self, has_lock=True)
        _private.set_pipeline(self, pipeline)
        try:
            async with pipeline:
                yield pipeline
        finally:
            _private.set_pipeline(self, None)

    # -- notifications -------------------------------------------------------------------------------------------------

    async def wait_notifies(self, timeout: float | None = None) -> list[psycopg.Notify]:
        """Wait for notifications of the channels that this connection listens to.

        Cancelling it loses none: they are returned by the next call. Other uses of the connection wait meanwhile.

        :param timeout: maximum time to wait (in seconds), or ``None`` to wait for ever
        :return: what has arrived, at least one; empty if the time is over
        """
        async with self.lock:
            if not self._notifications:
                if self.pgconn.pipeline_status != pq.PipelineStatus.OFF:
                    raise errors.ProgrammingError("wait_notifies() cannot be used in a pipeline")
                _private.check_usable(self)
                with anyio.move_on_after(timeout):
                    await self.wait(self._notification_steps())
            received = list(self._notifications)
            self._notifications.clear()
            return received

    def _notification_steps(self) -> PQGen[None]:
        pgconn = self.pgconn
        while True:
            # libpq may have read some together with the answer to a statement.
            while (notification := pgconn.notifies()) is not None:
                if pgconn.notify_handler is not None:
                    pgconn.notify_handler(notification)
            if self._notifications:
                return
            yield Wait.R
            pgconn.consume_input()

    def notifies(
        self, *, timeout: float | None = None, stop_after: int | None = None
    ) -> AsyncGenerator[psycopg.Notify]:
        """Refused: use ``wait_notifies``."""
        raise errors.NotSupportedError("use wait_notifies()")

    def _refuse_fork(self) -> NoReturn:
        raise RuntimeError(
            f"this connection belongs to process {self._pid} and cannot be used in process {os.getpid()}, which was "
            "forked from it: open another one"
        )


__all__ = ["Connection", "Interruption", "Ready"]

"""The connection class: psycopg's asynchronous connection on trio, asyncio and uvloop.

How it waits and what a cancellation does is in ``_core``. Every block (``transaction``, ``pipeline``, ``copy``) ends
correctly inside a cancelled scope.

``stream()`` and ``notifies()`` are refused: async generators that hold the connection while the caller works cannot be
made correct. There are server-side cursors and ``wait_notifies``.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
import psycopg
from psycopg import errors, pq
from psycopg.abc import AdaptContext, ConnParam, PQGen
from psycopg.rows import AsyncRowFactory, tuple_row
from psycopg.waiting import Wait

from . import _private
from ._connecting import open_pgconn
from ._core import Interruption, WaitingConnection
from .copying import Cursor, ServerCursor
from .pipeline import Pipeline
from .pooled import TransactionSettings, greet
from .transaction import Transaction

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

    from .statement import Prepared, Statement

logger = logging.getLogger("pgq_anyio.db")

NotifyHandler = Callable[[pq.PGnotify], None]

_IDLE: Final = pq.TransactionStatus.IDLE


class Connection(WaitingConnection):
    """A connection to PostgreSQL, for one event loop and one process."""

    #: Whether ``Statement`` may leave prepared statements on the server.
    use_statements: bool = True
    #: Whether a transaction pooler stands between: what a session keeps is lost there, or left to others.
    is_pooled: bool = False
    #: Made by each transaction for itself, because a session cannot keep them.
    transaction_settings: TransactionSettings | None = None

    def __init__(self, pgconn: PGconn, row_factory: AsyncRowFactory[Any] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.cursor_factory = Cursor
        self.server_cursor_factory = ServerCursor
        self.statements: dict[Statement, Prepared] = {}
        self.statement_count = 0
        #: Distinguishes the names of our statements from those that a pooler's other clients left behind.
        self.statement_suffix = secrets.token_hex(4)
        self._notifications: deque[psycopg.Notify] = deque()
        self.add_notify_handler(self._notifications.append)
        pgconn.notify_handler = _tolerant(pgconn.notify_handler)

    @classmethod
    async def connect(  # type: ignore[override]
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = True,
        prepare_threshold: int | None = 5,
        use_statements: bool | None = True,
        pooled: bool | None = False,
        settings: Mapping[str, str] | None = None,
        context: AdaptContext | None = None,
        row_factory: AsyncRowFactory[Any] = tuple_row,
        cursor_factory: type[Cursor] | None = None,
        **kwargs: ConnParam,
    ) -> Self:
        """Open a connection.

        :param conninfo: a DSN in either of libpq's forms; what it leaves out comes from libpq's ``PG*`` variables
        :param autocommit: whether each statement is its own transaction. Defaults to ``True``, unlike psycopg.
        :param prepare_threshold: executions after which psycopg prepares a statement; ``None`` = never. Defaults to 5.
        :param use_statements: ``False`` behind a pooler that does not track prepared statements: neither psycopg nor
            ``Statement`` prepares any then; ``None`` means "unless it is pooled"
        :param pooled: whether it leads through a transaction pooler; ``None`` looks, for which the server is asked
        :param settings: server settings for all statements of this connection; through a pooler, for all ``Statement``s
        :param kwargs: parameters that replace those of the DSN
        :raises psycopg.OperationalError: if no host can be connected to
        """
        conn = cls(await open_pgconn(conninfo, kwargs), row_factory)
        # As it is told to be only afterwards: the greeting opens no transaction and is read as ours.
        _private.set_options(conn, autocommit=True, context=None)
        try:
            with conn.interrupted_by(Interruption.ABORT):
                conn.is_pooled = await greet(conn, pooled=pooled, settings=settings or {})
        except BaseException:
            conn.abort()
            raise
        _private.set_options(conn, autocommit=autocommit, context=context)
        if conn.is_pooled and settings:
            conn.transaction_settings = TransactionSettings(settings)
        conn.use_statements = not conn.is_pooled if use_statements is None else use_statements
        conn.prepare_threshold = prepare_threshold if conn.use_statements else None
        if cursor_factory is not None:
            conn.cursor_factory = cursor_factory
        return conn

    def send_last(self, query: str, params: Mapping[str, Any]) -> None:
        """Send a statement whose answer nobody will wait for: the process ends now. The server carries it out all the
        same, since it looks for its client only when it has something to say to it.

        :param query: one statement or several, with psycopg's named placeholders; several are one transaction
        :raises psycopg.OperationalError: if a statement is under way, or the connection is lost
        """
        text = psycopg.AsyncClientCursor(self).mogrify(query, params)
        self.pgconn.send_query(text.encode())
        self.pgconn.flush()

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
                    await self.commit()  # noqa: ASYNC102  (COMMIT is waited for, see Interruption)
                else:
                    await self.reset()  # noqa: ASYNC102  (shielded and bounded inside)
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

    def _deallocate(self, name: bytes | None) -> PQGen[None]:
        """Forget our statements too, where psycopg has the server forget all: after a rollback, if it prepared any."""
        if name is None:
            self.statements.clear()
        return super()._deallocate(name)

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


def _tolerant(handle: NotifyHandler | None) -> NotifyHandler:
    """Bear notifications that are no text: in a database without an encoding anybody can send some, and whatever
    statement is under way when one arrives would fail.
    """

    def try_to_handle(notification: pq.PGnotify) -> None:
        try:
            if handle is not None:
                handle(notification)
        except UnicodeDecodeError:
            logger.debug("a notification that is no text was ignored: %r", notification.extra[:100])

    return try_to_handle

"""Cursors, which end correctly inside a cancelled scope: COPY, and server-side cursors."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, cast

from psycopg import AsyncCopy, AsyncCursor, AsyncServerCursor, errors
from psycopg.abc import Params, Query
from psycopg.copy import AsyncWriter

from . import _private

if TYPE_CHECKING:
    from .connection import Connection


logger = logging.getLogger("pgq_anyio.db")


class Copy(AsyncCopy):
    """A COPY under way. After an error, and when cancelled, nothing of a COPY FROM is kept."""

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        if exc_val is None:
            await super().__aexit__(exc_type, exc_val, exc_tb)  # noqa: ASYNC102  (the end of a COPY may be interrupted: it is rolled back)
            return
        conn = cast("Connection", self.connection)
        try:
            with conn.cleanup():
                await super().__aexit__(exc_type, exc_val, exc_tb)  # noqa: ASYNC102  (conn.cleanup() shields and bounds)
        except errors.OperationalError as failure:
            logger.warning("a COPY was ended by closing its connection: %s", failure)
        if not conn.closed and _private.is_busy(conn.pgconn):
            conn.abort()


class Cursor(AsyncCursor[tuple[Any, ...]]):
    """psycopg's cursor. ``stream()`` is refused: use a server-side cursor."""

    @asynccontextmanager
    async def copy(
        self, statement: Query, params: Params | None = None, *, writer: AsyncWriter | None = None
    ) -> AsyncIterator[Copy]:
        """Start a COPY and give the object to read or write rows with.

        :param statement: the COPY statement
        :param params: its parameters
        :param writer: where the data goes instead of to the server
        """
        conn = cast("Connection", self._conn)
        async with conn.lock:
            try:
                await conn.wait(_private.start_copy_steps(self, statement, params))
            except BaseException:
                if not conn.closed and _private.is_busy(conn.pgconn):
                    conn.abort()  # interrupted when the server was in COPY mode already
                raise
            try:
                async with Copy(self, writer=writer) as copy:
                    yield copy
            finally:
                if not conn.closed and _private.is_busy(conn.pgconn):
                    conn.abort()
        _private.select_first_result(self)

    def stream(self, *args: object, **kwargs: object) -> NoReturn:
        """Refused: it holds the connection while the caller works."""
        raise errors.NotSupportedError("stream() is not supported: use a server-side cursor")


class ServerCursor(AsyncServerCursor[tuple[Any, ...]]):
    """psycopg's server-side cursor, closed although the scope around may be cancelled."""

    async def close(self) -> None:
        """Close it on the server, unless the transaction's end has done that."""
        conn = cast("Connection", self._conn)
        if self.closed:
            return
        try:
            if not conn.closed:
                async with conn.locked_for_cleanup():
                    await conn.wait(_private.close_cursor_steps(self))
        finally:
            _private.mark_cursor_closed(self)

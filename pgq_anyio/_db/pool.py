"""A bounded pool of connections without a task of its own.

- Connections are opened when they are needed; the one given back last is taken first.
- An idle connection has nothing to read unless the server closed it, so every connection is checked for that when it is
  taken (about 1 µs, no round trip). After ``check_after`` seconds of idleness, and after an error, it is asked too.
- A connection that was given back inside a transaction is rolled back, shielded and bounded; one that is still busy is
  closed. How it begins its transactions (``autocommit``, ``isolation_level`` …) is again what it was: who takes it next
  would lose what he does. Session state (``SET``, ``LISTEN``, temporary tables) is the business of who makes it.
- A task group in here would wrap the errors of users in groups, so there is none: old and idle connections are closed
  when others are given back.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self

import anyio
import attrs
import psycopg
from psycopg import errors, pq
from psycopg.waiting import Wait

from .._errors import ConfigurationError
from .._settings import redacted
from . import _private
from ._waiting import poll_nowait
from .connection import Connection

_IDLE: Final = pq.TransactionStatus.IDLE
_ACTIVE: Final = pq.TransactionStatus.ACTIVE

#: Seconds after which an idle connection is asked whether it still works before it is used.
CHECK_AFTER: Final = 30.0
#: Seconds after which an idle connection is closed, and after which any is replaced.
MAX_IDLE: Final = 300.0
MAX_LIFETIME: Final = 3600.0
#: Maximum time for that question (in seconds).
CHECK_TIMEOUT: Final = 5.0


class PoolTimeout(psycopg.OperationalError):
    """Raised if no connection of the pool was to be had in time."""


@attrs.define(eq=False)
class _Slot:
    """A connection of the pool."""

    conn: Connection
    opened_at: float
    options: tuple[object, ...]
    idle_since: float = 0.0
    suspect: bool = False


class Pool:
    """A bounded pool; an async context manager.

    :param conninfo: a DSN in either of libpq's forms
    :param max_size: maximum number of connections. Defaults to 10.
    :param connect_kwargs: further arguments of ``Connection.connect``
    """

    def __init__(self, conninfo: str, *, max_size: int = 10, **connect_kwargs: Any) -> None:
        if type(max_size) is not int or max_size < 1:
            raise ConfigurationError(f"max_size must be a whole number of at least 1, not {max_size!r}")
        self.max_size = max_size
        self._conninfo = conninfo
        self._connect_kwargs = connect_kwargs
        self._idle: deque[_Slot] = deque()
        self._slots: anyio.Semaphore | None = None
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<Pool of {self.max_size} to {redacted(self._conninfo)!r}>"

    @property
    def is_open(self) -> bool:
        """Whether connections can be taken."""
        return self._slots is not None

    async def __aenter__(self) -> Self:
        if self._slots is not None:
            raise RuntimeError("the pool is open already")
        self._pid = os.getpid()
        self._slots = anyio.Semaphore(self.max_size, max_value=self.max_size, fast_acquire=True)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections at once, and those in use when they are given back."""
        self._slots = None
        while self._idle:
            self._idle.pop().conn.abort()

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Connection]:
        """Take a connection for the length of a block.

        :param timeout: maximum time to wait for one (in seconds), or ``None`` to wait for ever
        :raises PoolTimeout: if there was none in time
        :raises psycopg.OperationalError: if a new one cannot be opened
        """
        slots = self._open_slots()
        with anyio.move_on_after(timeout) as scope:
            slot = await self._take(slots)
        if scope.cancelled_caught:
            raise PoolTimeout(
                f"no connection within {timeout:g} s: the pool has {self.max_size}; raise max_size, and where a "
                "connection is held already, use that one (connection=) instead of another"
            )
        try:
            yield slot.conn
        except BaseException:
            slot.suspect = True
            raise
        finally:
            await self._give_back(slot, slots)  # noqa: ASYNC102  (shielded and bounded inside)

    def _open_slots(self) -> anyio.Semaphore:
        if self._slots is None:
            raise errors.InterfaceError("the pool is not open")
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"this pool was opened in process {self._pid} and cannot be used in process {os.getpid()}, which was "
                "forked from it: open another one"
            )
        return self._slots

    async def _take(self, slots: anyio.Semaphore) -> _Slot:
        await slots.acquire()
        slot: _Slot | None = None
        try:
            while self._idle:
                slot = self._idle.pop()
                if await self._works(slot):
                    slot.suspect = False
                    return slot
                slot.conn.abort()
            slot = None
            conn = await Connection.connect(self._conninfo, **self._connect_kwargs)
            return _Slot(conn, anyio.current_time(), _private.transaction_options(conn))
        except BaseException:
            if slot is not None:
                slot.conn.abort()
            slots.release()
            raise

    async def _give_back(self, slot: _Slot, slots: anyio.Semaphore) -> None:
        """Never raises, and takes at most the connection's ``cleanup_timeout``."""
        conn = slot.conn
        try:
            if not conn.closed and conn.pgconn.transaction_status not in (_IDLE, _ACTIVE):
                await conn.reset()
        finally:
            now = slot.idle_since = anyio.current_time()
            if self._slots is not slots or not _is_clean(conn) or now - slot.opened_at > MAX_LIFETIME:
                conn.abort()
            else:
                _private.set_transaction_options(conn, slot.options)
                self._idle.append(slot)
            while self._idle and now - self._idle[0].idle_since > MAX_IDLE:
                self._idle.popleft().conn.abort()
            slots.release()

    async def _works(self, slot: _Slot) -> bool:
        conn = slot.conn
        try:
            # One read sees a last message of the server but not the end of the stream.
            while not conn.closed and poll_nowait(conn.pgconn.socket, Wait.R):
                conn.pgconn.consume_input()
            if conn.closed:
                return False
            if slot.suspect or anyio.current_time() - slot.idle_since > CHECK_AFTER:
                with anyio.move_on_after(CHECK_TIMEOUT):
                    await conn.execute("")
                    return True
                return False
        except psycopg.Error:
            return False
        return True


def _is_clean(conn: Connection) -> bool:
    return (
        not conn.closed
        and _private.current_pipeline(conn) is None
        and conn.pgconn.pipeline_status == pq.PipelineStatus.OFF
        and conn.pgconn.transaction_status == _IDLE
    )

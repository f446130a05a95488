"""``PsycopgDriver``: where the database is, a pool for everybody, and dedicated connections for services."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import anyio.lowlevel

from .._durations import seconds
from .._errors import ConfigurationError, shown
from .._settings import read_dsn, redacted
from .connection import Connection
from .defaults import defaults_for
from .pool import Pool


class PsycopgDriver:
    """Connections to one database through psycopg; an async context manager that can be entered once at a time.

    It is bound to the event loop that entered it.

    :param conninfo: a DSN in either of libpq's forms; what it leaves out comes from libpq's ``PG*`` variables
    :param max_size: maximum number of connections in the pool. Defaults to 10.
    :param direct_conninfo: another way to the same database, around the pooler that ``conninfo`` goes through, for what
        needs a session of its own: LISTEN. Without one, workers behind a pooler find work by polling.
    :param pooled: whether ``conninfo`` goes through a pooler that gives out sessions by transaction. Defaults to
        ``None``: each connection looks. A pooler that keeps sessions looks the same, and is treated in the same, safe
        way; ``False`` says that ``conninfo`` can be used like a server.
    :param prepare: whether prepared statements may be left on the server. Defaults to ``None``: unless there is a
        pooler. ``True`` if that one tracks them, as PgBouncer from 1.21 on does with ``max_prepared_statements``.
    :raises ConfigurationError: if a DSN cannot be read, and then the message quotes nothing of it; or an option cannot
        be used
    """

    def __init__(
        self,
        conninfo: str = "",
        *,
        max_size: int = 10,
        direct_conninfo: str | None = None,
        pooled: bool | None = None,
        prepare: bool | None = None,
    ) -> None:
        # Read here and not by whoever connects: libpq and the resolver quote pieces of what they cannot read.
        self.conninfo: str = read_dsn(conninfo, "conninfo")
        self.direct_conninfo: str | None = (
            None if direct_conninfo is None else read_dsn(direct_conninfo, "direct_conninfo")
        )
        for name, flag in (("pooled", pooled), ("prepare", prepare)):
            if not (flag is None or isinstance(flag, bool)):
                raise ConfigurationError(f"{name} must be True, False or None, not {flag!r}")
        self.pooled = pooled
        self.prepare = prepare
        self._pool = Pool(self.conninfo, max_size=max_size)
        self._token: anyio.lowlevel.EventLoopToken | None = None
        self._pid = 0

    def __repr__(self) -> str:
        return f"<PsycopgDriver {redacted(self.conninfo)!r} ({'open' if self.is_open else 'closed'})>"

    @property
    def is_open(self) -> bool:
        """Whether the pool is open."""
        return self._token is not None

    async def __aenter__(self) -> Self:
        if self._token is not None:
            raise RuntimeError(f"{self!r} is open already")
        options = self._options(self.conninfo, "pgq_anyio")
        pool = Pool(self.conninfo, max_size=self._pool.max_size, **options)
        await pool.__aenter__()
        self._pool = pool
        self._token = anyio.lowlevel.current_token()
        self._pid = os.getpid()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self._token = None
        self._pool.close()

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Connection]:
        """Take a connection from the pool for the length of a block.

        :param timeout: maximum time to wait for one (in seconds), or ``None`` to wait for ever
        :raises ConfigurationError: if ``timeout`` is no such time
        :raises RuntimeError: if the driver is not open, or was opened by another event loop or process
        """
        if timeout is not None:
            timeout = seconds("timeout", timeout)
        if self._token is None:
            raise RuntimeError(f"{self!r} is not open: use it in 'async with'")
        self._check_place()
        async with self._pool.connection(timeout) as conn:
            yield conn

    async def connect(self, *, role: str, direct: bool = False, **kwargs: Any) -> Connection:
        """Open a connection of one's own, which the caller closes.

        :param role: what it is for; shown in ``pg_stat_activity`` as ``pgq_anyio <role>``
        :param direct: whether it needs a session of its own: ``direct_conninfo`` is used if there is one, and trusted
        :param kwargs: further arguments of ``Connection.connect``
        :raises ConfigurationError: if ``role`` cannot be shown
        :raises psycopg.OperationalError: if the server cannot be reached
        """
        is_text = isinstance(role, str)
        if not is_text or not role.isprintable():
            raise ConfigurationError(f"role must be a printable text, not {shown(role)}")
        self._check_place()
        around = self.direct_conninfo if direct else None
        conninfo = self.conninfo if around is None else around
        options = self._options(conninfo, f"pgq_anyio {role}")
        options["application_name"] = f"pgq_anyio {role}"
        if around is not None:
            options |= {"pooled": False, "use_statements": True}
        return await Connection.connect(conninfo, **{**options, **kwargs})

    def _check_place(self) -> None:
        if self._token is None:
            return
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"this driver was opened in process {self._pid} and cannot be used in process {os.getpid()}, which was "
                "forked from it: make another one"
            )
        here = anyio.lowlevel.current_token()
        if here != self._token:
            raise RuntimeError(
                f"this driver was opened in the event loop {_describe(self._token)} and cannot be used in "
                f"{_describe(here)}: make one for each"
            )

    def _options(self, conninfo: str, application_name: str) -> dict[str, Any]:
        defaults = defaults_for(conninfo, application_name=application_name)
        return {"pooled": self.pooled, "use_statements": self.prepare, **defaults}


def _describe(token: anyio.lowlevel.EventLoopToken) -> str:
    """Name an event loop: its backend, and a number that tells two of them apart."""
    native = token.native_token
    return f"{type(native).__module__}.{type(native).__qualname__} at {id(native):#x}"

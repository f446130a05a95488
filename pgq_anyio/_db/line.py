"""A dedicated connection that is opened when it is needed and replaced when it is broken.

The worker's services each have one, so that a heartbeat never waits for a pool that handlers drain. No code but ours
uses them: their statements need not say that they mean PostgreSQL's own functions and operators, because there are no
others in the search path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
import attrs

from .connection import Connection
from .driver import PsycopgDriver

#: Nothing that somebody else has made is taken for PostgreSQL's own, and each statement has a snapshot of its own and
#: passes by rows that others have taken since, whatever the role, the database or the DSN say.
SETTINGS: Final = {"search_path": "pg_catalog, pg_temp", "default_transaction_isolation": "read committed"}


@attrs.define(eq=False)
class Line:
    """One role's connection to the database."""

    driver: PsycopgDriver
    #: shown in ``pg_stat_activity`` as ``pgq_anyio <role>``
    role: str
    #: server settings of this connection
    settings: dict[str, str] = attrs.field(factory=dict)
    #: whether this is the connection that needs a session of its own (LISTEN)
    direct: bool = False
    #: how long an interrupted statement may take to be cancelled on the server before the connection is closed instead
    #: (in seconds); ``None`` for the connection's own default
    cleanup_timeout: float | None = None
    #: how often a connection was opened
    opened: int = attrs.field(default=0, init=False)
    #: called when a connection had to be replaced: the server may have crashed
    on_reopened: Callable[[], None] | None = attrs.field(default=None, init=False)
    _conn: Connection | None = attrs.field(default=None, init=False)
    _opening: anyio.Lock = attrs.field(factory=anyio.Lock, init=False)

    async def connection(self) -> Connection:
        """The connection, opened if there is none that works.

        :raises psycopg.OperationalError: if the server cannot be reached
        """
        if self._conn is None or self._conn.closed:
            async with self._opening:
                if self._conn is None or self._conn.closed:
                    self._conn = await self._open()
                    self.opened += 1
                    if self.opened > 1 and self.on_reopened is not None:
                        self.on_reopened()
        return self._conn

    async def _open(self) -> Connection:
        conn = await self.driver.connect(role=self.role, direct=self.direct, settings={**SETTINGS, **self.settings})
        if self.cleanup_timeout is not None:
            conn.cleanup_timeout = self.cleanup_timeout
        return conn

    def limit_cleanup(self, timeout: float) -> None:
        """Change ``cleanup_timeout``, for the connection that is open too."""
        self.cleanup_timeout = timeout
        if self._conn is not None:
            self._conn.cleanup_timeout = timeout

    def close(self) -> None:
        """Close at once, without waiting."""
        if self._conn is not None:
            self._conn.abort()
            self._conn = None

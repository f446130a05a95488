"""Pipeline blocks that end correctly inside a cancelled scope."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from psycopg import AsyncPipeline, pq

if TYPE_CHECKING:
    from .connection import Connection


class Pipeline(AsyncPipeline):
    """psycopg's pipeline; if the connection cannot leave pipeline mode, it is closed.

    :param has_lock: whether the caller holds the connection's lock for the whole block
    """

    def __init__(self, conn: Connection, *, has_lock: bool = False) -> None:
        super().__init__(cast("Any", conn), _no_lock=True)
        self._has_lock = has_lock

    async def __aenter__(self) -> Self:
        if self._has_lock:
            return await self._enter()
        async with self._conn.lock:
            return await self._enter()

    async def _enter(self) -> Self:
        level = self.level
        try:
            return await super().__aenter__()
        except BaseException as error:
            # Entering a nested pipeline waits for answers. Interrupted there, it is entered and nobody will leave it.
            if self.level > level:
                self._exit(error)
            raise

    async def sync(self) -> None:
        """Send what was not sent, and wait for all answers."""
        async with self._conn.lock:
            await super().sync()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Wait for all answers. If the scope around is cancelled, what is under way is cancelled on the server."""
        conn = cast("Connection", self._conn)
        if not self._has_lock:
            await conn.acquire_for_cleanup()  # noqa: ASYNC102  (shielded and bounded inside)
        try:
            await super().__aexit__(exc_type, exc_val, exc_tb)  # noqa: ASYNC102  (its waits are interrupted by rule, see Interruption)
        finally:
            if self.level == 0 and not conn.closed and self.pgconn.pipeline_status != pq.PipelineStatus.OFF:
                conn.abort()
            if not self._has_lock:
                conn.lock.release()

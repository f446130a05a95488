"""Transaction blocks that end correctly inside a cancelled scope."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from psycopg import AsyncTransaction, errors, pq

from . import _private
from ._core import Interruption

if TYPE_CHECKING:
    from .connection import Connection


logger = logging.getLogger("pgq_anyio.db")


class Transaction(AsyncTransaction):
    """A transaction or savepoint.

    - An interrupted BEGIN or SAVEPOINT is rolled back at once, shielded: the block is never entered.
    - COMMIT is waited for, and never cancelled on the server. A block in which nothing is left to be committed ends
      with an error, also if somebody has swallowed that of the statement: ``move_on_after`` does.
    - ROLLBACK is shielded. If it takes longer than the connection's ``cleanup_timeout`` the connection is closed, which
      rolls back too.
    """

    async def __aenter__(self) -> Self:
        conn = cast("Connection", self._conn)
        async with conn.lock:
            self._check_unused()
            try:
                with conn.interrupted_by(Interruption.FINISH):
                    await conn.wait(_private.enter_steps(self))
            except BaseException as error:
                if self.status != self.Status.NOT_STARTED:
                    await self._roll_back(conn, error)  # noqa: ASYNC102  (shielded and bounded inside)
                raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> bool:
        conn = cast("Connection", self._conn)
        if self.pgconn.status != pq.ConnStatus.OK:
            self.status = self.Status.FAILED
            if exc_val is None and not self.force_rollback:
                raise errors.OperationalError("the connection was closed inside of the block: nothing was committed")
            return False
        await conn.acquire_for_cleanup()  # noqa: ASYNC102  (as above)
        try:
            if exc_val is not None:
                return await self._roll_back(conn, exc_val)  # noqa: ASYNC102  (as above)
            if self.pgconn.transaction_status == pq.TransactionStatus.INERROR and not self.force_rollback:
                # To a COMMIT the server would answer with a ROLLBACK, and nobody would look.
                failed = errors.InFailedSqlTransaction(
                    "a statement inside of the block has failed or was cancelled: nothing of the block is committed"
                )
                await self._roll_back(conn, failed)  # noqa: ASYNC102  (as above)
                raise failed
            with conn.interrupted_by(Interruption.FINISH):
                return await conn.wait(_private.exit_steps(self, None))  # noqa: ASYNC102  (COMMIT is waited for, see Interruption)
        finally:
            conn.lock.release()

    def _check_unused(self) -> None:
        if self.status != self.Status.NOT_STARTED:
            raise TypeError("a transaction block can be used only once")

    async def _roll_back(self, conn: Connection, error: BaseException) -> bool:
        """Roll back. The lock is held.

        :return: whether the error asked for nothing but the rollback
        """
        if self.pgconn.status != pq.ConnStatus.OK:
            self.status = self.Status.FAILED
            return False
        try:
            with conn.cleanup():
                return await conn.wait(_private.exit_steps(self, error))
        except errors.OperationalError as failure:
            # The connection is closed, so the server rolls back. Whoever used the block hears of his own error.
            logger.warning("a transaction was ended by closing its connection: %s", failure)
            self.status = self.Status.FAILED
            return False

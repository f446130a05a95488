"""Several statements in one round trip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from psycopg import pq

from . import _private
from .statement import Statement, error_of, exchange, forget_outdated, is_outdated, prepare

if TYPE_CHECKING:
    from .connection import Connection

_FATAL_ERROR: Final = pq.ExecStatus.FATAL_ERROR
_IDLE: Final = pq.TransactionStatus.IDLE


async def batch(conn: Connection, /, *calls: tuple[Statement, dict[str, object]]) -> list[list[tuple[Any, ...]]]:
    """Execute statements in one round trip and one (implicit) transaction.

    A statement that begins or commits a transaction is allowed: what follows a commit is a transaction of its own.
    After an error a transaction that began in the batch is rolled back.

    :return: the rows of each call
    """
    arranged = [(statement, statement.arrange(params)) for statement, params in calls]
    async with conn.lock:
        was_idle = conn.pgconn.transaction_status == _IDLE
        try:
            return await _execute(conn, arranged, may_repeat=was_idle)
        except BaseException:
            if was_idle and not conn.closed and conn.pgconn.transaction_status != _IDLE:
                with conn.cleanup():
                    await conn.wait(_private.rollback_steps(conn))  # noqa: ASYNC102  (conn.cleanup() shields and bounds)
            raise


async def _execute(
    conn: Connection, calls: list[tuple[Statement, list[object]]], *, may_repeat: bool
) -> list[list[tuple[Any, ...]]]:
    ready = [(conn.statements.get(statement) or await prepare(conn, statement), values) for statement, values in calls]
    if not conn.autocommit:
        await conn.wait(_private.begin_steps(conn))
    written = [(prepared, prepared.write(values)) for prepared, values in ready]

    def send() -> None:
        for prepared, parameters in written:
            prepared.send(conn.pgconn, parameters)

    results = await exchange(conn, send, len(written), with_settings=True)
    for index, result in enumerate(results):
        if result.status == _FATAL_ERROR:
            error = error_of(conn, result)
            if is_outdated(error):
                forget_outdated(conn, calls[index][0], error)
                # Repeating is safe only if nothing is left of the statements before this one.
                undone = conn.pgconn.transaction_status == _IDLE and not any(
                    earlier.command_status == b"COMMIT" for earlier in results[:index]
                )
                if may_repeat and undone:
                    return await _execute(conn, calls, may_repeat=False)
            raise error
    return [prepared.load(result) for (prepared, _), result in zip(written, results, strict=True)]

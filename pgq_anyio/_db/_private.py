"""What this package needs of psycopg's private parts, in one place.

psycopg's protocol is written as generators that say what to wait for; they are private, like the flags of a connection.
Everything here exists under the same name in psycopg 3.3.4 to 3.3.9, which is why the dependency ends before 3.4. Some
have to be spelled where they are: the overridden ``_pipeline_nolock`` (``executemany`` calls it), ``_deallocate`` and
``_check_connection_ok``, a pipeline's ``_exit``, and the attribute ``_conn`` of transactions, pipelines and cursors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import pq
from psycopg._queries import _query2pg_nocache
from psycopg.abc import AdaptContext, PQGen, Query
from psycopg.adapt import AdaptersMap
from psycopg.transaction import AsyncTransaction

if TYPE_CHECKING:
    from psycopg import AsyncCursor, AsyncPipeline, AsyncServerCursor
    from psycopg.abc import Params

    from ._core import WaitingConnection
    from .connection import Connection


def convert_placeholders(query: str) -> tuple[bytes, list[str]]:
    """Turn ``%(name)s`` into ``$1``.

    :return: the query for the server, and the names in the order of their numbers
    :raises psycopg.ProgrammingError: if the placeholders are malformed or positional
    """
    converted, _, names, parts = _query2pg_nocache(query.encode(), "utf-8")
    if names is None and len(parts) > 1:
        raise TypeError("a Statement takes named placeholders: %(name)s")
    return converted, names or []


def set_options(conn: Connection, *, autocommit: bool, context: AdaptContext | None) -> None:
    """Give a fresh connection what ``connect()`` was asked for."""
    conn._autocommit = autocommit
    if context is not None:
        conn._adapters = AdaptersMap(context.adapters)


def transaction_options(conn: Connection) -> tuple[object, ...]:
    """How the connection begins its transactions, by the client's attributes."""
    return conn._autocommit, conn._isolation_level, conn._read_only, conn._deferrable


def set_transaction_options(conn: Connection, options: tuple[Any, ...]) -> None:
    """Make the attributes what ``transaction_options`` gave. No transaction is open."""
    conn._autocommit, conn._isolation_level, conn._read_only, conn._deferrable = options
    conn._begin_statement = b""


def mark_closed(conn: WaitingConnection) -> None:
    """Note that we close the connection ourselves: it is then closed, and not ``broken``."""
    conn._closed = True


def forget(conn: WaitingConnection) -> None:
    """Keep psycopg from warning that the connection was not closed: it belongs to another process."""
    conn._pool = None


def current_pipeline(conn: Connection) -> AsyncPipeline | None:
    """The pipeline that is open on the connection."""
    return conn._pipeline


def set_pipeline(conn: Connection, pipeline: AsyncPipeline | None) -> None:
    """Open or close psycopg's pipeline mode for cursors of the connection."""
    conn._pipeline = pipeline


def check_usable(conn: Connection) -> None:
    """Check that statements can be sent.

    :raises psycopg.OperationalError: if the connection is closed
    """
    conn._check_connection_ok()


def should_cancel(conn: WaitingConnection) -> bool:
    """Whether a cancel request makes sense."""
    return conn._should_cancel()


def commit_steps(conn: Connection) -> PQGen[None]:
    """COMMIT, if there is something to commit."""
    return conn._commit_gen()


def rollback_steps(conn: Connection) -> PQGen[None]:
    """ROLLBACK, if there is something to roll back."""
    return conn._rollback_gen()


def begin_steps(conn: Connection) -> PQGen[None]:
    """BEGIN, if the connection is not in autocommit mode and outside a transaction."""
    return conn._start_query()


def enter_steps(transaction: AsyncTransaction) -> PQGen[None]:
    """BEGIN or SAVEPOINT."""
    return transaction._enter_gen()


def exit_steps(transaction: AsyncTransaction, error: BaseException | None) -> PQGen[bool]:
    """COMMIT, ROLLBACK, or the same for a savepoint."""
    return transaction._exit_gen(type(error) if error is not None else None, error, None)


def start_copy_steps(cursor: AsyncCursor[Any], statement: Query, params: Params | None) -> PQGen[None]:
    """Send a COPY statement and enter COPY mode."""
    return cursor._start_copy_gen(statement, params)


def close_cursor_steps(cursor: AsyncServerCursor[Any]) -> PQGen[None]:
    """CLOSE, if the cursor is still there."""
    return cursor._close_gen()


def mark_cursor_closed(cursor: AsyncServerCursor[Any]) -> None:
    """Free what a cursor holds."""
    cursor._close()


def select_first_result(cursor: AsyncCursor[Any]) -> None:
    """Make a cursor show its first result, such as the count of rows after a COPY."""
    cursor._select_current_result(0)


def encoding(conn: Connection) -> str:
    """The client encoding, by Python's name."""
    return conn.info.encoding


def is_busy(pgconn: pq.abc.PGconn) -> bool:
    """Whether a statement or COPY is under way on the connection."""
    return pgconn.transaction_status == pq.TransactionStatus.ACTIVE

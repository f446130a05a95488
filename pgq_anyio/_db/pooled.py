"""Connections through a transaction pooler, such as PgBouncer: how one is recognised, and what is different there.

Behind such a pooler each transaction may run in another session of the server, which other clients use before and
after. What a session keeps is lost, or worse, left to others: settings, prepared statements, LISTEN.

- *Recognised* by the number of the server's process: the one that was announced while connecting is the pooler's
  invention, and the process that answers says another one. This costs nothing where settings are sent anyway, and one
  short statement elsewhere, once per connection. A pooler that keeps sessions looks the same and is treated in the same
  way, unless the caller knows better.
- *Settings* are made for one transaction at a time, in the round trip of the statement that they are for. The
  transaction is explicit, and READ COMMITTED whatever the database's default is: the statement that makes the settings
  has a snapshot already, after which no setting could change the level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGconn
from psycopg.rows import tuple_row

if TYPE_CHECKING:
    from .connection import Connection

_IDLE: Final = pq.TransactionStatus.IDLE

#: By a statement and not by the ``options`` of the connection, which poolers refuse. Through a pooler the settings end
#: with this statement.
_GREETING: Final = (
    "select s.pooled,"
    " array(select pg_catalog.set_config(c.name, c.value, s.pooled)"
    " from unnest(%s::pg_catalog.text[], %s::pg_catalog.text[]) as c (name, value))"
    " from (select coalesce(%s::boolean, pg_catalog.pg_backend_pid() operator(pg_catalog.<>) %s::integer) as pooled) s"
)


class TransactionSettings:
    """Settings that each transaction makes for itself."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        calls = ", ".join(f"pg_catalog.set_config(${2 * i + 1}, ${2 * i + 2}, true)" for i in range(len(settings)))
        self._query = f"select {calls}".encode()
        self._params = [part.encode() for pair in settings.items() for part in pair]

    def send(self, pgconn: PGconn) -> None:
        """Hand them to libpq, inside of a transaction."""
        pgconn.send_query_params(self._query, self._params)

    def surround(self, pgconn: PGconn, send: Callable[[], None], count: int) -> tuple[Callable[[], None], int, slice]:
        """Put statements between these settings and the end of their transaction, all in one round trip.

        :param send: hands the statements to libpq, which is in pipeline mode
        :param count: how many statements that are
        :return: what to call instead, how many answers there will be, and which of them belong to the statements
        """
        if pgconn.transaction_status != _IDLE:

            def send_inside() -> None:
                self.send(pgconn)
                send()

            return send_inside, count + 1, slice(1, count + 1)

        def send_all() -> None:
            pgconn.send_query_params(b"begin isolation level read committed", None)
            self.send(pgconn)
            send()
            # What follows is executed after an error too, and ends the transaction either way.
            pgconn.pipeline_sync()
            pgconn.send_query_params(b"commit", None)

        return send_all, count + 4, slice(2, count + 2)


async def greet(conn: Connection, *, pooled: bool | None, settings: Mapping[str, str]) -> bool:
    """Make settings for as long as the connection lasts, unless it leads through a pooler.

    :param conn: a fresh connection, in autocommit mode
    :param pooled: whether it does, or ``None`` to look
    :return: whether it does
    """
    if pooled or (pooled is not None and not settings):
        return pooled
    asked = [list(settings), list(settings.values()), pooled, conn.pgconn.backend_pid]
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(_GREETING, asked, prepare=False)
        rows = await cursor.fetchall()
    found: bool = rows[0][0]
    return found


def is_pooled_sync(conn: psycopg.Connection[Any]) -> bool:
    """Look whether a blocking connection of ours leads through a pooler."""
    with psycopg.Cursor(conn, row_factory=tuple_row) as cursor:
        rows = cursor.execute("select pg_catalog.pg_backend_pid()", prepare=False).fetchall()
    return rows != [(conn.info.backend_pid,)]

"""Hot statements: prepared once per connection, binary both ways, without a cursor.

Parameter types are those that the server infers, so SQL has explicit casts (``%(ids)s::bigint[]``), and what is sent
never depends on the values: one plan, and ``None`` or an empty list fits everywhere.

- Behind a pooler that does not track prepared statements (``use_statements=False``) the types are learned in the same
  way, but every call sends the text. Nothing stays on the server and the results are the same.
- A prepared statement can be gone (``DISCARD ALL``) or out of date (a column changed its type). The server says so
  before it executes anything; outside a transaction it is then prepared again, once.
- An implicit transaction is committed after its last answer was sent. What fails then (a serialization, a deferred
  constraint), or a server that shuts down just there, is told by one answer more, and undoes what the others said.
- Server-side names are unique per connection, so that two schemas, or a pooler's earlier clients, never clash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
from psycopg import errors, generators, pq
from psycopg.abc import Buffer, PQGen
from psycopg.adapt import Transformer
from psycopg.pq.abc import PGconn, PGresult

from . import _private
from ._connecting import forget_silence

if TYPE_CHECKING:
    from .connection import Connection

_TUPLES_OK: Final = pq.ExecStatus.TUPLES_OK
_FATAL_ERROR: Final = pq.ExecStatus.FATAL_ERROR
_PIPELINE_SYNC: Final = pq.ExecStatus.PIPELINE_SYNC
_BINARY: Final = pq.Format.BINARY
_IDLE: Final = pq.TransactionStatus.IDLE


class Statement:
    """A statement that is executed often. It can be shared by all connections.

    :param name: what it is called; shows in the server's list of prepared statements
    :param sql: one statement with psycopg's named placeholders, ``%(name)s``, and ``%%`` for a percent sign
    """

    __slots__ = ("count", "name", "names", "query", "sql")

    def __init__(self, name: str, sql: str) -> None:
        self.name = name
        self.sql = sql
        self.query, self.names = _private.convert_placeholders(sql)
        self.count = len(self.names)

    def __repr__(self) -> str:
        return f"<Statement {self.name!r}>"

    async def fetch(self, conn: Connection, /, **params: object) -> list[tuple[Any, ...]]:
        """Execute it and return the rows; none if it returns no rows."""
        prepared, result = await self._execute(conn, params)
        return prepared.load(result)

    async def run(self, conn: Connection, /, **params: object) -> int:
        """Execute it and return the number of rows that were affected."""
        _, result = await self._execute(conn, params)
        return result.command_tuples or 0

    def arrange(self, params: Mapping[str, object]) -> list[object]:
        """Bring parameters into the order of the placeholders.

        :raises TypeError: if one is missing or unknown
        """
        try:
            values = [params[name] for name in self.names]
        except KeyError:
            values = []
        if len(values) != self.count or len(params) != self.count:
            missing, unknown = set(self.names) - set(params), set(params) - set(self.names)
            raise TypeError(f"statement {self.name!r}: missing {sorted(missing)}, unknown {sorted(unknown)}")
        return values

    async def _execute(self, conn: Connection, params: Mapping[str, object]) -> tuple[Prepared, PGresult]:
        values = self.arrange(params)
        lock = conn.lock
        try:
            lock.acquire_nowait()  # type: ignore[attr-defined]
        except anyio.WouldBlock:
            await lock.acquire()
        try:
            prepared = conn.statements.get(self) or await prepare(conn, self)
            result = await prepared.execute(conn, values)
            if result.status != _FATAL_ERROR:
                return prepared, result
            error = error_of(conn, result)
            if is_outdated(error):
                forget_outdated(conn, self, error)
                if conn.pgconn.transaction_status == _IDLE:
                    prepared = await prepare(conn, self)
                    result = await prepared.execute(conn, values)
                    if result.status != _FATAL_ERROR:
                        return prepared, result
                    error = error_of(conn, result)
            raise error
        finally:
            lock.release()


class Prepared:
    """What a connection knows of a statement: its name on the server, how to write parameters and to read rows."""

    __slots__ = ("_dump", "_formats", "_loader", "_oids", "_query", "_reader", "name")

    def __init__(self, conn: Connection, statement: Statement, name: bytes, description: PGresult) -> None:
        #: empty: the text is sent every time
        self.name = name
        self._query = statement.query
        self._oids = [description.param_type(i) or 0 for i in range(description.nparams)]
        self._dump, self._formats = _writer(conn, self._oids)
        self._reader = Transformer(conn)
        self._loader = False

    def write(self, values: Sequence[object]) -> Sequence[Buffer | None]:
        """Write parameters as the server reads them."""
        return self._dump(values)

    def send(self, pgconn: PGconn, written: Sequence[Buffer | None]) -> None:
        """Hand one execution to libpq."""
        if self.name:
            pgconn.send_query_prepared(self.name, written, self._formats, _BINARY)
        else:
            pgconn.send_query_params(self._query, written, self._oids, self._formats, _BINARY)

    async def execute(self, conn: Connection, values: Sequence[object]) -> PGresult:
        """Execute it once, in a round trip of its own. The lock is held."""
        if not conn.autocommit:
            await conn.wait(_private.begin_steps(conn))
        if conn.transaction_settings is not None:
            written = self._dump(values)
            return (await exchange(conn, lambda: self.send(conn.pgconn, written), 1, with_settings=True))[0]
        results: list[PGresult] = await conn.wait(self._steps(conn.pgconn, self._dump(values)))
        return find_failure(results) or results[0]

    def _steps(self, pgconn: PGconn, written: Sequence[Buffer | None]) -> PQGen[list[PGresult]]:
        """Sent in here, and so not before it is known that this process and this task may use the connection."""
        self.send(pgconn, written)
        results: list[PGresult] = yield from generators.execute(pgconn)
        return results

    def load(self, result: PGresult) -> list[tuple[Any, ...]]:
        """Read the rows of a result."""
        if result.status != _TUPLES_OK:
            return []
        reader = self._reader
        reader.set_pgresult(result, set_loaders=not self._loader)
        self._loader = True
        rows = reader.load_rows(0, result.ntuples, tuple)
        reader.set_pgresult(None, set_loaders=False)  # its memory is not kept until the next call
        return rows


async def prepare(conn: Connection, statement: Statement) -> Prepared:
    """Prepare a statement and learn its types, in one round trip. The lock is held."""
    _private.check_usable(conn)
    if _private.current_pipeline(conn) is not None:
        raise errors.ProgrammingError("a Statement cannot be used in a pipeline(): use batch()")
    name = b""
    if conn.use_statements:
        conn.statement_count += 1
        name = f"{statement.name[:40]}_{conn.statement_count}_{conn.statement_suffix}".encode()

    def send() -> None:
        conn.pgconn.send_prepare(name, statement.query)
        conn.pgconn.send_describe_prepared(name)

    results = await exchange(conn, send, 2)
    for result in results:
        if result.status == _FATAL_ERROR:
            raise error_of(conn, result)
    prepared = conn.statements[statement] = Prepared(conn, statement, name, results[1])
    return prepared


async def exchange(
    conn: Connection, send: Callable[[], None], count: int, *, with_settings: bool = False
) -> list[PGresult]:
    """Send several messages in one round trip and read one result for each. The lock is held.

    After a failed one the rest is skipped, and what the others did is rolled back, unless one of them committed. If all
    went well but for the commit at the end of the round trip, its error is raised.

    :param with_settings: whether to make the connection's ``transaction_settings`` first, if it has any
    """
    pgconn = conn.pgconn
    own = slice(0, count)
    if with_settings and conn.transaction_settings is not None:
        send, count, own = conn.transaction_settings.surround(pgconn, send, count)
    pgconn.enter_pipeline_mode()
    try:
        results = await conn.wait(_exchange_steps(pgconn, send, count))
        if not find_failure(results[own]) and (failure := find_failure(results)):
            raise error_of(conn, failure)
        return results[own]
    finally:
        if not conn.closed:
            try:
                pgconn.exit_pipeline_mode()
            except errors.Error:
                conn.abort()


def _exchange_steps(pgconn: PGconn, send: Callable[[], None], count: int) -> PQGen[list[PGresult]]:
    send()
    pgconn.pipeline_sync()
    yield from generators.send(pgconn)
    results: list[PGresult] = []
    for _ in range(count):
        answer = yield from generators.fetch_many(pgconn)
        results.append(answer[0])
    # The end of the round trip, after what failed there. There is none if the connection is lost.
    while (end := (yield from generators.fetch_many(pgconn))) and end[-1].status != _PIPELINE_SYNC:
        results += end
    return results


def find_failure(results: Sequence[PGresult]) -> PGresult | None:
    """The first answer that says that something failed."""
    return next((result for result in results if result.status == _FATAL_ERROR), None)


def _writer(
    conn: Connection, oids: Sequence[int]
) -> tuple[Callable[[Sequence[object]], Sequence[Buffer | None]], list[pq.Format]]:
    """How to write parameters of these types: in binary, or as text for the few types without a binary form."""
    writer = Transformer(conn)
    try:
        writer.set_dumper_types(oids, _BINARY)
    except errors.ProgrammingError:
        writers = [_mixed_writer(conn, oid) for oid in oids]
        return partial(_write_mixed, [write for write, _ in writers]), [kind for _, kind in writers]
    unused: list[Any] = []
    return (lambda values: writer.dump_sequence(values, unused)), [_BINARY] * len(oids)


def _mixed_writer(conn: Connection, oid: int) -> tuple[Callable[[Any], Buffer | None], pq.Format]:
    for kind in (_BINARY, pq.Format.TEXT):
        try:
            return conn.adapters.get_dumper_by_oid(oid, kind)(type(None), conn).dump, kind
        except errors.ProgrammingError:
            continue
    # The server reads it as it reads a literal.
    return (lambda value: str(value).encode(_private.encoding(conn))), pq.Format.TEXT


def _write_mixed(writers: Sequence[Callable[[Any], Buffer | None]], values: Sequence[object]) -> list[Buffer | None]:
    return [None if value is None else write(value) for write, value in zip(writers, values, strict=True)]


def error_of(conn: Connection, result: PGresult) -> errors.Error:
    """The exception for a failed result.

    A connection that turns out to lead to a standby is closed: the next one may find the new primary.
    """
    error = errors.error_from_result(result, encoding=_private.encoding(conn))
    if isinstance(error, errors.ReadOnlySqlTransaction) and conn.pgconn.parameter_status(b"in_hot_standby") == b"on":
        forget_silence()
        conn.abort()
    return error


def forget_outdated(conn: Connection, statement: Statement, error: errors.Error) -> None:
    """Have a statement prepared anew. If one of them is gone from the server, they all are."""
    if isinstance(error, errors.InvalidSqlStatementName):
        conn.statements.clear()
    else:
        conn.statements.pop(statement, None)


def is_outdated(error: errors.Error) -> bool:
    """Whether an error says that a prepared statement is gone or out of date; nothing was executed then."""
    if isinstance(error, errors.InvalidSqlStatementName):
        return True
    # The text is translated, the name of the function in the server is not.
    return isinstance(error, errors.FeatureNotSupported) and error.diag.source_function == "RevalidateCachedQuery"

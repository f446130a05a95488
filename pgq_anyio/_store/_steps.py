"""Work on the database written as steps, for asynchronous and for blocking connections alike.

A function that producers, operators and the CLI need is a generator: it yields what is to be done, gets the rows back,
and returns its result. Who waits for the server, and how, is decided by the two runners at the end of this module, so
that checks, SQL and order exist once. Nothing is done before a runner takes the first step.

Statements go through cursors made here, never through ``connection.execute()``: a connection that a caller passes may
have any row factory and any cursor class (with another syntax for placeholders). Rows are read in binary, as our own
connections read them: psycopg cannot read times as text unless the server's ``DateStyle`` is ISO.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, LiteralString, TypeVar

import attrs
import psycopg
from psycopg import pq
from psycopg.rows import tuple_row
from psycopg.sql import Composed

from .._db import Connection
from ._sql import Store

T = TypeVar("T")
Rows = list[tuple[Any, ...]]
AnyConnection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


@attrs.frozen
class Fetch:
    """The named block of the store's SQL; gives its rows."""

    store: Store
    name: str
    params: Mapping[str, object]


@attrs.frozen
class Execute:
    """Any SQL. Without parameters it may be several commands; gives nothing."""

    query: LiteralString | Composed
    params: Mapping[str, object] | None = None


@attrs.frozen
class Ask:
    """One query of any SQL, without parameters; gives its rows."""

    query: LiteralString | Composed


@attrs.frozen
class CopyIn:
    """The named COPY … FROM STDIN in binary format, with the types of its columns and the rows; gives nothing."""

    store: Store
    name: str
    types: Sequence[str]
    rows: Iterable[Sequence[object]]


@attrs.frozen
class InTransaction:
    """Steps in a transaction of their own (a savepoint, inside a transaction); gives their result."""

    steps: Steps[Any]


Step = Fetch | Execute | Ask | CopyIn | InTransaction
Steps = Generator[Step, Any, T]


async def run_steps(conn: psycopg.AsyncConnection[Any], steps: Steps[T]) -> T:
    """Take steps on an asynchronous connection: ours, or psycopg's own on asyncio."""
    try:
        step = next(steps)
        while True:
            try:
                answer = await _take(conn, step)
            except psycopg.Error as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()


def run_steps_sync(conn: psycopg.Connection[Any], steps: Steps[T]) -> T:
    """Take steps on a blocking connection."""
    try:
        step = next(steps)
        while True:
            try:
                answer = _take_sync(conn, step)
            except psycopg.Error as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()


async def _take(conn: psycopg.AsyncConnection[Any], step: Step) -> Any:
    if isinstance(step, Fetch) and isinstance(conn, Connection) and not is_in_pipeline(conn):
        return await step.store.statement(step.name).fetch(conn, **step.params)
    if isinstance(step, InTransaction):
        async with conn.transaction():
            return await run_steps(conn, step.steps)
    make: Callable[..., psycopg.AsyncCursor[tuple[Any, ...]]]
    make = conn.cursor_factory if isinstance(conn, Connection) else psycopg.AsyncCursor
    async with make(conn, row_factory=tuple_row) as cursor:
        match step:
            case Fetch(store, name, params):
                await cursor.execute(store.sql(name), params, binary=True)
                return await cursor.fetchall()
            case Execute(query, params):
                await cursor.execute(query, params, prepare=False if params is None else None)
                return []
            case Ask(query):
                await cursor.execute(query, prepare=False, binary=True)
                return await cursor.fetchall()
            case CopyIn(store, name, types, rows):
                async with cursor.copy(store.plain_sql(name)) as copy:
                    copy.set_types(types)
                    for row in rows:
                        await copy.write_row(row)
                return []


def _take_sync(conn: psycopg.Connection[Any], step: Step) -> Any:
    if isinstance(step, InTransaction):
        with conn.transaction():
            return run_steps_sync(conn, step.steps)
    with psycopg.Cursor(conn, row_factory=tuple_row) as cursor:
        match step:
            case Fetch(store, name, params):
                return cursor.execute(store.sql(name), params, binary=True).fetchall()
            case Execute(query, params):
                cursor.execute(query, params, prepare=False if params is None else None)
                return []
            case Ask(query):
                return cursor.execute(query, prepare=False, binary=True).fetchall()
            case CopyIn(store, name, types, rows):
                with cursor.copy(store.plain_sql(name)) as copy:
                    copy.set_types(types)
                    for row in rows:
                        copy.write_row(row)
                return []


def is_in_pipeline(conn: AnyConnection) -> bool:
    """Whether the connection is in pipeline mode, which excludes COPY and our prepared statements."""
    return conn.pgconn.pipeline_status != pq.PipelineStatus.OFF


def is_in_transaction(conn: AnyConnection) -> bool:
    """Whether the next statement runs in a transaction that goes on after it."""
    return not conn.autocommit or conn.info.transaction_status != pq.TransactionStatus.IDLE

"""Options that several commands have, and what they do with them."""

from __future__ import annotations

import getpass
import math
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

import attrs
import psycopg
import typer

from .._client import SyncQueries
from .._db.defaults import connect_blocking
from .._embedded import EmbeddedServer
from .._errors import shown
from .._settings import DatabaseSource, find_database, redacted
from .._store._sql import DEFAULT_SCHEMA, Store
from .._store.migrations import check_schema_sync, migrate_sync
from .messages import UsageError

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+")
#: Digits of the largest id. Python refuses to read numbers of thousands.
_ID_DIGITS: Final = 19
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")


@attrs.define
class Invocation:
    """What messages need to know of the call of a command."""

    #: how to call the database that it uses
    database: str = ""
    #: whether errors are shown with their traceback
    traceback: bool = False
    #: whether errors are written as the log is, because it is read by a program
    logs_errors: bool = False


def invocation_of(ctx: Any) -> Invocation:
    """The invocation that a command belongs to."""
    found = ctx.find_root().ensure_object(Invocation)
    assert isinstance(found, Invocation)
    return found


def parse_duration(text: str | float) -> float:
    """Seconds from ``30``, ``2.5``, ``90s``, ``1h30m``, ``250ms`` or ``2d``.

    :raises typer.BadParameter: if it is none
    """
    try:
        value = float(text)
    except ValueError:
        compact = str(text).replace(" ", "").lower()
        if not _DURATION.fullmatch(compact):
            raise typer.BadParameter(f"{text!r} is no duration: write seconds, or 90s, 5m, 1h30m, 2d") from None
        value = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(compact))
    if not math.isfinite(value) or value < 0:
        raise typer.BadParameter(f"{text!r} is no duration: write a number of seconds that is not negative")
    return value


def option_name(name: str) -> str:
    """How the command line calls a parameter of Python."""
    return "--" + name.replace("_", "-")


def as_timedelta(option: str, number: float) -> timedelta:
    """So many seconds.

    :raises UsageError: if they are too many; the message names the option
    """
    try:
        return timedelta(seconds=number)
    except OverflowError:
        raise UsageError(f"{option} is longer than any time that can be written: write a shorter one") from None


def parse_retention(text: str | float) -> float | dict[str, float]:
    """One duration, or several by status: ``successful=1h,failed=30d``.

    :raises typer.BadParameter: if it is neither
    """
    if "=" not in str(text):
        return parse_duration(text)
    parts = [part.partition("=") for part in str(text).split(",")]
    return {status.strip(): parse_duration(duration) for status, _, duration in parts}


def parse_time(option: str, text: str) -> datetime:
    """A moment, in the local time zone if it names none.

    :raises UsageError: if it is none; the message names the option
    """
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{option} {text!r} is no time: write 2031-01-31T12:00:00+01:00, or without offset for local time"
        ) from None


def _remember_traceback(ctx: typer.Context, value: bool) -> bool:
    invocation_of(ctx).traceback = value
    return value


Dsn = Annotated[
    str | None,
    typer.Option(
        "--dsn",
        metavar="DSN",
        help="The database. Else PGQ_ANYIO_DSN, DATABASE_URL, PG* variables, or an embedded one.",
        show_default=False,
    ),
]
Schema = Annotated[str, typer.Option("--schema", metavar="NAME", help="The PostgreSQL schema with the tables.")]
Traceback = Annotated[
    bool,
    typer.Option(
        "--traceback",
        envvar="PGQ_ANYIO_TRACEBACK",
        help="Show the traceback of every error.",
        callback=_remember_traceback,
        show_default=False,
    ),
]

SCHEMA: Final = DEFAULT_SCHEMA


def describe(source: DatabaseSource) -> str:
    """How to call a database, with where its name was found."""
    if source.conninfo is None:
        return "the embedded database"
    where = redacted(source.conninfo)
    return f"the database {where!r} (from {source.origin})" if where else f"the database of the {source.origin}"


def choose_database(ctx: Any, dsn: str | None) -> DatabaseSource:
    """Find the database of a command, and remember how to call it."""
    source = find_database(dsn, os.environ)
    invocation_of(ctx).database = describe(source)
    return source


@contextmanager
def open_database(ctx: Any, dsn: str | None) -> Iterator[str]:
    """The DSN of the database that a command works on; an embedded one runs for the length of the block."""
    source = choose_database(ctx, dsn)
    if source.conninfo is not None:
        yield source.conninfo
    else:
        with EmbeddedServer() as conninfo:
            yield conninfo


def connect(conninfo: str, **options: Any) -> psycopg.Connection[Any]:
    """The connection of a command. It prepares no statements: a command executes none often, and poolers lose them."""
    return connect_blocking(conninfo, prepare_threshold=None, **options)


def check_ids(texts: list[str]) -> list[int]:
    """Job ids as they were typed.

    :raises UsageError: if one is none
    """
    for text in texts:
        is_number = text.isascii() and text.isdecimal() and len(text) <= _ID_DIGITS
        if not is_number or not 0 < int(text) < 2**63:
            raise UsageError(f"{shown(text)} is no job id: write the number that enqueue printed")
    return [int(text) for text in texts]


@contextmanager
def open_queries(ctx: Any, dsn: str | None, schema: str) -> Iterator[SyncQueries]:
    """The queue that a command works on.

    :raises SchemaError: if the tables are missing, old, or newer than this code; an embedded database gets them here
    """
    source = choose_database(ctx, dsn)
    # The record of a job that is cancelled here says who did it.
    name = f"pgq-anyio, {_person()}"
    with (
        open_database(ctx, dsn) as conninfo,
        connect(conninfo, fallback_application_name=name) as connection,
    ):
        if source.is_embedded:
            migrate_sync(connection, schema)
        check_schema_sync(connection, Store(schema))
        yield SyncQueries(connection, schema=schema)


def _person() -> str:
    """Who calls the command, and where."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a user without a name, as in containers
        return socket.gethostname()

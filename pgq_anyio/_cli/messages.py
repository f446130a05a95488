"""What went wrong, as one message with the fix, and the exit code: 2 for misuse, 1 for failure.

Errors that have a message of ours, and a database that cannot be reached or refuses, are told without a traceback
unless it is asked for (``--traceback``, or ``PGQ_ANYIO_TRACEBACK=1``). Anything else is a surprise and comes with its
traceback: whoever runs a worker that died of it cannot ask again.

Passwords are never in a message: libpq quotes none, and a DSN is shown by ``redacted`` only.
"""

from __future__ import annotations

import re
import traceback
from typing import Final

import attrs
import psycopg

from .._db.tls import tls_advice
from .._embedded import ServerStartError
from .._errors import AppLoadError, ConfigurationError, PgqError, SchemaError

FAILURE: Final = 1
MISUSE: Final = 2

#: SQLSTATEs of a server that lets nobody in, or not us; an error without one is libpq's own.
_NO_CONNECTION: Final = ("08", "28", "3D", "57P", "53300")


class UsageError(Exception):
    """Raised by a command that was called wrongly. The message says what to write."""


@attrs.frozen
class Explanation:
    """What a user is told."""

    message: str
    exit_code: int
    #: the formatted traceback, if it is to be shown
    traceback: str | None = None


def explain(error: BaseException, *, database: str = "", with_traceback: bool = False) -> Explanation:
    """Find the words for an error.

    :param error: what a command raised
    :param database: how to call the database that the command uses, with where its name was found
    :param with_traceback: whether the traceback was asked for
    """
    trace = "".join(traceback.format_exception(error))
    told = _told(error, database)
    if told is None:
        text = " ".join(str(error).split())
        return Explanation(f"unexpected {type(error).__name__}{f': {text}' if text else ''}", FAILURE, trace)
    notes = "".join(
        f"\n{note.splitlines()[0]}" for note in getattr(error, "__notes__", ()) if note and note not in told[0]
    )
    return Explanation(told[0] + notes, told[1], trace if with_traceback else None)


def _told(error: BaseException, database: str) -> tuple[str, int] | None:
    match error:
        case UsageError() | ConfigurationError():
            return str(error), MISUSE
        case AppLoadError():
            return str(error), MISUSE if error.__cause__ is None else FAILURE
        case SchemaError() | ServerStartError() | PgqError():
            return str(error), FAILURE
        case psycopg.OperationalError() if (error.sqlstate or "08").startswith(_NO_CONNECTION):
            return _say_unreachable(error, database), FAILURE
        case psycopg.errors.InsufficientPrivilege():
            said = _primary(error)
            return (
                f"{database or 'the database'} refuses: {said}; ask its owner for the right, or use another user",
                FAILURE,
            )
        case psycopg.Error():
            return f"{database or 'the database'} answers with an error: {_primary(error)}", FAILURE
        case _:
            return None


def _say_unreachable(error: psycopg.OperationalError, database: str) -> str:
    said = _primary(error)
    where = database or "the database"
    advice = tls_advice(said)
    if advice is not None:
        return f"{where} cannot be reached safely: {advice} ({said})"
    if re.search(r'database ".*" does not exist', said):
        return f"{where} does not exist: create it (createdb), or name another one with --dsn ({said})"
    if re.search(r'password|authentication|role ".*" does not exist|pg_hba', said):
        return f"{where} does not let us in: check user and password in the DSN ({said})"
    return f"{where} cannot be reached: start the server, or name another one with --dsn or PGQ_ANYIO_DSN ({said})"


def _primary(error: psycopg.Error) -> str:
    """What the server or libpq says, in one line; of several attempts (IPv6, IPv4, …) each answer once."""
    primary = error.diag.message_primary
    if primary:
        return primary
    # libpq's question stands on a line of its own, before what the next host has said.
    lines = [line.strip(" \t-") for line in re.sub(r"\n\s*Is the server[^?]*\?", "", str(error)).splitlines()]
    kept = [line for line in lines if line and not line.startswith("Multiple connection attempts")]
    return "; ".join(dict.fromkeys(kept)) or type(error).__name__

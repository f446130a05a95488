"""Errors in words."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgq_anyio import AppLoadError, ConfigurationError, SchemaError
from pgq_anyio._cli.messages import UsageError, explain
from pgq_anyio._db import Connection


def failed_connection(conninfo: str) -> psycopg.Error:
    """The error of a connection that cannot be made."""
    with pytest.raises(psycopg.Error) as caught:
        psycopg.connect(conninfo, connect_timeout=2)
    return caught.value


@pytest.mark.promise(39)
def test_unreachable_database() -> None:
    """The database is named, the fix is said, what libpq says stands in one line, and no password is there."""
    error = failed_connection("postgresql://me:secret@127.0.0.1:1/jobs")
    told = explain(error, database="the database 'host=127.0.0.1' (from --dsn)")
    assert told.message.startswith(
        "the database 'host=127.0.0.1' (from --dsn) cannot be reached: start the server, or name another one with --dsn"
    )
    assert "refused" in told.message
    assert "\n" not in told.message
    assert "secret" not in told.message
    assert 1 == told.exit_code
    assert told.traceback is None


@pytest.mark.promise(39)
def test_missing_database_and_role(server_dsn: str) -> None:
    """A server that answers and does not let us in is told apart from one that is not there."""
    missing = explain(failed_connection(f"{server_dsn} dbname=no_such_database"), database="the database")
    assert missing.message.startswith("the database does not exist: create it (createdb), or name another one")
    assert 'database "no_such_database" does not exist' in missing.message
    stranger = explain(failed_connection(f"{server_dsn} user=no_such_user"), database="the database")
    assert stranger.message.startswith("the database does not let us in: check user and password in the DSN")


@pytest.mark.promise(39)
@pytest.mark.anyio
async def test_each_of_several_hosts_is_told(server_dsn: str) -> None:
    """One is not there, and the other one lacks the database."""
    there = conninfo_to_dict(server_dsn)
    both = make_conninfo(
        server_dsn, host=f"127.0.0.1,{there['host']}", port=f"1,{there.get('port', 5432)}", dbname="no"
    )
    with pytest.raises(psycopg.OperationalError) as caught:
        await Connection.connect(both)
    told = explain(caught.value, database="the database")
    assert told.message.startswith("the database does not exist: create it")
    assert "refused" in told.message
    assert "Is the server" not in told.message
    assert "\n" not in told.message


def test_other_errors_of_the_database(server_dsn: str) -> None:
    """An error of a statement is no failed connection."""
    with psycopg.connect(server_dsn) as connection, pytest.raises(psycopg.Error) as caught:
        connection.execute("select 1 / 0")
    assert "the database answers with an error: division by zero" == explain(caught.value).message
    with psycopg.connect(server_dsn) as connection:
        connection.execute("set statement_timeout = 10")
        with pytest.raises(psycopg.OperationalError) as cancelled:
            connection.execute("select pg_sleep(10)")
    assert "the database answers with an error: canceling statement" in explain(cancelled.value).message


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (UsageError("write this"), 2),
        (ConfigurationError("write this"), 2),
        (AppLoadError("write this"), 2),
        (SchemaError("write this"), 1),
    ],
)
def test_own_errors_speak_for_themselves(error: Exception, exit_code: int) -> None:
    """Our own errors are told as they are, misuse with 2, failure with 1, with their traceback only on request."""
    told = explain(error)
    assert ("write this", exit_code, None) == (told.message, told.exit_code, told.traceback)
    assert "write this" in (explain(error, with_traceback=True).traceback or "")


def test_user_code_that_failed_is_a_failure() -> None:
    """An app that cannot be loaded because its code raised is no misuse of the command."""
    error = AppLoadError("failed")
    error.__cause__ = KeyError("x")
    assert 1 == explain(error).exit_code


@pytest.mark.promise(37)
def test_a_surprise_comes_with_its_traceback() -> None:
    """An error that nobody has words for shows where it comes from, whether that was asked for or not."""
    try:
        raise KeyError("x")
    except KeyError as error:
        error.add_note("at the same time: ValueError: y")
        told = explain(error)
    assert ("unexpected KeyError: 'x'", 1) == (told.message, told.exit_code)
    assert "test_messages.py" in (told.traceback or "")
    assert "at the same time" in (told.traceback or "")

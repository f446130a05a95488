"""Which errors pass, and how they are repeated."""

from __future__ import annotations

import logging

import anyio
import psycopg
import pytest
from psycopg import errors

from pgq_anyio._db import is_transient, retrying
from tests.bounds import Within

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.AdminShutdown("x"), True),
        (errors.CrashShutdown("x"), True),
        (errors.CannotConnectNow("x"), True),
        (errors.TooManyConnections("x"), True),
        (errors.ProgramLimitExceeded("too many notifications in the NOTIFY queue"), True),
        (errors.StatementTooComplex("x"), False),
        (errors.SerializationFailure("x"), True),
        (errors.DeadlockDetected("x"), True),
        (errors.ReadOnlySqlTransaction("x"), True),
        (errors.LockNotAvailable("x"), True),
        (errors.QueryCanceled("x"), True),
        (errors.ConnectionFailure("x"), True),
        (errors.ConnectionTimeout("no answer"), True),
        (psycopg.OperationalError("the connection is closed"), True),
        (psycopg.OperationalError("connection failed: Connection refused"), True),
        (psycopg.OperationalError("FATAL:  the database system is starting up"), True),
        (psycopg.OperationalError("FATAL:  sorry, too many clients already"), True),
        (ConnectionResetError(), True),
        (errors.InvalidPassword("x"), False),
        (psycopg.OperationalError('FATAL:  password authentication failed for user "u"'), False),
        (psycopg.OperationalError('FATAL:  database "nowhere" does not exist'), False),
        (psycopg.OperationalError('FATAL:  role "nobody" does not exist'), False),
        (psycopg.OperationalError("fe_sendauth: no password supplied"), False),
        (psycopg.OperationalError('connection to server on socket "/x/.s" failed: No such file or directory'), True),
        (errors.SyntaxError("x"), False),
        (errors.UndefinedTable("x"), False),
        (errors.UniqueViolation("x"), False),
        (psycopg.InterfaceError("the pool is not open"), False),
        (ValueError(), False),
        (TimeoutError(), False),
    ],
    ids=repr,
)
def test_is_transient(error: BaseException, expected: bool) -> None:
    """What passes by itself is told from what somebody has to mend."""
    assert expected == is_transient(error)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was slept for, or would have been (in seconds)."""
    asked: list[float] = []

    async def sleep(pause: float) -> None:
        asked.append(pause)

    monkeypatch.setattr(anyio, "sleep", sleep)
    return asked


async def test_repeats_until_success(caplog: pytest.LogCaptureFixture, pauses: list[float]) -> None:
    """A lasting trouble is warned about once, and its end is told."""
    attempts = 0

    async def attempt() -> str:
        nonlocal attempts
        attempts += 1
        if attempts < 30:
            raise psycopg.OperationalError("refused")
        return "done"

    with caplog.at_level(logging.INFO, "pgq_anyio.db"):
        assert "done" == await retrying(attempt, what="storing outcomes")
    assert [
        "storing outcomes failed, trying again: OperationalError: refused",
        "storing outcomes succeeded after 29 failures",
    ] == [record.getMessage() for record in caplog.records]
    assert 29 == len(pauses)
    assert 0.05 <= pauses[0] <= 0.1
    assert all(5 <= pause <= 10 for pause in pauses[10:])
    assert len(set(pauses)) > 20


async def test_conflicts_are_repeated_at_once(pauses: list[float]) -> None:
    """A deadlock or a serialization failure is no trouble: no pause, no warning."""
    attempts = 0

    async def attempt() -> int:
        nonlocal attempts
        attempts += 1
        if attempts <= 4:
            raise errors.DeadlockDetected("x")
        return attempts

    assert 5 == await retrying(attempt, what="x")
    assert [] == pauses


async def test_other_errors_are_raised() -> None:
    """What cannot succeed is tried once."""
    attempts = 0

    async def attempt() -> None:
        nonlocal attempts
        attempts += 1
        raise errors.UndefinedTable("x")

    with pytest.raises(errors.UndefinedTable):
        await retrying(attempt, what="x")
    assert 1 == attempts


async def test_max_time(within: Within) -> None:
    """After ``max_time`` the last error is raised."""

    async def attempt() -> None:
        raise psycopg.OperationalError("refused")

    started = anyio.current_time()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        await retrying(attempt, what="x", max_time=0.2)
    assert 0.2 <= anyio.current_time() - started < within(1)


async def test_it_can_be_cancelled() -> None:
    """A loop that never succeeds ends with its scope, even if it never pauses."""

    async def attempt() -> None:
        raise errors.SerializationFailure("x")

    with anyio.move_on_after(0.1) as scope:
        await retrying(attempt, what="x")
    assert scope.cancelled_caught

"""Which errors of the database pass by themselves, and repeating what met one."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio
import psycopg
from anyio.lowlevel import checkpoint

from .._doorbell import Doorbell
from .._errors import in_a_line
from .._retry import RetryPolicy
from ._connecting import HostsError

T = TypeVar("T")

logger = logging.getLogger("pgq_anyio.db")

#: SQLSTATE classes and codes (PostgreSQL's documentation, appendix A) of errors that pass.
_TRANSIENT_CLASSES: Final = ("08", "53")  # connection, insufficient resources
_TRANSIENT: Final = frozenset({
    "25006",  # read-only transaction: a failover is under way
    "25P03", "25P04",  # idle in transaction, transaction timeout
    "40001", "40003", "40P01",  # serialization failure, unknown completion, deadlock
    "54000",  # a full queue of notifications; no transaction ids before the next VACUUM
    "55006", "55P03",  # object in use, lock timeout
    "57014",  # statement timeout, or canceled by an operator
    "57P01", "57P02", "57P03", "57P05",  # shutdown, crash, starting up, idle session
    "58000", "58030",  # system error, I/O error
})  # fmt: skip
#: Conflicts with other transactions: nothing is wrong, and the next attempt is likely to succeed.
_CONFLICTS: Final = frozenset({"40001", "40P01"})
#: Attempts after conflicts without any pause.
_AT_ONCE: Final = 5

#: What a server says that will say the same tomorrow. An error while connecting has no SQLSTATE, only its text.
_REFUSED: Final = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|pg_hba\.conf rejects"
    r"|FATAL:.*(role|database) \".*\" (does not exist|is not permitted)|permission denied"
    r"|certificate|does not support SSL|invalid (port|sslmode|connection option|value)|is not permitted to log in"
    r"|unsupported (frontend protocol|startup)|unrecognized configuration parameter",
    re.DOTALL,
)

_POLICY: Final = RetryPolicy(initial_delay=0.1, max_delay=10)
#: How long a service waits for the answer to its first attempt (in seconds): more than a busy server should take, and
#: an end to a connection that has gone silent.
PATIENCE: Final = 10.0
#: Pause between two warnings about the same trouble (in seconds).
WARN_EVERY: Final = 60.0


def is_transient(error: BaseException) -> bool:
    """Whether it makes sense to try again.

    :return: ``True`` for a connection that was lost, refused or not found, a server that starts or stops, conflicts,
        timeouts, too many connections, and a read-only server (a failover); ``False`` for errors in a statement, a
        wrong password, and everything that is no error of the database. If several hosts failed, one of them that may
        come back is enough
    """
    if isinstance(error, ConnectionError):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    if isinstance(error, HostsError):
        return any(map(is_transient, error.answers()))
    code = error.sqlstate
    if code is not None:
        return code in _TRANSIENT or code.startswith(_TRANSIENT_CLASSES)
    if not isinstance(error, psycopg.OperationalError):
        return False
    return _REFUSED.search(str(error)) is None


async def retrying(
    attempt: Callable[[], Awaitable[T]],
    *,
    what: str,
    max_time: float | None = None,
    patience: float | None = None,
    hurry: Doorbell | None = None,
) -> T:
    """Repeat ``attempt`` for as long as it ends in errors that pass.

    Conflicts between transactions are repeated at once, the rest with growing, jittered pauses of at most ten seconds.
    An attempt must be safe to repeat. The first failure is logged as a warning, a lasting one again every minute.

    :param attempt: called without arguments
    :param what: what is attempted, for the log: "storing outcomes"
    :param max_time: no further attempt after this time (in seconds), or ``None`` to go on for ever
    :param patience: the longest that the first attempt may take (in seconds); one that takes longer is interrupted and
        counts as an error that passes: the connection may have gone silent. The next one gets twice the time, in case
        that it is the server that is slow. ``None`` waits for ever
    :param hurry: ends a pause when it rings: the database has been heard elsewhere. A ring from before the failure
        counts too, which costs one attempt
    :return: what ``attempt`` returns
    :raises psycopg.Error: if it cannot succeed, or ``max_time`` is over
    """
    began_at = anyio.current_time()
    failures = conflicts = 0
    warned_at: float | None = None
    while True:
        started_at = anyio.current_time()
        try:
            with anyio.move_on_after(patience) as scope:
                result = await attempt()
            if patience is not None and scope.cancelled_caught:
                lasted, patience = patience, patience * 2
                raise psycopg.OperationalError(f"no answer within {lasted:g} s")
        except (psycopg.Error, ConnectionError) as error:
            now = anyio.current_time()
            if not is_transient(error) or (max_time is not None and now - began_at >= max_time):
                raise
            if now - started_at > 2 * _POLICY.max_delay:
                failures = conflicts = 0  # it worked for a while: this is a new trouble
            if getattr(error, "sqlstate", None) in _CONFLICTS and conflicts < _AT_ONCE:
                conflicts += 1
                pause = 0.0
            else:
                failures += 1
                pause = _POLICY.delay(failures)
                if warned_at is None or now - warned_at >= WARN_EVERY:
                    warned_at = now
                    logger.warning("%s failed, trying again: %s", what, in_a_line(error))
        else:
            if warned_at is not None:
                logger.info("%s succeeded after %d failures", what, failures)
            return result
        if max_time is not None:
            pause = min(pause, max(0.0, began_at + max_time - anyio.current_time()))
        if pause <= 0:
            await checkpoint()
        elif hurry is not None:
            await hurry.wait(pause)
        else:
            await anyio.sleep(pause)

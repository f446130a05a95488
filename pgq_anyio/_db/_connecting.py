"""Opening a connection: host names, several hosts, time limits.

- Host names are resolved in threads of their own: a reconnect must not wait behind the application's threads. A look-up
  that takes too long is left behind, since nothing can interrupt it; it holds nothing.
- An attempt that was not answered is remembered for a while, and its host is tried after the others: who has less time
  than ``connect_timeout`` (a claim, a heartbeat) would else never come to the second one.
- ``connect_timeout`` bounds the look-up and then each host, as in libpq.
- libpq sees one host at a time. ``prefer-standby`` would then take the first host whatever it is, so psycopg makes two
  rounds of it: every host as a standby, then every host.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Final

import anyio
from anyio.lowlevel import RunVar
from psycopg import errors, generators
from psycopg.abc import ConnDict, ConnParam
from psycopg.conninfo import conninfo_attempts, conninfo_to_dict, make_conninfo, timeout_from_conninfo
from psycopg.pq.abc import PGconn

from ._waiting import drive_connecting
from .tls import tls_advice

#: Threads that may look up host names at the same time.
LOOKUPS = 8

#: A host that has not answered within this time (in seconds) ...
SILENCE: Final = 1.0
#: ... comes after the others for so long (in seconds).
SILENT_FOR: Final = 60.0

_Place = tuple[object, object, object]
#: When the attempts began that have not been answered (monotonic clock).
_unanswered: dict[_Place, float] = {}

_limiter: RunVar[anyio.CapacityLimiter] = RunVar("pgq_anyio_lookups")


#: What the system says of an address at which nobody listens.
_NOBODY: Final = tuple(map(os.strerror, (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOENT)))


class HostsError(errors.OperationalError):
    """Raised if none of several addresses can be connected to, for different reasons."""

    #: host, and why the attempt failed
    failures: Sequence[tuple[str, errors.Error]] = ()

    def answers(self) -> list[errors.Error]:
        """What is to be judged, each for itself: what one host refuses says nothing about the others. Where one address
        of a host answers, the others at which nobody listens are of no account (IPv6, at most sites).
        """
        answering = {host for host, error in self.failures if not _is_nobody(error)}
        return [error for host, error in self.failures if host not in answering or not _is_nobody(error)]


def _is_nobody(error: errors.Error) -> bool:
    return isinstance(error, errors.ConnectionTimeout) or any(text in str(error) for text in _NOBODY)


async def open_pgconn(conninfo: str, options: Mapping[str, ConnParam]) -> PGconn:
    """Connect to the first host that answers.

    :param conninfo: a DSN in either of libpq's forms
    :param options: parameters that replace those of the DSN
    :raises psycopg.OperationalError: if no host can be connected to; the message names the reason of each, and a note
        what to do about a certificate
    """
    params = conninfo_to_dict(conninfo, **options)
    timeout = timeout_from_conninfo(params)
    failures: list[tuple[str, errors.Error]] = []
    for attempt in await _attempts(params, timeout):
        place = f"{attempt.get('host') or attempt.get('hostaddr') or 'default host'}"
        began_at = time.monotonic()
        answered = False
        try:
            with anyio.move_on_after(timeout):
                pgconn: PGconn = await drive_connecting(generators.connect(make_conninfo("", **attempt)))
                answered = True
                return pgconn
            failures.append((place, errors.ConnectionTimeout(f"no answer within {timeout} s")))
        except errors.Error as error:
            answered = True
            failures.append((place, error))
        finally:
            if answered:
                _unanswered.pop(_place_of(attempt), None)
            elif time.monotonic() - began_at > SILENCE:
                _unanswered[_place_of(attempt)] = began_at
    refusal = _summary(failures)
    advice = tls_advice(str(refusal))
    if advice is not None:
        refusal.add_note(advice)
    raise refusal


async def _attempts(params: ConnDict, timeout: float) -> list[ConnDict]:
    with anyio.move_on_after(timeout):
        attempts = await anyio.to_thread.run_sync(
            conninfo_attempts, params, abandon_on_cancel=True, limiter=lookup_limiter()
        )
        long_ago = time.monotonic() - SILENT_FOR
        for place in [place for place, began_at in _unanswered.items() if began_at < long_ago]:
            del _unanswered[place]
        return sorted(attempts, key=lambda attempt: _unanswered.get(_place_of(attempt), -math.inf))
    raise errors.ConnectionTimeout(f"host names could not be resolved within {timeout} s")


def forget_silence() -> None:
    """Try all hosts in their order again: the one that answers is not the one that is wanted."""
    _unanswered.clear()


def _place_of(attempt: ConnDict) -> _Place:
    return attempt.get("host"), attempt.get("hostaddr"), attempt.get("port")


def _summary(failures: list[tuple[str, errors.Error]]) -> errors.Error:
    """One error for all hosts, with every message once."""
    if not failures:
        return errors.OperationalError("the DSN names no host that can be tried")
    last = failures[-1][1]
    messages = dict.fromkeys(f"{place}: {error}" for place, error in failures)
    if len(messages) == 1:
        return last.with_traceback(None)
    text = "; ".join(messages)
    refusal = HostsError(f"none of the hosts can be connected to: {text}", pgconn=last.pgconn)
    refusal.failures = [(host, error.with_traceback(None)) for host, error in failures]
    return refusal


def lookup_limiter() -> anyio.CapacityLimiter:
    """The limiter of our own threads, one per event loop."""
    try:
        return _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(LOOKUPS)
        _limiter.set(limiter)
        return limiter

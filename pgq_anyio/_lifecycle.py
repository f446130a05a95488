"""How a job ends: the exceptions that a handler may raise to say so, the outcomes, and the one function that decides.

The life cycle, as a table. The state is the table that holds the row; only what is written here can happen:

========  ====================================  ============================================================
from      by                                    to
========  ====================================  ============================================================
deferred  its time has come                     queued
queued    a claim                               running
running   ``Succeeded``                         finished(successful)
running   ``Failed``                            finished(failed)
running   ``Cancelled``                         finished(cancelled)
running   ``Again`` (retry, snooze)             queued or deferred, with a fresh place
running   ``GivenBack``                         queued, in its old place
running   the worker died                       queued in its old place, or finished(failed)
deferred  a cancel request                      finished(cancelled)
queued    a cancel request                      finished(cancelled)
running   a cancel request, then any outcome    finished(cancelled)
========  ====================================  ============================================================

The database has the last word (a cancel request recorded in the row beats the outcome); this module decides what the
worker asks it to do.
"""

from __future__ import annotations

import traceback
from datetime import timedelta
from typing import Final

import attrs

from ._durations import seconds
from ._errors import leaves
from ._models import CancelReason
from ._retry import RetryPolicy

#: Texts of errors are cut to these lengths (in characters); the cut is said in the text.
MAX_MESSAGE: Final = 10_000
MAX_TRACEBACK: Final = 100_000


class HandlerOutcome(Exception):  # noqa: N818  (these are answers of a handler, not errors)
    """Base class of what a handler raises to say how its job goes on. All survive pickling, for processes."""


class Retry(HandlerOutcome):
    """Run the job again; the attempt is counted. Refused attempts beyond ``max_attempts`` do not apply: the handler
    decides.

    :param delay: wait at least this long first (in seconds, or a ``timedelta``); ``None`` leaves it to the retry policy
    :param reason: recorded as this attempt's error
    """

    def __init__(self, delay: float | timedelta | None = None, reason: str | None = None) -> None:
        super().__init__(reason or "retry")
        self.delay: float | None = None if delay is None else seconds("delay", delay)
        self.reason = reason

    def __reduce__(self) -> tuple[type[Retry], tuple[float | None, str | None]]:
        return Retry, (self.delay, self.reason)


class Snooze(HandlerOutcome):
    """Run the job again later; the attempt is not counted.

    :param delay: wait at least this long first (in seconds, or a ``timedelta``)
    """

    def __init__(self, delay: float | timedelta) -> None:
        super().__init__("snooze")
        self.delay: float = seconds("delay", delay)

    def __reduce__(self) -> tuple[type[Snooze], tuple[float]]:
        return Snooze, (self.delay,)


class Cancel(HandlerOutcome):
    """End the job as cancelled.

    :param reason: recorded with the job
    """

    def __init__(self, reason: str | None = None) -> None:
        super().__init__(reason or "cancelled by its handler")
        self.reason = reason

    def __reduce__(self) -> tuple[type[Cancel], tuple[str | None]]:
        return Cancel, (self.reason,)


class Discard(HandlerOutcome):
    """End the job as failed, whatever attempts are left.

    :param reason: recorded as the job's error
    """

    def __init__(self, reason: str | None = None) -> None:
        super().__init__(reason or "discarded by its handler")
        self.reason = reason

    def __reduce__(self) -> tuple[type[Discard], tuple[str | None]]:
        return Discard, (self.reason,)


@attrs.frozen
class ErrorText:
    """An exception in the words that are stored: PostgreSQL's text takes neither NUL nor lone surrogates."""

    type: str
    message: str
    traceback: str | None

    @classmethod
    def of(cls, error: BaseException) -> ErrorText:
        """Describe an exception with all leaves of a group, each part cut to its bound."""
        name = type(error).__qualname__
        message = _text_of(error)
        try:
            trace = "".join(traceback.format_exception(error))
        except Exception as broken:  # noqa: BLE001  (as above)
            trace = f"<the traceback cannot be formatted: {type(broken).__qualname__}>"
        return cls(_storable(name, MAX_MESSAGE), message, _storable(trace, MAX_TRACEBACK))


def _text_of(value: object) -> str:
    """What a user's object says, in words that can be stored."""
    try:
        text = str(value)
    except Exception as broken:  # noqa: BLE001  (a user's __str__ may do anything; the job's end must still be stored)
        text = f"<the text of this {type(value).__qualname__} cannot be had: {type(broken).__qualname__}>"
    return _storable(text, MAX_MESSAGE)


def _storable(text: str, limit: int) -> str:
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n… {len(text) - limit} characters left out …\n{text[-(limit // 2) :]}"
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


@attrs.frozen
class Succeeded:
    """The handler returned."""


@attrs.frozen
class Failed:
    """The handler failed for good."""

    error: ErrorText


@attrs.frozen
class Cancelled:
    """The job was cancelled: by request, or by its handler."""

    reason: str | None
    #: whether its handler was never called, so that it spent no token of its rate
    unstarted: bool = False


@attrs.frozen
class Again:
    """The job runs again with a fresh place, after ``delay`` seconds."""

    delay: float
    counted: bool
    #: the error of the attempt that ended, or ``None`` for a snooze
    error: ErrorText | None


@attrs.frozen
class GivenBack:
    """The job goes back to its old place as if it had never been claimed."""

    #: whether its handler was never called, so that it spent no token of its rate
    unstarted: bool = False


Outcome = Succeeded | Failed | Cancelled | Again | GivenBack
SUCCEEDED: Final = Succeeded()
GIVEN_BACK: Final = GivenBack()
#: By request: the reason stands in the row already.
CANCELLED: Final = Cancelled(None)
#: The same for jobs whose handler was never called.
UNSTARTED_GIVEN_BACK: Final = GivenBack(unstarted=True)
UNSTARTED_CANCELLED: Final = Cancelled(None, unstarted=True)


def decide_outcome(
    error: BaseException | None,
    *,
    cancel_reason: CancelReason | None,
    interrupted: bool,
    attempt: int,
    max_attempts: int,
    policy: RetryPolicy,
) -> Outcome:
    """Decide how a job goes on, from what its handler did and from the records of who cancelled it.

    :param error: what the handler raised, or ``None`` if it returned; a ``JobTimeout`` if its timeout ended it
    :param cancel_reason: the recorded reason, if a cancellation was asked for before the handler ended
    :param interrupted: whether a cancellation reached the handler (it raised, or was seen by it)
    :param attempt: the number of this attempt, from 1
    :param max_attempts: how many attempts may fail before the job does
    :param policy: delays between attempts, and which errors are worth one
    :return: what to ask of the database
    """
    if cancel_reason is CancelReason.USER:
        return CANCELLED
    if interrupted and cancel_reason in (CancelReason.SHUTDOWN, CancelReason.LEASE_LOST):
        return GIVEN_BACK
    if error is None:
        return SUCCEEDED
    answer = _common_outcome(error)
    match answer:
        case Cancel():
            # A cancel from outside is refused a reason that cannot be stored; here it is too late to refuse anything.
            return Cancelled(None if answer.reason is None else _text_of(answer.reason))
        case Discard():
            return Failed(ErrorText.of(answer.__cause__ or answer))
        case Snooze():
            return Again(answer.delay, counted=False, error=None)
        case Retry():
            delay = policy.delay(attempt) if answer.delay is None else answer.delay
            return Again(delay, counted=True, error=ErrorText.of(answer.__cause__ or answer))
        case _:
            text = ErrorText.of(error)
            if attempt < max_attempts and policy.retries(error):
                return Again(policy.delay(attempt), counted=True, error=text)
            return Failed(text)


def _common_outcome(error: BaseException) -> HandlerOutcome | None:
    """The outcome that an exception stands for: a group counts only if all its leaves are one and the same kind."""
    if isinstance(error, HandlerOutcome):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    first, *others = leaves(error)
    if isinstance(first, HandlerOutcome) and all(type(other) is type(first) for other in others):
        return first
    return None

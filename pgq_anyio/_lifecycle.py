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
from typing import Any, Final

import attrs

from ._durations import seconds
from ._errors import leaves
from ._models import CancelReason
from ._retry import RetryPolicy

#: Texts of errors are cut to these lengths (in characters); the cut is said in the text.
MAX_MESSAGE: Final = 10_000
MAX_TRACEBACK: Final = 100_000


class HandlerOutcome(Exception):  # noqa: N818  (these are answers of a handler, not errors)
    """Base class of what a handler raises to say how its job goes on. All survive pickling, for processes, and so do
    subclasses, whatever their ``__init__`` takes.
    """

    #: what is recorded of one that has come from a process: causes and tracebacks do not travel
    _told: ErrorText | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (type(self), self.args), vars(self)


def _remake(kind: type[HandlerOutcome], args: tuple[object, ...]) -> HandlerOutcome:
    """Make an answer whose attributes are still to be set."""
    return kind.__new__(kind, *args)


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


class Snooze(HandlerOutcome):
    """Run the job again later; the attempt is not counted.

    :param delay: wait at least this long first (in seconds, or a ``timedelta``)
    """

    def __init__(self, delay: float | timedelta) -> None:
        super().__init__("snooze")
        self.delay: float = seconds("delay", delay)


class Cancel(HandlerOutcome):
    """End the job as cancelled.

    :param reason: recorded with the job
    """

    def __init__(self, reason: str | None = None) -> None:
        super().__init__(reason or "cancelled by its handler")
        self.reason = reason


class Discard(HandlerOutcome):
    """End the job as failed, whatever attempts are left.

    :param reason: recorded as the job's error
    """

    def __init__(self, reason: str | None = None) -> None:
        super().__init__(reason or "discarded by its handler")
        self.reason = reason


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

    def in_ascii(self) -> ErrorText:
        """The same with escapes for all other characters: any database can store it."""
        return ErrorText(*(part and part.encode("ascii", "backslashreplace").decode() for part in attrs.astuple(self)))


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
    answer = find_answer(error)
    match answer:
        case Cancel():
            # A cancel from outside is refused a reason that cannot be stored; here it is too late to refuse anything.
            return Cancelled(None if answer.reason is None else _text_of(answer.reason))
        case Discard():
            return Failed(text_of_answer(answer))
        case Snooze():
            return Again(seconds("delay", answer.delay), counted=False, error=None)
        case Retry():
            # Checked again: a subclass may have set it by itself.
            delay = policy.delay(attempt) if answer.delay is None else seconds("delay", answer.delay)
            return Again(delay, counted=True, error=text_of_answer(answer))
        case _:
            text = ErrorText.of(error)
            if attempt < max_attempts and policy.retries(error):
                return Again(policy.delay(attempt), counted=True, error=text)
            return Failed(text)


def find_answer(error: BaseException) -> HandlerOutcome | None:
    """The outcome that an exception stands for: a group counts only if all its leaves are one and the same kind. A
    subclass is of the kind that it is derived from.
    """
    if isinstance(error, HandlerOutcome):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    first, *others = leaves(error)
    for kind in (Retry, Snooze, Cancel, Discard):
        if isinstance(first, kind) and all(isinstance(other, kind) for other in others):
            return first
    return None


def plain_answer(answer: HandlerOutcome) -> HandlerOutcome:
    """The same answer without what a subclass makes of it.

    :raises Exception: whatever a subclass does that is not what it says it is
    """
    match answer:
        case Retry():
            return Retry(answer.delay, answer.reason)
        case Snooze():
            return Snooze(answer.delay)
        case Cancel():
            return Cancel(answer.reason)
        case Discard():
            return Discard(answer.reason)
        case _:
            raise TypeError(f"{type(answer).__qualname__} is no answer")


def text_of_answer(answer: HandlerOutcome) -> ErrorText:
    """What is recorded of an answer: its cause, if it has one."""
    return answer._told or ErrorText.of(answer.__cause__ or answer)


def tell_answer(error: BaseException, text: ErrorText) -> None:
    """Say what is to be recorded of the answer that an exception from a process stands for."""
    answer = find_answer(error)
    if answer is not None:
        answer._told = text

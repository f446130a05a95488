"""How a job's end is decided, without a database."""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any

import pytest

from pgq_anyio import Cancel, CancelReason, ConfigurationError, Discard, JobTimeout, Retry, Snooze
from pgq_anyio._lifecycle import (
    CANCELLED,
    GIVEN_BACK,
    MAX_MESSAGE,
    MAX_TRACEBACK,
    SUCCEEDED,
    Again,
    Cancelled,
    ErrorText,
    Failed,
    Outcome,
    decide_outcome,
    plain_answer,
    tell_answer,
)
from pgq_anyio._retry import RetryPolicy

STEADY = RetryPolicy(initial_delay=2.0, jitter=False)


def decide(
    error: BaseException | None = None,
    *,
    reason: CancelReason | None = None,
    interrupted: bool = False,
    attempt: int = 1,
    max_attempts: int = 1,
) -> Outcome:
    return decide_outcome(
        error,
        cancel_reason=reason,
        interrupted=interrupted,
        attempt=attempt,
        max_attempts=max_attempts,
        policy=STEADY,
    )


def test_a_handler_that_returns_has_succeeded() -> None:
    assert decide() is SUCCEEDED


@pytest.mark.parametrize("error", [None, ValueError("x"), Retry(), Snooze(1), Cancel("no"), Discard("no")])
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_request_before_the_end_beats_whatever_the_handler_did(error: Exception | None, interrupted: bool) -> None:
    assert decide(error, reason=CancelReason.USER, interrupted=interrupted, max_attempts=5) is CANCELLED


@pytest.mark.parametrize("reason", [CancelReason.SHUTDOWN, CancelReason.LEASE_LOST])
def test_an_interrupted_job_goes_back_uncounted(reason: CancelReason) -> None:
    """Only an explicit record makes a job cancelled; an interruption gives it back, whatever the handler made of it."""
    assert decide(reason=reason, interrupted=True) is GIVEN_BACK
    assert decide(ValueError("in the cleanup"), reason=reason, interrupted=True) is GIVEN_BACK


@pytest.mark.parametrize("reason", [CancelReason.SHUTDOWN, CancelReason.LEASE_LOST])
def test_a_job_that_ended_before_the_interruption_reached_it_keeps_its_outcome(reason: CancelReason) -> None:
    assert decide(reason=reason) is SUCCEEDED
    assert isinstance(decide(ValueError("x"), reason=reason), Failed)


def test_failure_is_final_unless_attempts_are_left() -> None:
    assert isinstance(decide(ValueError("x")), Failed)
    again = decide(ValueError("x"), attempt=2, max_attempts=3)
    assert isinstance(again, Again)
    assert (4.0, True) == (again.delay, again.counted)
    assert again.error is not None
    assert again.error.type == "ValueError"
    assert isinstance(decide(ValueError("x"), attempt=3, max_attempts=3), Failed)


def test_a_timeout_is_a_failure_of_its_own_type() -> None:
    failed = decide(JobTimeout(2), reason=CancelReason.TIMEOUT, interrupted=True)
    assert isinstance(failed, Failed)
    assert failed.error.type == "JobTimeout"
    assert "2 s" in failed.error.message
    assert isinstance(decide(JobTimeout(2), reason=CancelReason.TIMEOUT, interrupted=True, max_attempts=2), Again)


def test_what_handlers_raise_to_say_how_it_goes_on() -> None:
    again = decide(Retry(delay=timedelta(minutes=1), reason="busy"))
    assert isinstance(again, Again)
    assert (60.0, True, "busy") == (again.delay, again.counted, again.error and again.error.message)
    assert Again(5.0, counted=False, error=None) == decide(Snooze(5))
    assert Cancelled("not needed") == decide(Cancel("not needed"), max_attempts=9)
    discarded = decide(Discard("hopeless"), max_attempts=9)
    assert isinstance(discarded, Failed)
    assert discarded.error.message == "hopeless"


def test_the_cause_of_a_retry_is_what_is_recorded() -> None:
    try:
        try:
            raise ConnectionError("refused")
        except ConnectionError as error:
            raise Retry(delay=0) from error
    except Retry as retry:
        again = decide(retry)
    assert isinstance(again, Again)
    assert again.error is not None
    assert again.error.type == "ConnectionError"


def test_a_group_of_one_kind_of_outcome_is_that_outcome() -> None:
    assert isinstance(decide(ExceptionGroup("g", [Snooze(3), ExceptionGroup("h", [Snooze(4)])])), Again)
    assert Cancelled("a") == decide(ExceptionGroup("g", [Cancel("a")]))


class Busy(Retry):
    """A subclass is of the kind that it is derived from."""


class Away(Retry):
    """Another one."""


@pytest.mark.parametrize("kinds", [(Retry, Busy), (Busy, Retry), (Busy, Away)])
def test_a_group_of_subclasses_of_one_kind_is_that_outcome(kinds: tuple[type[Retry], ...]) -> None:
    again = decide(ExceptionGroup("g", [kind(delay) for delay, kind in enumerate(kinds, start=3)]))
    assert isinstance(again, Again)
    assert again.delay == 3


def test_a_mixed_group_is_a_failure_with_all_its_leaves() -> None:
    failed = decide(ExceptionGroup("g", [Cancel("a"), ValueError("first"), KeyError("second")]))
    assert isinstance(failed, Failed)
    assert failed.error.type == "ExceptionGroup"
    assert failed.error.traceback is not None
    assert "first" in failed.error.traceback
    assert "second" in failed.error.traceback


def test_error_texts_in_ascii() -> None:
    assert ErrorText("T", "caf\\xe9", "\\u2192\n") == ErrorText("T", "caf\xe9", "\u2192\n").in_ascii()
    assert ErrorText("T", "m", None) == ErrorText("T", "m", None).in_ascii()


def test_error_texts_are_what_postgresql_can_store() -> None:
    text = ErrorText.of(ValueError("nul \x00 and surrogate \ud800"))
    assert text.message == "nul \\x00 and surrogate \\ud800"
    assert text.traceback is not None
    text.traceback.encode()
    assert "\x00" not in text.traceback


def test_long_error_texts_are_cut_with_a_note() -> None:
    text = ErrorText.of(ValueError("x" * 1_000_000))
    assert len(text.message) < MAX_MESSAGE + 100
    assert "characters left out" in text.message
    assert text.traceback is not None
    assert len(text.traceback) < MAX_TRACEBACK + 100


def test_an_exception_that_cannot_be_printed_is_recorded_all_the_same() -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    text = ErrorText.of(OddError())
    assert "RuntimeError" in text.message


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("why", "why"),
        ("", ""),
        (None, None),
        ("nul \x00, \ud800", "nul \\x00, \\ud800"),
        (7, "7"),
        ("x" * 20_000, "x" * 5_000 + "\n… 10000 characters left out …\n" + "x" * 5_000),
    ],
)
def test_reasons_are_what_postgresql_can_store(reason: Any, told: str | None) -> None:
    assert Cancelled(told) == decide(Cancel(reason))


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), True, "1"])
def test_bad_delays_are_refused_where_they_are_written(delay: float) -> None:
    for outcome in (Retry, Snooze):
        with pytest.raises(ConfigurationError, match="delay"):
            outcome(delay)


def test_answers_survive_the_way_from_a_child_process() -> None:
    for answer in (Retry(delay=3, reason="r"), Retry(), Snooze(4), Cancel("c"), Discard(None)):
        copy = pickle.loads(pickle.dumps(answer))
        assert type(answer) is type(copy)
        assert vars(answer) == vars(copy)
        assert str(answer) == str(copy)


class BusyError(Retry):
    def __init__(self, limit: int, *, unit: str) -> None:
        super().__init__(delay=3, reason="busy")
        self.limit = f"{limit} {unit}"


def test_subclasses_survive_it_too() -> None:
    """Whatever their ``__init__`` takes, with what they know; in the end they are what their base class is."""
    answer = BusyError(5, unit="a minute")
    copy = pickle.loads(pickle.dumps(answer))
    assert (BusyError, vars(answer), answer.args) == (type(copy), vars(copy), copy.args)
    for again in (decide(copy), decide(plain_answer(answer))):
        assert isinstance(again, Again)
        assert (3.0, True, "busy") == (again.delay, again.counted, again.error and again.error.message)


def test_plain_answers_are_what_they_were() -> None:
    for answer in (Retry(delay=3, reason="r"), Retry(), Snooze(4), Cancel("c"), Discard(None)):
        plain = plain_answer(answer)
        assert (type(answer), vars(answer)) == (type(plain), vars(plain))


def test_what_is_told_of_an_answer_is_recorded() -> None:
    """Its cause has not come along."""
    text = ErrorText("ConnectionError", "refused", "Traceback")
    for error in (Retry(), Discard(), ExceptionGroup("g", [Retry(), Retry()])):
        tell_answer(error, text)
        outcome = decide(error)
        assert isinstance(outcome, Again | Failed)
        assert outcome.error is text
    tell_answer(ValueError("no answer"), text)


def test_delays_that_were_set_later_are_read_as_others_are() -> None:
    for answer in (Retry(), Snooze(1)):
        answer.delay = timedelta(minutes=1)  # type: ignore[assignment]
        again = decide(answer)
        assert isinstance(again, Again)
        assert 60.0 == again.delay
        answer.delay = -1.0
        with pytest.raises(ConfigurationError, match="delay"):
            decide(answer)


def test_no_delay_is_longer_than_a_hundred_years() -> None:
    with pytest.raises(ConfigurationError, match="delay must be less than a hundred years"):
        Snooze(1e12)

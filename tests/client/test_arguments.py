"""What may be enqueued, without a database."""

from __future__ import annotations

import enum
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pgq_anyio import ConfigurationError
from pgq_anyio._client._arguments import check_id, check_ids, check_reason, list_filters, new_jobs
from pgq_anyio._models import JobId

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


class Level(enum.IntEnum):
    HIGH = 9


class Nowhere(tzinfo):
    """A time zone that does not say its offset."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return None

    def dst(self, moment: datetime | None) -> timedelta | None:
        return None

    def tzname(self, moment: datetime | None) -> str | None:
        return None


@pytest.mark.promise(2)
def test_lists_run_in_parallel_and_scalars_beside_them() -> None:
    """Also tuples, and lists of one; bytes are one value."""
    jobs = new_jobs(["a", "b"], b"ab", (1, 2), [None, timedelta(seconds=5)])
    assert (["a", "b"], [b"ab", b"ab"], [1, 2]) == (jobs.entrypoints, jobs.payloads, jobs.priorities)
    assert ([None, 5.0], [None, None]) == (jobs.delays, jobs.run_ats)
    assert ["a", "a"] == list(new_jobs("a", [b"1", None], 0, None).entrypoints)
    assert 1 == len(new_jobs(["a"], None, 0, None).payloads)
    assert [] == list(new_jobs([], None, 0, None).entrypoints)
    assert [] == list(new_jobs("a", [], 0, None).entrypoints)


@pytest.mark.promise(1)
@pytest.mark.parametrize("payload", [b"\x00", bytearray(b"\x00"), memoryview(b"\x00"), memoryview(b"\x00x\x00x")[::2]])
def test_payloads_are_anything_like_bytes(payload: Any) -> None:
    """What the caller changes afterwards changes no job."""
    found = new_jobs("a", payload, 0, None).payloads[0]
    assert type(found) is bytes
    assert found == bytes(payload)


@pytest.mark.promise(2, 8)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", "b"], [b""]), "must have the same length: entrypoint has 2, payload has 1"),
        ((["a", "b"], None, []), "must have the same length: entrypoint has 2, priority has 0"),
        (("",), "entrypoint: .*must not be empty"),
        ((["a", None],), r"entrypoint\[1\]: .*must be a str"),
        ((["a", ["b"]],), r"entrypoint\[1\]: .*must be a str"),
        (("a\x00",), "NUL"),
        (("\ud800",), "not valid Unicode"),
        (("x" * 501,), "501 characters"),
        ((b"a",), "must be a str"),
        (("a", "text"), r"payload: a payload is bytes: encode the str, as in text.encode\(\)"),
        (("a", [b"", {"a": 1}]), r"payload\[1\]: a payload must be bytes or None, not \{'a': 1\}"),
        (("a", 5), "payload: a payload must be bytes or None, not 5"),
        (("a", {b"x"}), "payload: a payload must be bytes"),
        (("a", None, 2**31), "priority: a priority must be between -2147483648 and 2147483647, not 2147483648"),
        (("a", None, [0, -(2**31) - 1]), r"priority\[1\]: .* not -2147483649"),
        (("a", None, True), "priority: a priority must be a whole number, not True"),
        (("a", None, 1.5), "priority: a priority must be a whole number, not 1.5"),
        (("a", None, None), "priority: a priority must be a whole number, not None"),
        (("a", None, "5"), "priority: a priority must be a whole number"),
        (("a", None, 0, datetime(2030, 1, 1)), r"execute_after: .* is naive: give it a time zone"),
        (("a", None, 0, datetime(2030, 1, 1, tzinfo=Nowhere())), "is naive"),
        (("a", None, 0, [None, datetime(2030, 1, 1)]), r"execute_after\[1\]: .* is naive"),
        (("a", None, 0, timedelta.max), "execute_after: .* is after the year 9998"),
        (("a", None, 0, timedelta(days=365 * 8000)), "execute_after: .* is after the year 9998"),
        (("a", None, 0, datetime.max.replace(tzinfo=UTC)), "execute_after: .* is after the year 9998"),
        (("a", None, 0, datetime.max.replace(tzinfo=timezone(timedelta(hours=-23)))), "is after the year 9998"),
        (("a", None, 0, 60), r"execute_after: 60 is a plain number: write timedelta\(seconds=60\)"),
        (("a", None, 0, float("nan")), "execute_after: it must be a timedelta, an aware datetime or None, not nan"),
        (("a", None, 0, float("inf")), "execute_after: it must be a timedelta, an aware datetime or None, not inf"),
        (
            ("a", None, 0, "tomorrow"),
            "execute_after: it must be a timedelta, an aware datetime or None, not 'tomorrow'",
        ),
    ],
)
def test_what_cannot_be_enqueued_is_said(arguments: tuple[Any, ...], message: str) -> None:
    """The message names the argument, the place in its list, and the value or the fix."""
    given: dict[str, Any] = {"payload": None, "priority": 0, "execute_after": None}
    given |= dict(zip(["entrypoint", *given], arguments, strict=False))
    with pytest.raises(ConfigurationError, match=message):
        new_jobs(**given)


@pytest.mark.promise(8)
def test_when_a_job_is_due() -> None:
    """Delays stay delays, for the database's clock to count; past ones are none. Moments stay moments."""
    past = [timedelta(0), timedelta(seconds=-1), timedelta.min]
    assert [None] * 3 == list(new_jobs("a", None, 0, past).delays)
    assert [0.001] == list(new_jobs("a", None, 0, timedelta(milliseconds=1)).delays)
    moments = [
        NOON,
        NOON.astimezone(ZoneInfo("Asia/Kathmandu")),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
    ]
    assert moments == list(new_jobs("a", None, 0, moments).run_ats)


def test_priorities_are_numbers_of_any_make() -> None:
    """Enumerations and the ends of the range."""
    assert [9, 2**31 - 1, -(2**31)] == list(new_jobs("a", None, [Level.HIGH, 2**31 - 1, -(2**31)], None).priorities)
    assert type(new_jobs("a", None, Level.HIGH, None).priorities[0]) is int


@pytest.mark.promise(24)
def test_ids_of_jobs() -> None:
    """Any iterable of numbers; those that no job can have are unknown ones, and what is no number is refused."""
    assert [1, 2] == check_ids(JobId(n) for n in (1, 2**63, 2, -(2**63) - 1))
    assert check_id(JobId(2**63)) is None
    for wrong in (5, "12", b"12", None, [True], [1.0], ["1"], [None]):
        with pytest.raises(ConfigurationError):
            check_ids(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"ids are a list: write \[5\]"):
        check_ids(5)  # type: ignore[arg-type]


def test_reasons_and_filters() -> None:
    """Reasons are text that can be stored; states are given by name or value."""
    assert check_reason(None) is None
    for wrong in (5, "a\x00", "\ud800"):
        with pytest.raises(ConfigurationError, match="reason"):
            check_reason(wrong)  # type: ignore[arg-type]
    assert "failed" == list_filters("failed", None, 1, None)["status"]
    with pytest.raises(ConfigurationError, match="status must be one of deferred, queued, running, successful"):
        list_filters("done", None, 1, None)
    with pytest.raises(ConfigurationError, match="limit"):
        list_filters(None, None, 0, None)

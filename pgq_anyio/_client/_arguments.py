"""Checked arguments of ``Queries``: whatever is wrong is said before anything is sent, with the place in the list.

Lists run in parallel and everything else is repeated beside them. Lists are ``list`` and ``tuple``: ``bytes`` and
``str`` are sequences too, but a payload and a name are one value, and the order of a set means nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from .._durations import count
from .._errors import ConfigurationError, shown
from .._models import JobId, JobStatus
from .._registry import check_name
from .._store.queued import NewJobs

T = TypeVar("T")

#: When a job is due: so long from now by the database's clock, or at this moment; ``None`` is at once.
When = timedelta | datetime | None

MIN_PRIORITY: Final = -(2**31)
MAX_PRIORITY: Final = 2**31 - 1
#: Python's datetime ends with the year 9999, whatever the time zone it is shown in.
LATEST: Final = datetime(9999, 1, 1, tzinfo=UTC)
_INT8: Final = range(-(2**63), 2**63)


def new_jobs(
    entrypoint: str | Sequence[str],
    payload: bytes | Sequence[bytes | None] | None,
    priority: int | Sequence[int],
    execute_after: When | Sequence[When],
) -> NewJobs:
    """Bring the arguments of ``enqueue`` into lists of the same length.

    :raises ConfigurationError: if one of them cannot be used
    """
    given = {"entrypoint": entrypoint, "payload": payload, "priority": priority, "execute_after": execute_after}
    lengths = {name: len(value) for name, value in given.items() if isinstance(value, list | tuple)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ConfigurationError(f"lists run in parallel and must have the same length: {told}")
    number = next(iter(lengths.values()), 1)
    names = _column("entrypoint", entrypoint, number, _once(lambda name: check_name("the entrypoint", name)))
    payloads = _column("payload", payload, number, _payload)
    priorities = _column("priority", priority, number, _priority)
    if execute_after is None:
        return NewJobs(names, payloads, priorities, [None] * number, [None] * number)
    dues = _column("execute_after", execute_after, number, _due)
    return NewJobs(names, payloads, priorities, [delay for delay, _ in dues], [moment for _, moment in dues])


def _column(name: str, value: Any, number: int, check: Callable[[Any], T]) -> list[T]:
    """Check one argument, element by element; an error says which one is wrong."""
    if not isinstance(value, list | tuple):
        return [_checked(name, value, check)] * number
    checked: list[T] = []
    try:
        for element in value:
            checked.append(check(element))  # noqa: PERF401  (where it stops is what the error tells)
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}[{len(checked)}]: {error}") from None
    return checked


def _checked(name: str, value: Any, check: Callable[[Any], T]) -> T:
    try:
        return check(value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from None


def _once(check: Callable[[Any], str]) -> Callable[[Any], str]:
    """Check equal names once: a batch has thousands of jobs and few names."""
    known: dict[str, str] = {}

    def checked(name: Any) -> str:
        found = known.get(name) if isinstance(name, str) else None
        if found is None:
            found = known[name] = check(name)
        return found

    return checked


def _payload(value: Any) -> bytes | None:
    if value is None or type(value) is bytes:
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        raise ConfigurationError("a payload is bytes: encode the str, as in text.encode()")
    raise ConfigurationError(f"a payload must be bytes or None, not {shown(value)}")


def _priority(value: Any) -> int:
    if type(value) is not int:
        try:
            if isinstance(value, bool):
                raise TypeError
            value = operator.index(value)
        except TypeError:
            raise ConfigurationError(f"a priority must be a whole number, not {shown(value)}") from None
    if not MIN_PRIORITY <= value <= MAX_PRIORITY:
        raise ConfigurationError(f"a priority must be between {MIN_PRIORITY} and {MAX_PRIORITY}, not {value}")
    return int(value)


def _due(value: Any) -> tuple[float | None, datetime | None]:
    """When a job is due, as (seconds from now, moment); both ``None`` for at once."""
    if value is None:
        return None, None
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
        if seconds >= (LATEST - datetime.now(UTC)).total_seconds():
            raise ConfigurationError(f"{value!r} from now is after the year 9998")
        return (seconds, None) if seconds > 0 else (None, None)
    if isinstance(value, datetime):
        offset = value.utcoffset()
        if offset is None:
            raise ConfigurationError(f"{value!r} is naive: give it a time zone, as in datetime.now(UTC)")
        if value.replace(tzinfo=UTC) - LATEST >= offset:
            raise ConfigurationError(f"{value!r} is after the year 9998")
        return None, value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        raise ConfigurationError(f"{value!r} is a plain number: write timedelta(seconds={value!r})")
    raise ConfigurationError(f"it must be a timedelta, an aware datetime or None, not {shown(value)}")


def check_ids(ids: Iterable[JobId]) -> list[JobId]:
    """Check ids of jobs, in order. Numbers that no job can have are left out, as unknown ones.

    :raises ConfigurationError: if they are not whole numbers
    """
    if isinstance(ids, int):
        raise ConfigurationError(f"ids are a list: write [{ids}]")
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise ConfigurationError(f"ids must be a list of numbers, not {shown(ids)}")
    return [job_id for job_id in map(_id, ids) if job_id in _INT8]


def check_id(job_id: JobId) -> JobId | None:
    """Check the id of a job; ``None`` for a number that no job can have.

    :raises ConfigurationError: if it is not a whole number
    """
    checked = _id(job_id)
    return checked if checked in _INT8 else None


def _id(value: Any) -> JobId:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"the id of a job is a whole number, not {shown(value)}")
    return JobId(int(value))


def check_limit(limit: int | None) -> int | None:
    """:raises ConfigurationError: if this is no number of rows, nor ``None`` for all"""
    return None if limit is None else count("limit", limit)


def check_reason(reason: str | None, what: str = "the reason") -> str | None:
    """:raises ConfigurationError: if this cannot be stored as a text"""
    if reason is None:
        return None
    if not isinstance(reason, str):
        raise ConfigurationError(f"{what} must be a str, not {shown(reason)}")
    if "\x00" in reason:
        raise ConfigurationError(f"{what} has a NUL character, which PostgreSQL cannot store")
    try:
        reason.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{what} is not valid Unicode: {shown(reason)}") from None
    return reason


def check_schedule(name: str, expression: str | None) -> tuple[str, str | None]:
    """Check what names schedules: a name, and one of its expressions or ``None`` for all.

    :raises ConfigurationError: if this cannot be one
    """
    check_name("the schedule", name)
    if expression is None:
        return name, None
    if not isinstance(expression, str):
        raise ConfigurationError(f"the expression must be a str, not {shown(expression)}")
    # As it was registered: with single spaces between the fields.
    return name, check_reason(" ".join(expression.split()), "the expression")


def list_filters(
    status: JobStatus | str | None, entrypoint: str | None, limit: int, before: JobId | None
) -> dict[str, Any]:
    """Check the arguments of ``list_jobs``.

    :raises ConfigurationError: if one of them cannot be used
    """
    if status is not None:
        try:
            status = JobStatus(status)
        except ValueError:
            raise ConfigurationError(f"status must be one of {', '.join(JobStatus)}, not {shown(status)}") from None
    return {
        "status": status,
        "entrypoint": None if entrypoint is None else check_name("the entrypoint", entrypoint),
        "limit": count("limit", limit),
        "before": None if before is None else JobId(min(max(_id(before), _INT8[0] + 1), _INT8[-1])),
    }

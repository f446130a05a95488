"""Checked filters of ``Queries``: which jobs are cancelled or requeued without naming their ids.

Ids and filters exclude each other, and a call that has neither is an error, never "all jobs": an argument that was
forgotten, or is ``None`` by accident, must not empty a queue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from .._durations import count, seconds
from .._errors import ConfigurationError, shown
from .._models import JobStatus
from .._registry import check_name
from .._store.cancelling import UNFINISHED, UnfinishedFilter
from .._store.requeueing import EndedFilter

#: What can be requeued: a job that succeeded has no payload any more.
REQUEUEABLE: Final = (JobStatus.FAILED, JobStatus.CANCELLED)


def unfinished_filter(
    ids: object,
    *,
    entrypoint: str | None,
    status: JobStatus | str | None,
    older_than: timedelta | datetime | None,
    called: Callable[[str], str] = str,
) -> UnfinishedFilter | None:
    """Check the filters of ``mark_job_as_cancelled``; ``None`` if there are ids instead.

    :param called: gives the name by which whoever asked knows a filter
    :raises ConfigurationError: if there are neither, or both, or one cannot be used
    """
    given = {"entrypoint": entrypoint, "status": status, "older_than": older_than}
    if not _has_filter(ids, {called(name): value for name, value in given.items()}):
        return None
    age, moment = None, None
    if isinstance(older_than, datetime):
        moment = _moment(called("older_than"), older_than)
    elif older_than is not None:
        if not isinstance(older_than, timedelta):
            raise ConfigurationError(
                f"{called('older_than')} must be a timedelta or an aware datetime, not {shown(older_than)}"
            )
        age = seconds(called("older_than"), older_than)
    return UnfinishedFilter(
        states=UNFINISHED if status is None else (_status(called("status"), status, UNFINISHED, "cancelled"),),
        entrypoint=None if entrypoint is None else check_name("the entrypoint", entrypoint),
        older_than=age,
        created_before=moment,
    )


def ended_filter(
    ids: object,
    *,
    entrypoint: str | None,
    status: JobStatus | str | None,
    error_type: str | None,
    finished_after: datetime | None,
    finished_before: datetime | None,
    limit: int | None,
    called: Callable[[str], str] = str,
) -> EndedFilter | None:
    """Check the filters of ``requeue``; ``None`` if there are ids instead.

    :param called: gives the name by which whoever asked knows a filter
    :raises ConfigurationError: if there are neither, or both, or one cannot be used
    """
    given = {
        "entrypoint": entrypoint,
        "status": status,
        "error_type": error_type,
        "finished_after": finished_after,
        "finished_before": finished_before,
    }
    if not _has_filter(ids, {called(name): value for name, value in given.items()}):
        if limit is not None:
            raise ConfigurationError(f"{called('limit')} goes with a filter: leave it out, or give fewer ids")
        return None
    if error_type is not None:
        check_name(called("error_type"), error_type)
    return EndedFilter(
        # Jobs that were cancelled were so on purpose: they come back only if they are asked for.
        statuses=(_status(called("status"), JobStatus.FAILED if status is None else status, REQUEUEABLE, "requeued"),),
        entrypoint=None if entrypoint is None else check_name("the entrypoint", entrypoint),
        error_type=error_type,
        finished_after=None if finished_after is None else _moment(called("finished_after"), finished_after),
        finished_before=None if finished_before is None else _moment(called("finished_before"), finished_before),
        limit=None if limit is None else count(called("limit"), limit),
    )


def _has_filter(ids: object, filters: Mapping[str, Any]) -> bool:
    """Whether jobs are chosen by a filter.

    :raises ConfigurationError: if they are chosen by nothing, or by ids too
    """
    given = [name for name, value in filters.items() if value is not None]
    if ids is not None and given:
        raise ConfigurationError(f"give ids or filters, not both: there are ids and {', '.join(given)}")
    if ids is None and not given:
        raise ConfigurationError(f"say which jobs: give their ids, or at least one of {', '.join(filters)}")
    return bool(given)


def _status(name: str, value: JobStatus | str, allowed: Sequence[JobStatus], what: str) -> JobStatus:
    if value in allowed:
        return JobStatus(value)
    told = ", ".join(str(status) for status in allowed)
    raise ConfigurationError(f"{name} must be one of {told}, not {shown(value)}: no other jobs can be {what}")


def _moment(name: str, value: datetime) -> datetime:
    if not isinstance(value, datetime):
        raise ConfigurationError(f"{name} must be an aware datetime, not {shown(value)}")
    if value.utcoffset() is None:
        raise ConfigurationError(f"{name}: {value!r} is naive: give it a time zone, as in datetime.now(UTC)")
    return value

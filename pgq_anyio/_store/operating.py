"""What operators see of schedules and do to them, whether or not anybody runs them now.

Workers hear of every change by the notification ``schedule`` and read their rows again. What a worker thinks is never
needed for a decision here: each of these is one statement on the rows, which the claim of an occurrence locks too.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from .._cron import CronSchedule
from .._errors import ConfigurationError
from .._models import ScheduleRecord
from .._timetable import ScheduleKey, in_utc
from ._sql import Store
from ._steps import Fetch, Steps


def list_schedules(store: Store) -> Steps[list[ScheduleRecord]]:
    """All schedules that any code has ever registered, by name."""
    rows = yield Fetch(store, "list_schedules", {})
    return [_record(row) for row in rows]


def set_paused(store: Store, name: str, expression: str | None, *, paused: bool) -> Steps[list[ScheduleKey]]:
    """Pause or resume schedules. What comes due meanwhile is passed over.

    :param expression: one of those registered under the name, or ``None`` for all
    :return: those that were changed
    """
    parameters = {"name": name, "expression": expression, "paused": paused}
    return _keys((yield Fetch(store, "set_paused", parameters)))


def run_schedules(store: Store, name: str, expression: str | None) -> Steps[list[ScheduleKey]]:
    """Have schedules run now.

    :return: those that will run
    """
    return _keys((yield Fetch(store, "run_schedules", {"name": name, "expression": expression})))


def remove_schedules(store: Store, name: str, expression: str | None, *, force: bool) -> Steps[list[ScheduleKey]]:
    """Forget schedules.

    :param force: also those that live workers have code for, which make them again, or that run
    :return: those that were removed
    """
    parameters = {"name": name, "expression": expression, "force": force}
    return _keys((yield Fetch(store, "remove_schedules", parameters)))


def _keys(rows: list[tuple[Any, ...]]) -> list[ScheduleKey]:
    return [(row[0], row[1]) for row in rows]


def _record(row: tuple[Any, ...]) -> ScheduleRecord:
    # All times in UTC, as the next occurrence is: in another zone of the connection's they are not safely compared.
    values: list[Any] = [in_utc(value) if isinstance(value, datetime) else value for value in row]
    name, expression, timezone, registered_at, last_due_at, given_back_due_at, paused, asked_for, is_orphaned, *rest = (
        values
    )
    runs_once = asked_for and given_back_due_at is not None
    due = None if paused and not runs_once else given_back_due_at or _next_fire(expression, timezone, last_due_at)
    return ScheduleRecord(name, expression, timezone, registered_at, paused, is_orphaned, last_due_at, due, *rest)


def _next_fire(expression: str, timezone: str, after: datetime) -> datetime | None:
    """``None`` for what cannot be read here: a worker with other time zones, or other code, may have written it."""
    try:
        return CronSchedule.parse(expression, timezone).next_fire(after)
    except ConfigurationError:
        return None

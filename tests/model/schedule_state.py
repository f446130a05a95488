"""What the rows of ``schedule`` ought to hold, and what has been counted of their runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final

import attrs

from pgq_anyio._timetable import HeldSchedule, ScheduleKey

#: The database's time when a statement ran: looked up afterwards, and equal to no time that anybody knew before.
NOW: Final[Any] = object()


@attrs.define
class ModelSchedule:
    """One row."""

    name: str
    expression: str
    last_due_at: datetime = NOW
    given_back_due_at: datetime | None = None
    paused: bool = False
    asked_for: bool = False
    worker_id: int | None = None
    claim_no: int | None = None
    due_at: datetime | None = None
    status: str | None = None
    error_type: str | None = None

    @property
    def key(self) -> ScheduleKey:
        return self.name, self.expression

    @property
    def said(self) -> tuple[Any, ...]:
        """What an answer says of it, apart from times."""
        return self.worker_id, self.claim_no, self.paused, self.asked_for

    @property
    def row(self) -> tuple[Any, ...]:
        """As ``World.read_schedules`` reads it."""
        return attrs.astuple(self)

    def adopt(self, row: tuple[Any, ...]) -> None:
        """Take over the times that the statement has set."""
        if self.last_due_at is NOW:
            self.last_due_at = row[2]
        if self.given_back_due_at is NOW:
            self.given_back_due_at = row[3]


@attrs.define
class Schedules:
    """All rows, and how often each occurrence was taken, and given back."""

    rows: dict[ScheduleKey, ModelSchedule] = attrs.field(factory=dict)
    taken: Counter[tuple[ScheduleKey, datetime]] = attrs.field(factory=Counter)
    given_back: Counter[tuple[ScheduleKey, datetime]] = attrs.field(factory=Counter)
    #: runs by how they ended
    ended: Counter[str] = attrs.field(factory=Counter)

    def named(self, name: str, expression: str | None) -> list[ModelSchedule]:
        """Those that an operator means, in order."""
        found = (self.rows[key] for key in sorted(self.rows))
        return [one for one in found if one.name == name and expression in (None, one.expression)]

    def owned(self, by: Callable[[int], bool]) -> set[ScheduleKey]:
        """Those that run, on a worker for which that is true."""
        return {key for key, one in self.rows.items() if one.worker_id is not None and by(one.worker_id)}

    def is_held(self, held: HeldSchedule) -> bool:
        """Whether this claim still holds its schedule."""
        one = self.rows.get(held.key)
        return one is not None and (one.worker_id, one.claim_no) == (held.worker_id, held.claim_no)

    def running(self) -> int:
        return len(self.owned(lambda _: True))

    # -- transitions -----------------------------------------------------------------------------------------------

    def take(self, key: ScheduleKey, worker_id: int, claim_no: int, due_at: datetime) -> None:
        one = self.rows[key]
        if one.given_back_due_at is None:
            one.last_due_at = max(one.last_due_at, due_at)
        one.worker_id, one.claim_no, one.due_at, one.given_back_due_at = worker_id, claim_no, due_at, None
        self.taken[key, due_at] += 1

    def end(self, keys: Iterable[ScheduleKey], status: str, error_type: str | None = None) -> None:
        """Release rows; a run that was given back is to be made again."""
        for key in keys:
            one = self.rows[key]
            assert one.due_at is not None, "it runs"
            if status == "given_back":
                one.given_back_due_at = one.due_at
                self.given_back[key, one.due_at] += 1
            one.worker_id = one.claim_no = None
            one.status, one.error_type = status, error_type
            self.ended[status] += 1

    def remove(self, key: ScheduleKey) -> None:
        self.ended["removed"] += self.rows[key].worker_id is not None
        del self.rows[key]

"""When which schedule runs: pure decisions from what the database says, in the database's time.

An occurrence that passed and was not run is *missed*: nobody was there, or the run before it was still going. What
happens to it is the schedule's choice:

=============  =========================================================================================
``coalesce``   one run, for the latest of them
``skip``       none; only an occurrence that somebody was waiting for, and that is hardly late, is run
``catch_up``   a run for each of them, one after the other
=============  =========================================================================================

A run that was interrupted by the stop of its worker is given back: that occurrence comes first, and whatever the
choice.

A schedule that cannot be run now (another worker is running it, or it is paused) is looked at again at its next
occurrence: so that a notification is never needed, and a silent release, resume or rescue is found when it matters.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol

import attrs
from attrs.converters import optional

#: Name and expression: what a schedule is known by.
ScheduleKey = tuple[str, str]

#: How late an occurrence may be run that is not to be run when missed.
LATEST: Final = timedelta(seconds=5)
#: The shortest pause between two looks at a schedule that is paused: its resumption is notified.
PAUSED_LOOK: Final = timedelta(seconds=10)
#: When to ask again for an occurrence that was refused for no reason that its row shows.
REFUSED_LOOK: Final = timedelta(seconds=0.5)
NEVER: Final = datetime.max.replace(tzinfo=UTC)
ONE_SECOND: Final = timedelta(seconds=1)

_claim_numbers = itertools.count(1)
"""The process's, as those of jobs are: two terms of one process never share one."""


class Cron(Protocol):
    """What tells when a schedule fires: a ``CronSchedule``."""

    def next_fire(self, after: datetime, /) -> datetime: ...


class Missed(StrEnum):
    """What to do with occurrences that were missed."""

    COALESCE = "coalesce"
    SKIP = "skip"
    CATCH_UP = "catch_up"


def in_utc(moment: datetime) -> datetime:
    """The same instant in UTC. Two times of the same other zone are compared by its wall clock: in the hour that comes
    twice when summer time ends, two instants would be one.
    """
    return moment.astimezone(UTC)


@attrs.frozen
class ScheduleState:
    """A row of the table ``schedule``, as far as it decides what runs next. Its times are in UTC, whatever the time
    zone of the connection that read it.
    """

    name: str
    expression: str
    #: the latest occurrence that was run or passed over
    last_due_at: datetime = attrs.field(converter=in_utc)
    #: an occurrence whose run was interrupted: it is to be run again
    given_back_due_at: datetime | None = attrs.field(converter=optional(in_utc))
    #: who runs it now, and by which claim
    worker_id: int | None
    claim_no: int | None
    paused: bool
    #: when the last run ended
    last_finished_at: datetime | None = attrs.field(converter=optional(in_utc))
    #: whether an operator has asked for a run, which a pause does not hold back
    asked_for: bool = False

    @property
    def is_held_back(self) -> bool:
        """Whether it is paused, and nobody has asked for a run since."""
        return self.paused and not (self.asked_for and self.given_back_due_at is not None)

    @property
    def key(self) -> ScheduleKey:
        """Name and expression."""
        return (self.name, self.expression)


@attrs.frozen
class Wanted:
    """An occurrence to ask for, and what the row must still say for it to be ours."""

    state: ScheduleState
    due_at: datetime


@attrs.frozen
class HeldSchedule:
    """A running occurrence with its fence: its row counts as the worker's only while all of it matches."""

    name: str
    expression: str
    worker_id: int
    claim_no: int

    @property
    def key(self) -> ScheduleKey:
        """Name and expression."""
        return (self.name, self.expression)


def next_claim_no() -> int:
    """A fresh number for a statement that takes occurrences."""
    return next(_claim_numbers)


def latest_fire(cron: Cron, first: datetime, now: datetime) -> datetime:
    """Find the last firing that is not later than ``now``.

    By bisection: after a long absence of a schedule of every second nobody wants to walk through all of them.

    :param first: a firing that is not later than ``now``
    """
    latest, until = first, now
    while until - latest >= ONE_SECOND:
        middle = latest + (until - latest) / 2
        fire = cron.next_fire(middle)
        if fire <= now:
            latest = fire
        else:
            until = middle
    return latest


def next_run(cron: Cron, state: ScheduleState, missed: Missed, *, now: datetime, watched_since: datetime) -> datetime:
    """Tell which occurrence of a free schedule is to be run next; it may have come already.

    :param now: the database's time
    :param watched_since: since when this worker has been there to run it (database's time)
    """
    if state.given_back_due_at is not None:
        return state.given_back_due_at
    due = cron.next_fire(state.last_due_at)
    if due > now or missed is Missed.CATCH_UP:
        return due
    later = cron.next_fire(due)
    latest = due if later > now else latest_fire(cron, later, now)
    if missed is Missed.COALESCE:
        return latest
    since = watched_since if state.last_finished_at is None else max(watched_since, state.last_finished_at)
    return latest if latest >= since and now - latest <= LATEST else cron.next_fire(latest)


@attrs.define(eq=False)
class _RecentFires:
    """``next_fire`` of one expression that remembers its last answers.

    croniter takes 0.1 ms for each, and a thousand schedules may be due in the same second.
    """

    cron: Cron
    _known: dict[datetime, datetime] = attrs.field(factory=dict, init=False)

    def next_fire(self, after: datetime, /) -> datetime:
        """As ``CronSchedule.next_fire``."""
        fire = self._known.get(after)
        if fire is None:
            if len(self._known) >= 4:
                del self._known[next(iter(self._known))]
            fire = self._known[after] = self.cron.next_fire(after)
        return fire


@attrs.define(eq=False)
class _Line:
    """A line of the timetable."""

    cron: Cron
    missed: Missed
    state: ScheduleState | None = None
    #: when to ask for it (database's time)
    look_at: datetime = NEVER


@attrs.define(eq=False)
class Timetable:
    """The schedules that this worker has code for, what their rows say, and which of them run here."""

    worker_id: int
    #: how each schedule counts its occurrences, and what it does with missed ones
    plans: Mapping[ScheduleKey, tuple[Cron, Missed]]
    #: since when this worker has been there (database's time): its first look at the rows
    watched_since: datetime = attrs.field(default=NEVER, init=False)
    _lines: dict[ScheduleKey, _Line] = attrs.field(init=False)
    #: what runs here, or has ended here and waits to be released: claim number and occurrence
    _held: dict[ScheduleKey, tuple[int, datetime]] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._lines = {key: _Line(_RecentFires(cron), missed) for key, (cron, missed) in self.plans.items()}

    @property
    def keys(self) -> list[ScheduleKey]:
        """What there is code for, in the order in which rows are locked."""
        return sorted(self._lines)

    def next_look(self) -> datetime:
        """When the next schedule is to be asked for (database's time)."""
        return min((line.look_at for line in self._lines.values()), default=NEVER)

    def learn(self, states: Iterable[ScheduleState], *, now: datetime) -> list[HeldSchedule]:
        """Take in what rows say.

        :return: what the rows say that we run, and we do not: the answer to its claim was lost
        """
        self.watched_since = min(self.watched_since, now)
        unknown = []
        for state in states:
            line = self._lines.get(state.key)
            if line is None:
                continue
            line.state = state
            line.look_at = self._next_look(line, state, now)
            held_no, _ = self._held.get(state.key, (None, None))
            if state.worker_id == self.worker_id and state.claim_no is not None and state.claim_no != held_no:
                unknown.append(HeldSchedule(state.name, state.expression, state.worker_id, state.claim_no))
        return unknown

    def due(self, now: datetime) -> list[Wanted]:
        """What is to be asked for at this moment, in the order in which rows are locked."""
        wanted = []
        for line in self._lines.values():
            if line.look_at > now or line.state is None:
                continue
            due = next_run(line.cron, line.state, line.missed, now=now, watched_since=self.watched_since)
            if due <= now:
                wanted.append(Wanted(line.state, due))
            else:
                line.look_at = due
        return sorted(wanted, key=lambda one: one.state.key)

    def hold(self, held: HeldSchedule, due_at: datetime) -> None:
        """An occurrence is ours: once ``learn`` is told, its schedule is not looked at until it is released."""
        self._held[held.key] = (held.claim_no, due_at)

    def refused(self, wanted: Sequence[Wanted], *, now: datetime) -> None:
        """These were not ours to run, and ``learn`` has been told what their rows say now."""
        for one in wanted:
            line = self._lines[one.state.key]
            if line.state == one.state and line.look_at <= now:
                line.look_at = now + REFUSED_LOOK

    def release(self, held: HeldSchedule, *, given_back: bool, now: datetime) -> None:
        """A run has ended and its row says so.

        :param given_back: whether its occurrence is to be run again
        """
        line = self._lines.get(held.key)
        claim_no, due_at = self._held.get(held.key, (None, None))
        if line is None or line.state is None or claim_no != held.claim_no:
            return
        del self._held[held.key]
        again = due_at if given_back else line.state.given_back_due_at
        free = attrs.evolve(line.state, worker_id=None, claim_no=None, given_back_due_at=again, last_finished_at=now)
        self.learn([free], now=now)

    def _next_look(self, line: _Line, state: ScheduleState, now: datetime) -> datetime:
        if state.key in self._held:
            return NEVER
        if state.worker_id is None and not state.is_held_back:
            look_at = next_run(line.cron, state, line.missed, now=now, watched_since=self.watched_since)
            if look_at > now and state.given_back_due_at is None:
                line.cron.next_fire(look_at)  # what is asked when it is due is known by then
            return look_at
        look_at = line.cron.next_fire(max(now, state.last_due_at))
        return max(look_at, now + PAUSED_LOOK) if state.paused else look_at

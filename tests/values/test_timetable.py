"""Which occurrence runs when: decided without a database, in its time."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgq_anyio._cron import CronSchedule
from pgq_anyio._timetable import (
    LATEST,
    NEVER,
    PAUSED_LOOK,
    HeldSchedule,
    Missed,
    ScheduleState,
    Timetable,
    Wanted,
    latest_fire,
    next_run,
)

NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
MINUTELY = CronSchedule.parse("* * * * *")


def state(last_due_at: datetime, **changes: object) -> ScheduleState:
    free = ScheduleState("s", "* * * * *", last_due_at, None, None, None, paused=False, last_finished_at=None)
    return attrs.evolve(free, **changes)  # type: ignore[arg-type]


def plan(
    missed: Missed, last_due_at: datetime, now: datetime, *, since: datetime = NOON, **changes: object
) -> datetime:
    return next_run(MINUTELY, state(last_due_at, **changes), missed, now=now, watched_since=since)


@pytest.mark.parametrize("missed", Missed)
def test_the_next_occurrence_is_counted_from_the_last_one(missed: Missed) -> None:
    assert NOON + MINUTE == plan(missed, NOON, NOON + SECOND)


@pytest.mark.parametrize("missed", Missed)
def test_an_occurrence_runs_although_it_is_a_little_late(missed: Missed) -> None:
    assert NOON + MINUTE == plan(missed, NOON, NOON + MINUTE + 2 * SECOND)


@pytest.mark.promise(43)
def test_after_an_absence_one_run_for_the_latest() -> None:
    """``coalesce``: three passed, the latest of them is run."""
    assert NOON + 3 * MINUTE == plan(Missed.COALESCE, NOON, NOON + 3.9 * MINUTE, since=NOON + 3.5 * MINUTE)


@pytest.mark.promise(43)
def test_after_an_absence_none() -> None:
    """``skip``: three passed, the next one in the future is run, even if the last one is a second old."""
    for now in (NOON + 3.9 * MINUTE, NOON + 3 * MINUTE + SECOND):
        assert NOON + 4 * MINUTE == plan(Missed.SKIP, NOON, now, since=now)


@pytest.mark.promise(43)
def test_after_an_absence_each_in_its_order() -> None:
    """``catch_up``: three passed, and each of them is run."""
    last, now, runs = NOON, NOON + 3.9 * MINUTE, []
    while (due := plan(Missed.CATCH_UP, last, now)) <= now:
        runs.append(due)
        last = due
    assert [NOON + MINUTE, NOON + 2 * MINUTE, NOON + 3 * MINUTE] == runs


def test_skip_passes_over_what_is_very_late() -> None:
    """The worker was there, but the database was away for longer than a moment."""
    assert NOON + MINUTE == plan(Missed.SKIP, NOON, NOON + MINUTE + LATEST)
    assert NOON + 2 * MINUTE == plan(Missed.SKIP, NOON, NOON + MINUTE + LATEST + SECOND)


@pytest.mark.promise(43)
def test_what_passed_during_a_run_is_missed() -> None:
    """The run of 12:00 took until 12:02:01: one run, none, or both of those that passed."""
    now = NOON + 2 * MINUTE + SECOND
    actual = [plan(missed, NOON, now, last_finished_at=now) for missed in Missed]
    assert [NOON + 2 * MINUTE, NOON + 3 * MINUTE, NOON + MINUTE] == actual


@pytest.mark.parametrize("missed", Missed)
def test_what_was_given_back_comes_first(missed: Missed) -> None:
    """Whatever is done with missed occurrences, and whatever came due meanwhile."""
    actual = plan(missed, NOON, NOON + 90 * MINUTE, given_back_due_at=NOON, since=NOON + 90 * MINUTE)
    assert NOON == actual


@pytest.mark.parametrize("missed", [Missed.COALESCE, Missed.SKIP])
def test_a_long_absence_is_no_work(missed: Missed) -> None:
    """Ten years of a schedule of every second: found with few looks at the expression."""
    cron, looks = CronSchedule.parse("* * * * * *"), 0

    class Counted:
        def next_fire(self, after: datetime, /) -> datetime:
            nonlocal looks
            looks += 1
            return cron.next_fire(after)

    now = NOON + timedelta(days=3650, milliseconds=300)
    actual = next_run(Counted(), state(NOON), missed, now=now, watched_since=NOON)
    assert now - timedelta(milliseconds=300) == actual
    assert looks < 50


@given(
    expression=st.sampled_from(
        ["* * * * * *", "*/7 * * * * 13", "30 2 * * *", "0 0 29 2 *", "* 3 * * * *", "@monthly"]
    ),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]),
    start=st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1)),
    length=st.timedeltas(timedelta(0), timedelta(days=400)),
)
@settings(deadline=None, max_examples=200)
def test_the_latest_occurrence_is_the_last_that_has_come(
    expression: str, zone: str, start: datetime, length: timedelta
) -> None:
    """Nothing lies between it and now, whatever the expression and the changes of summer time."""
    cron = CronSchedule.parse(expression, zone)
    first = cron.next_fire(start.replace(tzinfo=UTC))
    now = first + length
    latest = latest_fire(cron, first, now)
    assert first <= latest <= now < cron.next_fire(latest)
    assert latest == cron.next_fire(latest - SECOND)


def test_an_occurrence_of_this_very_moment_is_the_latest() -> None:
    """Not the one before it, however many have passed."""
    for minutes in range(1, 9):
        assert NOON + minutes * MINUTE == latest_fire(MINUTELY, NOON + MINUTE, NOON + minutes * MINUTE)


# -- a fleet in virtual time -----------------------------------------------------------------------------------------


def held(taken: Wanted, worker_id: int, claim_no: int = 1) -> HeldSchedule:
    return HeldSchedule(taken.state.name, taken.state.expression, worker_id, claim_no)


def fleet(
    cron: CronSchedule,
    row: ScheduleState,
    until: datetime,
    *,
    workers: int,
    missed: Missed,
    read_in: tzinfo = UTC,
) -> list[datetime]:
    """Let workers run a schedule with one row between them, each looking when its timetable says; the runs.

    :param read_in: the time zone of their connections
    """
    key = row.key
    tables = [Timetable(worker_id, {key: (cron, missed)}) for worker_id in range(1, workers + 1)]
    now, runs = row.last_due_at, []
    for table in tables:
        table.learn([row], now=now)
    while (now := min(table.next_look() for table in tables)) <= until:
        for table in tables:
            if table.next_look() > now:
                continue
            for wanted in table.due(now):
                if (row.last_due_at, row.worker_id) == (wanted.state.last_due_at, None):
                    assert wanted.due_at not in runs, "it runs twice"
                    runs.append(wanted.due_at)
                    said = wanted.due_at.astimezone(read_in)
                    row = attrs.evolve(row, last_due_at=said, worker_id=table.worker_id, claim_no=1)
                    table.hold(held(wanted, table.worker_id), wanted.due_at)
                    table.learn([row], now=now)
                    # It ends at once.
                    row = attrs.evolve(row, worker_id=None, claim_no=None)
                    table.release(held(wanted, table.worker_id), given_back=False, now=now)
                else:
                    table.learn([row], now=now)
                    table.refused([wanted], now=now)
    return runs


@pytest.mark.promise(41)
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("missed", Missed)
@pytest.mark.parametrize(
    ("start", "expected"),
    [
        pytest.param(
            "2026-03-28T00:00+01:00", ["28T02:30+01:00", "29T03:00+02:00", "30T02:30+02:00"], id="the-hour-is-skipped"
        ),
        pytest.param(
            "2026-10-24T00:00+02:00", ["24T02:30+02:00", "25T02:30+02:00", "26T02:30+01:00"], id="the-hour-is-repeated"
        ),
    ],
)
def test_once_a_night_over_the_changes_of_summer_time(
    workers: int, missed: Missed, start: str, expected: list[str]
) -> None:
    """02:30 in Berlin runs once in every night, in the fleet as a whole."""
    cron = CronSchedule.parse("30 2 * * *", "Europe/Berlin")
    begin = datetime.fromisoformat(start).astimezone(UTC)
    runs = fleet(cron, state(begin), begin + timedelta(days=3), workers=workers, missed=missed)
    assert expected == [run.astimezone(ZoneInfo("Europe/Berlin")).isoformat(timespec="minutes")[8:] for run in runs]


@pytest.mark.promise(41)
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("missed", Missed)
def test_once_an_hour_while_the_connections_have_an_hour_twice(workers: int, missed: Missed) -> None:
    """The server counts in Berlin's time, where 02:00 to 03:00 comes twice in that night; an hour is an hour."""
    begin = datetime(2026, 10, 24, 22, 30, tzinfo=UTC)
    berlin = ZoneInfo("Europe/Berlin")
    runs = fleet(
        CronSchedule.parse("0 * * * *"),
        state(begin.astimezone(berlin)),
        begin + timedelta(hours=6),
        workers=workers,
        missed=missed,
        read_in=berlin,
    )
    assert [begin + timedelta(minutes=30, hours=n) for n in range(6)] == runs


@pytest.mark.promise(42)
@pytest.mark.parametrize("missed", Missed)
def test_a_fleet_runs_each_occurrence_once(missed: Missed) -> None:
    """Five workers, one row: none twice, none left out."""
    runs = fleet(MINUTELY, state(NOON), NOON + 20 * MINUTE, workers=5, missed=missed)
    assert Counter(NOON + n * MINUTE for n in range(1, 21)) == Counter(runs)


# -- one worker's timetable ------------------------------------------------------------------------------------------


def timetable(row: ScheduleState, *, now: datetime, worker_id: int = 1) -> Timetable:
    table = Timetable(worker_id, {row.key: (MINUTELY, Missed.COALESCE)})
    table.learn([row], now=now)
    return table


def test_what_runs_here_is_not_looked_at() -> None:
    """A long run costs no statements; its end makes the schedule due again if an occurrence has passed."""
    table = timetable(state(NOON), now=NOON)
    (wanted,) = table.due(NOON + MINUTE)
    ours = held(wanted, 1)
    table.hold(ours, wanted.due_at)
    table.learn([state(wanted.due_at, worker_id=1, claim_no=1)], now=NOON + MINUTE)
    assert NEVER == table.next_look()
    assert [] == table.due(NOON + 5 * MINUTE)
    table.release(ours, given_back=False, now=NOON + 5.5 * MINUTE)
    assert [NOON + 5 * MINUTE] == [one.due_at for one in table.due(NOON + 5.5 * MINUTE)]


def test_a_run_that_is_given_back_is_due_at_once() -> None:
    table = timetable(state(NOON), now=NOON)
    (wanted,) = table.due(NOON + MINUTE)
    table.hold(held(wanted, 1), wanted.due_at)
    table.learn([state(wanted.due_at, worker_id=1, claim_no=1)], now=NOON + MINUTE)
    table.release(held(wanted, 1), given_back=True, now=NOON + MINUTE + SECOND)
    assert [NOON + MINUTE] == [one.due_at for one in table.due(NOON + MINUTE + SECOND)]


def test_what_another_runs_is_asked_for_at_its_next_occurrence() -> None:
    """No notification is needed to find that it has ended."""
    table = timetable(state(NOON, worker_id=2, claim_no=9), now=NOON + SECOND)
    assert NOON + MINUTE == table.next_look()
    assert [NOON + MINUTE] == [one.due_at for one in table.due(NOON + MINUTE)]


def test_what_is_paused_is_asked_for_rarely() -> None:
    row = attrs.evolve(state(NOON, paused=True), expression="* * * * * *")
    table = Timetable(1, {row.key: (CronSchedule.parse("* * * * * *"), Missed.COALESCE)})
    table.learn([row], now=NOON)
    assert NOON + PAUSED_LOOK == table.next_look()


def test_what_is_paused_and_asked_for_is_due() -> None:
    """Until it has been run; an occurrence that was interrupted before the pause waits for its end."""
    asked = state(NOON, paused=True, given_back_due_at=NOON, asked_for=True)
    assert [NOON] == [one.due_at for one in timetable(asked, now=NOON).due(NOON)]
    for held_back in (attrs.evolve(asked, asked_for=False), attrs.evolve(asked, given_back_due_at=None)):
        assert [] == timetable(held_back, now=NOON).due(NOON)


def test_a_row_that_names_us_for_what_we_do_not_run_is_found() -> None:
    """The answer to the claim was lost on its way."""
    table = timetable(state(NOON), now=NOON)
    assert [HeldSchedule("s", "* * * * *", 1, 7)] == table.learn([state(NOON, worker_id=1, claim_no=7)], now=NOON)
    assert [] == table.learn([state(NOON, worker_id=2, claim_no=7)], now=NOON)


def test_a_refusal_without_a_reason_is_no_busy_loop() -> None:
    """The row looks free and the occurrence is due, and still it was refused: this worker has been declared dead."""
    table = timetable(state(NOON), now=NOON)
    wanted = table.due(NOON + MINUTE)
    table.learn([wanted[0].state], now=NOON + MINUTE)
    table.refused(wanted, now=NOON + MINUTE)
    assert NOON + MINUTE < table.next_look() <= NOON + MINUTE + SECOND


def test_a_refusal_because_of_a_slow_clock_is_asked_for_in_time() -> None:
    """The database's clock was a little behind what we believed: the occurrence is asked for when it comes."""
    table = timetable(state(NOON), now=NOON)
    wanted = table.due(NOON + MINUTE)
    table.learn([wanted[0].state], now=NOON + MINUTE - timedelta(milliseconds=1))
    table.refused(wanted, now=NOON + MINUTE - timedelta(milliseconds=1))
    assert NOON + MINUTE == table.next_look()


def test_the_end_of_a_run_that_is_not_ours_any_more_changes_nothing() -> None:
    table = timetable(state(NOON, worker_id=2, claim_no=9), now=NOON)
    table.release(HeldSchedule("s", "* * * * *", 1, 3), given_back=True, now=NOON)
    assert NOON + MINUTE == table.next_look()


def test_rows_without_code_are_not_run() -> None:
    table = timetable(state(NOON), now=NOON)
    table.learn([attrs.evolve(state(NOON), name="orphan")], now=NOON + MINUTE)
    assert ["s"] == [one.state.name for one in table.due(NOON + MINUTE)]


def test_rows_are_asked_for_in_the_order_of_their_key() -> None:
    """Workers that lock the same rows in different orders would block each other for ever."""
    keys = [("b", "* * * * *"), ("a", "*/2 * * * *"), ("a", "* * * * *")]
    table = Timetable(1, {key: (CronSchedule.parse(key[1]), Missed.COALESCE) for key in keys})
    table.learn([attrs.evolve(state(NOON), name=name, expression=text) for name, text in keys], now=NOON)
    assert sorted(keys) == [one.state.key for one in table.due(NOON + 2 * MINUTE)]

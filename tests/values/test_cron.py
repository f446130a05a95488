from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgq_anyio._cron import CronSchedule
from pgq_anyio._errors import ConfigurationError

MINUTE = timedelta(minutes=1)


def fires(expression: str, zone: str, start: str, count: int) -> list[str]:
    """Return the next firings as local times with their offsets."""
    after = datetime.fromisoformat(start).astimezone(UTC)
    found = CronSchedule.parse(expression, zone).fires_between(after, after + timedelta(days=3000), count)
    return [fire.astimezone(ZoneInfo(zone)).isoformat(timespec="minutes") for fire in found]


def test_five_fields() -> None:
    """Five fields are minute, hour, day of month, month and day of week; the answer is aware and in UTC."""
    schedule = CronSchedule.parse("30 9 * * mon")
    actual = schedule.next_fire(datetime(2026, 7, 1, tzinfo=UTC))
    assert datetime(2026, 7, 6, 9, 30, tzinfo=UTC) == actual
    assert UTC == actual.tzinfo


@pytest.mark.promise(41)
def test_six_fields_have_the_seconds_last() -> None:
    """The sixth field is the second."""
    schedule = CronSchedule.parse("* * * * * */20")
    start = datetime(2026, 7, 1, 12, 0, 5, tzinfo=UTC)
    actual = [fire.second for fire in schedule.fires_between(start, start + timedelta(hours=1), 4)]
    assert [20, 40, 0, 20] == actual


@pytest.mark.promise(41)
@pytest.mark.parametrize(
    ("nickname", "fields"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@Hourly", "0 * * * *"),
    ],
)
def test_nicknames(nickname: str, fields: str) -> None:
    """A nickname fires as its fields do, over both changes of summer time too."""
    start = datetime(2026, 3, 1, tzinfo=UTC)
    end = start + timedelta(days=800)
    expected = CronSchedule.parse(fields, "Europe/Berlin").fires_between(start, end, 10000)
    assert expected == CronSchedule.parse(nickname, "Europe/Berlin").fires_between(start, end, 10000)


@pytest.mark.promise(41)
@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("", "has 0 fields"),
        ("* * * *", "has 4 fields"),
        ("* * * * * * *", "has 7 fields"),
        ("61 * * * *", "out of range"),
        ("* 24 * * *", "out of range"),
        ("* * 0 * *", "out of range"),
        ("* * * 13 *", "out of range"),
        ("* * * * 8", "out of range"),
        ("* * * * * 60", "out of range"),
        ("*/0 * * * *", "step '0'"),
        ("-1 * * * *", "negative"),
        ("x * * * *", "not acceptable"),
        ("1,,2 * * * *", "not acceptable"),
        ("H * * * *", "H and R are not supported"),
        ("* r(0-5) * * *", "H and R are not supported"),
        ("@reboot", "is unknown"),
        ("@every 5m", "is unknown"),
        ("0 0 30 2 *", "never fires"),
        ("0 0 31 2,4,6,9,11 *", "never fires"),
    ],
)
def test_bad_expressions_are_refused(expression: str, reason: str) -> None:
    """A bad expression is refused when it is read; the message names it and says what is wrong."""
    with pytest.raises(ConfigurationError, match="cron expression") as caught:
        CronSchedule.parse(expression)
    assert repr(expression) in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.promise(41)
@pytest.mark.parametrize("zone", ["", "Mars/Phobos", "Europe", "../etc/passwd", "/etc/passwd", "a\0b"])
def test_bad_zones_are_refused(zone: str) -> None:
    """An unknown time zone is refused when the schedule is read; the message names it."""
    with pytest.raises(ConfigurationError, match="unknown time zone") as caught:
        CronSchedule.parse("* * * * *", zone)
    assert repr(zone) in str(caught.value)


@pytest.mark.promise(41)
@pytest.mark.parametrize(
    ("expression", "same"),
    [
        ("0 9-9 * * *", "0 9 * * *"),
        ("5-5/2,40 0-00 * * *", "5,40 0 * * *"),
        ("0 0 * * Mon-mon", "0 0 * * 1"),
        ("0 0 * * 1-mon,fri", "0 0 * * 1,5"),
        ("0 0 * * 7-7", "0 0 * * 0"),
        ("0 0 * * 0-7", "0 0 * * *"),
        ("0 0 * * fri-fri#2", "0 0 * * fri#2"),
        ("0 0 1 jan-1 *", "0 0 1 1 *"),
        ("0 0 31-L * *", "0 0 31 * *"),
        ("0 0 * * * 7-7", "0 0 * * * 7"),
    ],
)
def test_a_range_of_one_value_is_that_value(expression: str, same: str) -> None:
    """As in crontab(5), over both changes of summer time too."""
    start = datetime(2026, 3, 1, tzinfo=UTC)
    expected = CronSchedule.parse(same, "Europe/Berlin").fires_between(start, start + timedelta(days=800), 400)
    actual = CronSchedule.parse(expression, "Europe/Berlin").fires_between(start, start + timedelta(days=800), 400)
    assert expected == actual


@pytest.mark.promise(41)
@pytest.mark.parametrize(
    ("day", "weekday"),
    [("1", "fri#2"), ("13", "fri#2"), ("*/2", "fri#2"), ("1-31", "L5"), ("L", "l5"), ("15W", "mon"), ("15W", "0-6")],
)
def test_days_that_cannot_be_combined_are_refused(day: str, weekday: str) -> None:
    """By croniter they fire on the days that are both; the message says how to have either."""
    with pytest.raises(ConfigurationError, match="use two schedules") as caught:
        CronSchedule.parse(f"0 9 {day} * {weekday}")
    assert f"one with {day!r} and '*', one with '*' and {weekday!r}" in str(caught.value)


@pytest.mark.promise(41)
@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 9 1 * fri", ["01", "03", "10", "17", "24", "31"]),
        ("0 9 L * fri", ["03", "10", "17", "24", "31"]),
        ("0 9 L * mon", ["06", "13", "20", "27", "31"]),
        ("0 9 * * fri#2", ["10"]),
        ("0 9 ? * L5", ["31"]),
        ("0 9 12W * ?", ["13"]),
        # crontab(5): a field that begins with a star is not restricted, so both have to match.
        ("0 9 */2 * fri", ["03", "17", "31"]),
        ("0 9 */100,1-7 * mon", ["06"]),
        ("0 9 1 * */3", ["01"]),
    ],
)
def test_either_day_suffices(expression: str, expected: list[str]) -> None:
    """What is not refused fires on days of either kind: July 2026 begins with a Wednesday."""
    start = datetime(2026, 7, 1, tzinfo=UTC)
    found = CronSchedule.parse(expression).fires_between(start, start + timedelta(days=31), 99)
    assert expected == [f"{fire:%d}" for fire in found]


@pytest.mark.promise(41)
@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("0 21-5/2 * * *", "21-5/2"),
        ("* * * * sat-tue/2", "sat-tue/2"),
        ("0 0 1 11-3/2 *", "11-3/2"),
        ("1,50-10/015 * * * *", "50-10/015"),
    ],
)
def test_ranges_that_wrap_around_have_no_step(expression: str, wrong: str) -> None:
    """By croniter they have wrong values behind the end of the field."""
    with pytest.raises(ConfigurationError, match="write its values out, separated by commas") as caught:
        CronSchedule.parse(expression)
    assert f"has the range {wrong!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "same"), [("0 22-2 * * *", "0 22,23,0,1,2 * * *"), ("0 22-2/1 * * *", "0 22,23,0,1,2 * * *")]
)
def test_ranges_may_wrap_around(expression: str, same: str) -> None:
    """As croniter reads them."""
    start = datetime(2026, 7, 1, tzinfo=UTC)
    assert CronSchedule.parse(same).fires_between(start, start + timedelta(days=3), 99) == CronSchedule.parse(
        expression
    ).fires_between(start, start + timedelta(days=3), 99)


def test_leap_day_is_accepted() -> None:
    """29 February exists."""
    expected = ["2028-02-29T00:00+01:00", "2032-02-29T00:00+01:00"]
    assert expected == fires("0 0 29 2 *", "Europe/Berlin", "2026-01-01T00:00+01:00", 2)


def test_naive_datetimes_are_refused() -> None:
    """A naive datetime could mean any zone."""
    schedule = CronSchedule.parse("* * * * *")
    with pytest.raises(ValueError, match="aware"):
        schedule.next_fire(datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="aware"):
        schedule.fires_between(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2), 5)


def test_is_a_value() -> None:
    """Schedules compare by expression and zone, hash, and cannot be changed."""
    schedule = CronSchedule.parse("0  0 * *   *", "Europe/Berlin")
    assert CronSchedule.parse("0 0 * * *", "Europe/Berlin") == schedule
    assert hash(CronSchedule.parse("0 0 * * *", "Europe/Berlin")) == hash(schedule)
    assert CronSchedule.parse("0 0 * * *", "Europe/Paris") != schedule
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        schedule.expression = "* * * * *"  # type: ignore[misc]


def test_fires_between_is_open_at_the_start_closed_at_the_end_and_bounded() -> None:
    """A firing at ``after`` is not repeated, one at ``until`` is included, and the limit holds."""
    schedule = CronSchedule.parse("0 * * * *")
    start = datetime(2026, 1, 1, 0, 0, tzinfo=UTC)
    expected = [start + timedelta(hours=1), start + timedelta(hours=2)]
    assert expected == schedule.fires_between(start, start + timedelta(hours=2), 10)
    assert expected[:1] == schedule.fires_between(start, start + timedelta(hours=2), 1)
    assert [] == schedule.fires_between(start, start + timedelta(hours=2), 0)
    assert [] == schedule.fires_between(start, start + timedelta(minutes=59), 10)


CHANGES = [
    # A time of day in the skipped hour fires at the end of the gap; the next day is back to normal.
    ("30 2 * * *", "Europe/Berlin", "2024-03-31T00:00+01:00", ["2024-03-31T03:00+02:00", "2024-04-01T02:30+02:00"]),
    ("30 2 * * *", "America/New_York", "2024-03-10T00:00-05:00", ["2024-03-10T03:00-04:00", "2024-03-11T02:30-04:00"]),
    # Several of them become one, and one that coincides with a regular firing is not doubled.
    ("0,30 2 * * *", "Europe/Berlin", "2024-03-31T00:00+01:00", ["2024-03-31T03:00+02:00", "2024-04-01T02:00+02:00"]),
    ("0 2,3 * * *", "Europe/Berlin", "2024-03-31T00:00+01:00", ["2024-03-31T03:00+02:00", "2024-04-01T02:00+02:00"]),
    # Midnight itself is skipped; half an hour is; a whole day is.
    ("15 0 * * *", "Africa/Cairo", "2024-04-25T12:00+02:00", ["2024-04-26T01:00+03:00", "2024-04-27T00:15+03:00"]),
    ("0 */12 * * *", "Africa/Cairo", "2024-04-25T12:00+02:00", ["2024-04-26T01:00+03:00", "2024-04-26T12:00+03:00"]),
    ("15 2 * * *", "Australia/Lord_Howe", "2024-10-06T00:00+10:30", ["2024-10-06T02:30+11:00"]),
    ("0 12 30 * *", "Pacific/Apia", "2011-12-01T00:00-10:00", ["2011-12-31T00:00+14:00", "2012-01-30T12:00+14:00"]),
    # A time of day in the repeated hour fires in its first pass only, also when asked from within the second.
    ("30 2 * * *", "Europe/Berlin", "2024-10-27T00:00+02:00", ["2024-10-27T02:30+02:00", "2024-10-28T02:30+01:00"]),
    ("30 2 * * *", "Europe/Berlin", "2024-10-27T02:10+01:00", ["2024-10-28T02:30+01:00"]),
    ("0 */2 * * *", "Europe/Berlin", "2024-10-27T00:30+02:00", ["2024-10-27T02:00+02:00", "2024-10-27T04:00+01:00"]),
    (
        "45 1 * * *",
        "Australia/Lord_Howe",
        "2024-04-07T00:00+11:00",
        ["2024-04-07T01:45+11:00", "2024-04-08T01:45+10:30"],
    ),
    # The rest follows elapsed time: nothing in the gap, both passes of the repeated hour.
    ("*/30 * * * *", "Europe/Berlin", "2024-03-31T01:00+01:00", ["2024-03-31T01:30+01:00", "2024-03-31T03:00+02:00"]),
    ("*/30 2 * * *", "Europe/Berlin", "2024-03-31T00:00+01:00", ["2024-04-01T02:00+02:00"]),
    ("30 * * * *", "Europe/Berlin", "2024-10-27T02:00+02:00", ["2024-10-27T02:30+02:00", "2024-10-27T02:30+01:00"]),
    ("30 0-23 * * *", "Europe/Berlin", "2024-10-27T02:00+02:00", ["2024-10-27T02:30+02:00", "2024-10-27T02:30+01:00"]),
    (
        "*/30 * * * *",
        "Australia/Lord_Howe",
        "2024-04-07T01:00+11:00",
        ["2024-04-07T01:30+11:00", "2024-04-07T01:30+10:30", "2024-04-07T02:00+10:30"],
    ),
]


@pytest.mark.promise(41)
@pytest.mark.parametrize(("expression", "zone", "start", "expected"), CHANGES)
def test_changes_of_summer_time(expression: str, zone: str, start: str, expected: list[str]) -> None:
    """Over both changes of summer time a schedule fires as cron would."""
    assert expected == fires(expression, zone, start, len(expected))


def test_a_second_asked_for_in_the_gap_is_made_up_once() -> None:
    """With six fields too, what falls into the gap becomes one firing."""
    actual = fires("30 2 * * * 10,20", "Europe/Berlin", "2024-03-31T00:00+01:00", 2)
    assert ["2024-03-31T03:00+02:00", "2024-04-01T02:30+02:00"] == actual


# The model: look at every minute, and decide by the written rule. Fields are sets, so nothing is parsed twice.


@attrs.frozen
class Fields:
    """The fields of an expression as sets; ``None`` is a star."""

    minutes: frozenset[int] | None
    hours: frozenset[int] | None
    days: frozenset[int] | None
    weekdays: frozenset[int] | None

    def __str__(self) -> str:
        parts = [self.minutes, self.hours, self.days, None, self.weekdays]
        return " ".join("*" if part is None else ",".join(map(str, sorted(part))) for part in parts)

    def match(self, wall: datetime) -> bool:
        if self.minutes is not None and wall.minute not in self.minutes:
            return False
        if self.hours is not None and wall.hour not in self.hours:
            return False
        day = self.days is not None and wall.day in self.days
        weekday = self.weekdays is not None and wall.isoweekday() % 7 in self.weekdays
        restricted = self.days is not None or self.weekdays is not None
        return day or weekday or not restricted

    def fires(self, zone: ZoneInfo, start: datetime, minutes: int) -> list[datetime]:
        follows = self.minutes is None or self.hours is None
        found = []
        wall = start.astimezone(zone).replace(tzinfo=None)
        for now in (start + n * MINUTE for n in range(1, minutes + 1)):
            before, here = wall, now.astimezone(zone)
            wall = here.replace(tzinfo=None, fold=0)
            gap = max((wall - before) // MINUTE - 1, 0)
            if follows:
                due = self.match(wall)
            else:
                due = (self.match(wall) and not here.fold) or any(
                    self.match(wall - n * MINUTE) for n in range(1, gap + 1)
                )
            if due:
                found.append(now)
        return found


def subsets(first: int, last: int, size: int) -> st.SearchStrategy[frozenset[int]]:
    # A set of all values is a star for croniter and not for the model.
    return st.frozensets(st.integers(first, last), min_size=1, max_size=size)


fields = st.builds(
    Fields,
    minutes=st.none() | subsets(0, 59, 4),
    hours=st.none() | subsets(0, 4, 4) | subsets(0, 23, 4),
    days=st.none() | st.none() | subsets(1, 31, 6),
    weekdays=st.none() | st.none() | subsets(0, 6, 3),
)
# The day before a change of each zone, in UTC.
places = st.sampled_from(
    [
        ("Europe/Berlin", datetime(2024, 3, 30, tzinfo=UTC)),
        ("Europe/Berlin", datetime(2024, 10, 26, tzinfo=UTC)),
        ("America/New_York", datetime(2024, 3, 9, tzinfo=UTC)),
        ("America/New_York", datetime(2024, 11, 2, tzinfo=UTC)),
        ("Australia/Lord_Howe", datetime(2024, 10, 5, tzinfo=UTC)),
        ("Australia/Lord_Howe", datetime(2024, 4, 6, tzinfo=UTC)),
        ("America/Havana", datetime(2024, 3, 9, tzinfo=UTC)),
        ("America/Havana", datetime(2024, 11, 2, tzinfo=UTC)),
        ("Africa/Cairo", datetime(2024, 4, 25, tzinfo=UTC)),
        ("Africa/Casablanca", datetime(2024, 3, 9, tzinfo=UTC)),
        ("Pacific/Apia", datetime(2011, 12, 29, tzinfo=UTC)),
        ("Asia/Kathmandu", datetime(2024, 5, 1, tzinfo=UTC)),
        ("UTC", datetime(2024, 2, 28, tzinfo=UTC)),
    ]
)


@pytest.mark.promise(41)
@settings(max_examples=150, deadline=None)
@given(fields=fields, place=places, offset=st.integers(0, 2000))
def test_agrees_with_a_scan_of_every_minute(fields: Fields, place: tuple[str, datetime], offset: int) -> None:
    """Around the changes of many zones, no occurrence is skipped and none is added."""
    zone, day = place
    start = day + offset * MINUTE
    expected = fields.fires(ZoneInfo(zone), start, 3000)
    actual = CronSchedule.parse(str(fields), zone).fires_between(start, start + 3000 * MINUTE, 5000)
    assert expected == actual


@settings(max_examples=150, deadline=None)
@given(
    fields=fields,
    zone=st.sampled_from(["Europe/Berlin", "America/St_Johns", "Asia/Tehran", "Africa/Casablanca", "UTC"]),
    after=st.datetimes(datetime(1990, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC)),
)
def test_next_fire_is_later_whole_and_stable(fields: Fields, zone: str, after: datetime) -> None:
    """A firing is later than ``after``, a whole second, and the same from any moment before it."""
    schedule = CronSchedule.parse(str(fields), zone)
    fire = schedule.next_fire(after)
    assert fire > after
    assert 0 == fire.microsecond
    assert fire == schedule.next_fire(fire - timedelta(microseconds=1))
    assert schedule.next_fire(fire) > fire

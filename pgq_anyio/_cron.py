"""Cron expressions as values that tell when a schedule fires next.

croniter reads the expressions and finds the next match on a plain calendar; the step from the wall clock to real time
is ours, because croniter 7.0 gets parts of it wrong. Tried on the changes of summer time of Berlin, New York,
Lord Howe (half an hour), Sao Paulo, Havana and Cairo (at midnight) and Apia (a whole day):

* ``30 2 * * *`` fires twice in the night in which 02:30 comes twice (Berlin; ``15 0`` does the same in Havana).
* ``30 2 * * *`` fires at the first instant after the gap in the night in which 02:30 does not exist. This is right.
* ``*/30 * * * *`` and ``0 * * * *`` follow real time over both changes. This is right.

The rule here is that of cron as Debian ships it, crontab(5) and cron(8). Schedules of a granularity of an hour or less
(see :attr:`CronSchedule.follows_elapsed_time`) fire whenever the wall clock matches: in both passes of a repeated hour,
not at all in a skipped one. All others are meant for a time of day: they fire in the first pass of a repeated hour
only, and matches that fall into a skipped hour become one firing at the first instant after it.

cron(8) counts "a granularity greater than one hour" among the times of day, but cron's code looks for a star in the
hour field and so loses a firing of ``0 */12 * * *`` where midnight is skipped. We follow the manual. cron leaves
changes of three hours and more alone, as corrections of a wrong clock; a zone's law is never that, so size is nothing
here.

croniter departs from crontab(5) in more places: a range of one value (``9-9``) is any value to it, so such ranges are
written as their value; "either suffices", for day of month and day of week, does not hold for ``15W``, ``fri#2`` and
``L5``, so these are refused together with the other, and holds for a field that begins with a star (``*/2``) unless
croniter is told ``implement_cron_bug``; and a range that wraps around (``21-5``, which crontab(5) does not have) with a
step has wrong values behind the end of the field (``21-5/2``: 21, 23, 2, 4), so it is refused.

Times are whole seconds. Offsets are looked at once a day between two firings: two changes within one day that cancel
each other would be missed, and no zone has had such.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import attrs
from croniter import CroniterBadDateError, CroniterError, croniter

from ._errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: crontab(5)'s names for common schedules. ``@reboot`` has no meaning for a fleet.
NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

MINUTE, HOUR, DAY, MONTH, WEEKDAY, SECOND = range(6)
#: A range with the step and the ``#2`` that may follow it.
RANGE = re.compile(r"(\w+)-(\w+)(/0*[1-9]\d*)?(#\d+)?", re.ASCII)
#: Names for numbers, by field. ``L`` at an end of a range of days is the 31st.
NAMES: dict[int, dict[str, str]] = {
    DAY: {"l": "31"},
    MONTH: {name: str(number) for name, number in croniter.ALPHACONV[MONTH].items()},
    WEEKDAY: {name: str(number) for name, number in croniter.ALPHACONV[WEEKDAY].items()},
}
ONE_SECOND = timedelta(seconds=1)
ONE_DAY = timedelta(days=1)


@attrs.frozen
class CronSchedule:
    """A cron expression in a time zone. Made by :meth:`parse`."""

    #: as given, with single spaces between the fields
    expression: str
    #: IANA name
    timezone: str
    #: True if the hour is any hour, or the minute or the second starts with a star
    follows_elapsed_time: bool = attrs.field(eq=False, repr=False)
    _fields: str = attrs.field(eq=False, repr=False)
    _zone: ZoneInfo = attrs.field(eq=False, repr=False)

    @classmethod
    def parse(cls, expression: str, timezone: str = "UTC") -> CronSchedule:
        """
        Read a cron expression.

        :param expression: five fields (minute, hour, day of month, month, day of week), or six with the **seconds
            last** as croniter has them (``* * * * * */10`` is every ten seconds), or ``@hourly``, ``@daily``,
            ``@midnight``, ``@weekly``, ``@monthly``, ``@yearly``, ``@annually``. Fields take croniter's syntax (lists,
            ranges, steps, names, ``L``, ``15W``, ``fri#2``). If day of month and day of week are both restricted
            (begin with no star), either suffices, as in crontab(5); then neither may be of the kind of ``15W``,
            ``fri#2`` and ``L5``.
        :param timezone: IANA name of the time zone the expression is meant in. Defaults to UTC.
        :raises ConfigurationError: if the expression or the zone cannot be read, or the expression never fires, or it
            has a combination of days, or a range, that croniter gets wrong
        """
        if not isinstance(expression, str):
            raise ConfigurationError(f"the expression must be a str, not {expression!r}")
        zone = _find_zone(timezone)
        expression = " ".join(expression.split())
        plain = _single_values(_plain_fields(expression))
        wrapped = _find_stepped_wrap(plain)
        if wrapped is not None:
            raise ConfigurationError(
                f"cron expression {expression!r} has the range {wrapped!r}, which goes beyond the end of its field, "
                "with a step: write its values out, separated by commas"
            )
        try:
            parsed = croniter(plain, implement_cron_bug=True)
            if not _mixes_days(parsed):
                # croniter looks 50 years ahead, so leap days are found and 30 February is not.
                parsed.get_next(datetime)
        except CroniterBadDateError:
            raise ConfigurationError(
                f"cron expression {expression!r} never fires: it names a date that no year has"
            ) from None
        except (CroniterError, ValueError, KeyError, IndexError) as error:
            raise ConfigurationError(f"cron expression {expression!r} cannot be read: {error}") from error
        if _mixes_days(parsed):
            day, weekday = (plain.split()[place] for place in (DAY, WEEKDAY))
            raise ConfigurationError(
                f"cron expression {expression!r} combines the day of month {day} with the day of week {weekday}, and "
                f"W, # and a last weekday (L5) cannot be combined: use two schedules, one with {day!r} and '*', one "
                f"with '*' and {weekday!r}"
            )
        texts = plain.split()
        follows = parsed.expanded[HOUR] == ["*"] or any(
            texts[place].startswith("*") or parsed.expanded[place] == ["*"]
            for place in (MINUTE, SECOND)
            if place < len(texts)
        )
        return cls(expression, timezone, follows, plain, zone)

    def next_fire(self, after: datetime) -> datetime:
        """
        Find the first firing later than ``after``.

        :param after: an aware datetime, in any zone
        :return: an aware datetime in UTC
        :raises ValueError: if ``after`` is naive
        """
        if after.tzinfo is None:
            raise ValueError(f"next_fire() needs an aware datetime, not {after!r}")
        # Between `start` and the next change of the zone's offset, wall clock and UTC run in parallel.
        start = after.astimezone(UTC).replace(microsecond=0)
        wall = _wall_time(start, self._zone)
        while True:
            offset = _offset(start, self._zone)
            wall = croniter(self._fields, wall, implement_cron_bug=True).get_next(datetime)
            fire = wall.replace(tzinfo=UTC) - offset
            change = _next_change(self._zone, start, fire)
            if change is None:
                if self.follows_elapsed_time or not fire.astimezone(self._zone).fold:
                    return fire
                start = fire
            elif not self.follows_elapsed_time and wall < _wall_time(change, self._zone):
                return change
            else:
                start = change
                wall = _wall_time(change, self._zone) - ONE_SECOND

    def fires_between(self, after: datetime, until: datetime, limit: int) -> list[datetime]:
        """
        List the firings later than ``after`` and not later than ``until``, the earliest first.

        :param limit: how many to return at most
        :raises ValueError: if a datetime is naive
        """
        if until.tzinfo is None:
            raise ValueError(f"fires_between() needs aware datetimes, not {until!r}")
        return list(islice(self._fires(after, until), limit))

    def _fires(self, after: datetime, until: datetime) -> Iterator[datetime]:
        fire = self.next_fire(after)
        while fire <= until:
            yield fire
            fire = self.next_fire(fire)


def _find_zone(name: str) -> ZoneInfo:
    if not isinstance(name, str):
        raise ConfigurationError(f"timezone must be a str, not {name!r}")
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        # OSError: "Europe" is a directory of the time zone database.
        hint = "use an IANA name like 'Europe/Berlin'; on systems without a zone database install 'tzdata'"
        raise ConfigurationError(f"unknown time zone {name!r}: {hint}") from None


def _plain_fields(expression: str) -> str:
    """Replace a nickname by its fields, and refuse what croniter takes and we do not."""
    if expression.startswith("@"):
        try:
            return NICKNAMES[expression.lower()]
        except KeyError:
            raise ConfigurationError(
                f"cron expression {expression!r} is unknown: use one of {', '.join(NICKNAMES)}"
            ) from None
    fields = expression.split()
    if len(fields) not in (5, 6):
        raise ConfigurationError(
            f"cron expression {expression!r} has {len(fields)} fields, but needs 5 (minute, hour, day of month, month, "
            f"day of week) or 6 (the same, then second)"
        )
    for field in fields:
        # Jenkins' hashed and random fields: the first needs a key, the second would differ between workers.
        if field[0] in "hHrR":
            raise ConfigurationError(
                f"cron expression {expression!r} has the field {field!r}: H and R are not supported"
            )
    return expression


def _single_values(fields: str) -> str:
    """Write a range of one value as that value: croniter takes ``9-9`` for any hour, and crontab(5) for nine."""
    return " ".join(
        ",".join(_single_value(part, place) for part in field.split(",")) for place, field in enumerate(fields.split())
    )


def _single_value(part: str, place: int) -> str:
    found = RANGE.fullmatch(part.lower())
    if found is None:
        return part
    first, last, _, nth = found.groups()
    ends = _ends(first, last, place)
    return f"{first}{nth or ''}" if ends is not None and ends[0] == ends[1] else part


def _find_stepped_wrap(fields: str) -> str | None:
    """The first range that ends before it begins and has a step."""
    for place, field in enumerate(fields.split()):
        for part in field.split(","):
            found = RANGE.fullmatch(part.lower())
            if found is not None and found[3] is not None and found[3].lstrip("/0") != "1":
                ends = _ends(found[1], found[2], place)
                if ends is not None and ends[0] > ends[1]:
                    return part
    return None


def _ends(first: str, last: str, place: int) -> tuple[int, int] | None:
    """The numbers at the ends of a range, if they can be read."""
    names = NAMES.get(place, {})
    ends = [names.get(end, end) for end in (first, last)]
    # Python reads no number of thousands of digits.
    return (int(ends[0]), int(ends[1])) if all(end.isdecimal() and len(end) < 9 for end in ends) else None


def _mixes_days(parsed: croniter) -> bool:
    """Whether it should fire on days of either kind and would, by croniter, on days of both kinds only."""
    by_day, by_weekday = (parsed.expanded[place] != ["*"] for place in (DAY, WEEKDAY))
    return bool((by_day and parsed.nth_weekday_of_month) or (by_weekday and parsed.nearest_weekday))


def _offset(instant: datetime, zone: ZoneInfo) -> timedelta:
    return instant.astimezone(zone).utcoffset() or timedelta()


def _wall_time(instant: datetime, zone: ZoneInfo) -> datetime:
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


def _next_change(zone: ZoneInfo, after: datetime, until: datetime) -> datetime | None:
    """Return the first instant in (after, until] with another UTC offset than the one before it."""
    before = _offset(after, zone)
    while after < until:
        later = min(after + ONE_DAY, until)
        if _offset(later, zone) != before:
            while later - after > ONE_SECOND:
                middle = after + (later - after) // 2
                middle = middle.replace(microsecond=0)
                if _offset(middle, zone) == before:
                    after = middle
                else:
                    later = middle
            return later
        after = later
    return None

"""Values that a caller should not pass, and some that are unusual and right."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import strategies as st

#: Texts that end a literal, an identifier or a dollar quote, or stand for something in a format.
HOSTILE = (
    "",
    " ",
    "\x00",
    "a\x00b",
    "'",
    '"',
    "'; drop table queued; --",
    '"; drop schema public cascade; --',
    "$$",
    "$function$; select 1",
    "%s",
    "%(name)s",
    "%",
    "{}",
    "{schema}",
    "\\",
    "\ud800",
    "ä\U0001f600",
    "n" * 500,
    "n" * 501,
    "x" * 10_000,
    "\U0001f600" * 500,
    "queued:fetch",
    "\n",
)
TEXTS = st.sampled_from(HOSTILE) | st.text(max_size=40)
ENDS = (0, 1, -1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30)
NUMBERS = st.sampled_from(ENDS) | st.integers()
ZONES = st.sampled_from([UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-23, minutes=-59))])
MOMENTS = (
    st.sampled_from([datetime(1, 1, 1), datetime(9998, 12, 31), datetime(9999, 12, 31, 23, 59, 59, 999999)])
    | st.datetimes()
)
DUES = (
    st.none()
    | MOMENTS
    | st.builds(lambda moment, zone: moment.replace(tzinfo=zone), MOMENTS, ZONES)
    | st.sampled_from([timedelta.min, timedelta.max, timedelta(0)])
    | st.timedeltas()
)
ODD = st.none() | st.booleans() | st.floats() | st.binary(max_size=5) | st.lists(st.integers(), max_size=2)

"""Starts ``tests.worker.scheduled`` with a wall clock that is wrong, by the seconds of the option ``clock_offset``.

``python -m tests.worker.wrong_clock BACKEND OPTIONS``, with the options of that program besides. The clock is wrong
before anything of ours, or of what we build upon, is imported, whatever name it is asked by: ``time.time``,
``datetime.now``, and so on.
"""

from __future__ import annotations

import datetime as dt
import json
import runpy
import sys
import time
from datetime import date, datetime
from typing import Any


class _LikeDatetime(type):
    def __instancecheck__(cls, instance: object) -> bool:
        # What C code makes is still a plain one.
        return isinstance(instance, datetime)


class WrongDatetime(datetime, metaclass=_LikeDatetime):
    """Asks the replaced clock."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> WrongDatetime:
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> WrongDatetime:
        return cls.now(dt.UTC).replace(tzinfo=None)

    @classmethod
    def today(cls) -> WrongDatetime:
        return cls.now()


class _LikeDate(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, date)


class WrongDate(date, metaclass=_LikeDate):
    """Asks the replaced clock."""

    @classmethod
    def today(cls) -> WrongDate:
        return cls.fromtimestamp(time.time())


def set_wrong(offset: float) -> None:
    """Let Python's wall clock be wrong by so many seconds, in what is imported from now on."""
    right, difference = time.time_ns, round(offset * 10**9)

    def time_ns() -> int:
        return right() + difference

    def of_now(function: Any) -> Any:
        """Let a function that means the present by default mean ours."""
        return lambda seconds=None: function(time.time() if seconds is None else seconds)

    replaced: dict[str, Any] = {
        "time_ns": time_ns,
        "time": lambda: time_ns() / 10**9,
        "localtime": of_now(time.localtime),
        "gmtime": of_now(time.gmtime),
    }
    vars(time).update(replaced)
    vars(dt).update({"datetime": WrongDatetime, "date": WrongDate})


if __name__ == "__main__":
    options = json.loads(sys.argv[2])
    set_wrong(options.pop("clock_offset"))
    sys.argv[2] = json.dumps(options)
    runpy.run_module("tests.worker.scheduled", run_name="__main__", alter_sys=True)

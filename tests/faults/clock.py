"""A wall clock that a scenario can set, for one process: by an offset in a file.

Two ways, since neither is complete: ``time.time`` and ``time.time_ns`` of Python are replaced here, which reaches what
asks by these names; and libfaketime, where it is installed, stands before the C library, which reaches everything. The
monotonic clock, which no machine's owner can set, stays as it is in both.
"""

from __future__ import annotations

import time
from pathlib import Path

import attrs

#: Where Debian's package ``libfaketime`` has it.
_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


@attrs.frozen
class ClockFile:
    """Sets the clock of the processes that were started with its environment."""

    path: Path

    def set(self, offset: int) -> None:
        """Let the clock be wrong by so many seconds."""
        new = self.path.with_suffix(".new")
        new.write_text(f"{offset:+}")
        new.rename(self.path)  # nobody ever reads half of it

    def environment(self, way: str) -> dict[str, str]:
        """What a process is started with: ``way`` is ``python`` or ``faketime``."""
        if way == "python":
            return {"PGQ_TEST_CLOCK": str(self.path)}
        return {
            "LD_PRELOAD": str(_LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self.path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


def has_faketime() -> bool:
    """Whether libfaketime is installed."""
    return bool(_LIBRARIES)


def install(path: str | None) -> None:
    """Replace Python's wall clock by one that is wrong by what the file says; nothing without a file."""
    if path is None:
        return
    file, right = Path(path), time.time_ns

    def time_ns() -> int:
        return right() + int(file.read_text()) * 10**9

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 10**9

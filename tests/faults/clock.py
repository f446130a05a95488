"""A wall clock that a scenario can set, for one process: by an offset in a file.

Two ways: ``time.time`` and ``time.time_ns`` of Python are replaced here, which reaches what asks by these names; and
``clock.c``, where it can be compiled, stands before the C library, which reaches everything else, too: ``datetime``,
libpq and OpenSSL. The monotonic clock, which no machine's owner can set, stays as it is in both.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import attrs

_COMPILER = shutil.which("cc") if sys.platform == "linux" else None
_SOURCE = Path(__file__).with_suffix(".c")


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
        """What a process is started with: ``way`` is ``python`` or ``libc``."""
        if way == "python":
            return {"PGQ_TEST_CLOCK": str(self.path)}
        library = self._compiled()
        # By its name alone: a space in the path would end it.
        return {
            "LD_PRELOAD": library.name,
            "LD_LIBRARY_PATH": str(library.parent),
            "PGQ_TEST_WALL_CLOCK": str(self.path),
        }

    def _compiled(self) -> Path:
        library = self.path.with_suffix(".so")
        if not library.exists():
            assert _COMPILER is not None
            options = ["-std=c11", "-Wall", "-Werror", "-O2", "-shared", "-fPIC"]
            subprocess.run([_COMPILER, *options, "-o", library, _SOURCE, "-ldl"], check=True)
        return library


def can_compile() -> bool:
    """Whether the way ``libc`` is open."""
    return _COMPILER is not None


def install(path: str | None) -> None:
    """Replace Python's wall clock by one that is wrong by what the file says; nothing without a file."""
    if path is None:
        return
    file, right = Path(path), time.time_ns

    def time_ns() -> int:
        return right() + int(file.read_text()) * 10**9

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 10**9

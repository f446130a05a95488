"""What handlers did, by their own account, at any rate: entries of a fixed size, appended to one file for each worker.

An entry is one ``write`` of 32 bytes to a file that is open for appending. It costs a handler microseconds, needs no
server, and is there as soon as the call returns: neither SIGKILL of the worker nor a crash of the database takes it
back. So each start and each end of *every* job is known, and nothing has to be sampled. Child processes write into the
file of their worker.

Times are those of the machine's clock, which the database on the same machine reads as well.
"""

from __future__ import annotations

import itertools
import os
import struct
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import attrs

#: job, run, time, latency, kind, event
_ENTRY = struct.Struct("<qqdfBBxx")
#: How much of a file is read at a time (in bytes).
_BLOCK = _ENTRY.size * 32_768

KINDS = (
    "work", "thread", "process", "fail", "retry", "snooze", "later", "held", "limited", "rated", "serial", "tick",
)  # fmt: skip


class Event(IntEnum):
    """What an entry says."""

    START = 0
    #: the handler came to its end
    END = 1
    #: the handler ended with the error that it was to end with
    FAILED = 2
    #: the handler asked for another run
    AGAIN = 3
    #: the handler was told to end
    CANCELLED = 4


@attrs.frozen(slots=True)
class Entry:
    """One line of the journal."""

    job_id: int
    #: a number of its own for each call of a handler
    run: int
    at: float
    #: from enqueueing to the start (in seconds), or -1
    latency: float
    kind: str
    event: Event


@attrs.define(eq=False)
class Journal:
    """The file of the worker that this process is, or belongs to."""

    path: Path
    _file: int | None = attrs.field(default=None, init=False)
    _numbers: Iterator[int] = attrs.field(factory=itertools.count, init=False)

    def next_run(self) -> int:
        """A number for one call of a handler."""
        return os.getpid() << 32 | next(self._numbers)

    def write(self, job_id: int, run: int, kind: str, event: Event, latency: float = -1.0) -> None:
        """Append an entry. Threads and processes may do so at the same time."""
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.write(self._file, _ENTRY.pack(job_id, run, time.time(), latency, KINDS.index(kind), event))


def read(path: Path) -> Iterator[Entry]:
    """All entries of one worker, in order."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            for job_id, run, at, latency, kind, event in _ENTRY.iter_unpack(block):
                yield Entry(job_id, run, at, latency, KINDS[kind], Event(event))


def has_started_since(path: Path, at: float) -> bool:
    """Whether a worker has started a job after a time: looks at the end of its file."""
    if not path.exists():
        return False
    size = path.stat().st_size // _ENTRY.size * _ENTRY.size
    with path.open("rb") as file:
        file.seek(max(0, size - 100 * _ENTRY.size))
        tail = file.read(size - file.tell())
    return any(entry[2] > at and entry[5] == Event.START for entry in _ENTRY.iter_unpack(tail))

"""What a scenario has to say in the end: one row for the table of ``docs/reliability.md``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import attrs

#: ``PGQ_ANYIO_TEST_FAULTS=long`` is the long form: as often and with as many jobs as the documentation says.
LONG = os.environ.get("PGQ_ANYIO_TEST_FAULTS") == "long"
#: Where rows are gathered (a directory).
ROWS = os.environ.get("PGQ_ANYIO_TEST_FAULT_ROWS")

#: Why jobs may run twice if the database cannot be written to for longer than a lease.
TOO_LATE = "its handler had ended, and its lease was over before that could be stored"


def form(*, short: int, long: int) -> int:
    """A number that depends on the form of the suite."""
    return long if LONG else short


@attrs.frozen(kw_only=True)
class Row:
    """What was seen in one scenario."""

    #: rows are listed by number, then by title
    number: int
    title: str
    #: how often the fault was injected
    times: int
    #: how many jobs were enqueued and ended
    jobs: int
    lost: int
    #: jobs whose handler came to its end more than once
    doubled: int
    #: why the contract allows doubles here; empty if it does not
    allowed: str
    #: runs that the fault ended before their handlers were through; they ran again
    interrupted: int
    #: from the end of a fault until every slot of every worker was in use (in seconds), the longest
    recovered: float
    #: the time that is allowed for it
    bound: float

    def save(self) -> None:
        """Leave it for the report."""
        if ROWS is not None:
            name = f"{self.number:02} {self.title}".replace("/", "-")
            Path(ROWS, f"{name}.json").write_text(json.dumps(attrs.asdict(self)), "utf-8")

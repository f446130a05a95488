"""The queue's records of all jobs, read as they come: retention deletes them while the test goes on.

They are read with an overlap, because transactions do not become visible in the order of their times. Of each job one
byte is kept, and it must never change; the numbers of jobs are dense.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import attrs

from tests.worker.fleet import Fleet

#: A transaction is visible within this time (in seconds).
OVERLAP: Final = 15
STATUSES: Final = (None, "successful", "failed", "cancelled")
_NEW = """
select job_id, status, finished_at from {schema}.finished
where finished_at > %s::timestamptz - make_interval(secs => %s) order by finished_at
"""


@attrs.define(eq=False)
class Records:
    """What the queue has recorded so far."""

    fleet: Fleet
    count: int = attrs.field(default=0, init=False)
    #: jobs that had a record already, with another time
    twice: list[tuple[int, datetime]] = attrs.field(factory=list, init=False)
    _statuses: bytearray = attrs.field(factory=bytearray, init=False)
    _read_to: datetime = attrs.field(default=datetime.min.replace(year=1970, tzinfo=UTC), init=False)
    #: the records of the overlap
    _recent: dict[int, datetime] = attrs.field(factory=dict, init=False)

    def read(self) -> None:
        """Read what has come since the last time."""
        rows = self.fleet.rows(_NEW, self._read_to, OVERLAP)
        recent: dict[int, datetime] = {}
        for job_id, status, finished_at in rows:
            if job_id in recent:
                self.twice.append((job_id, finished_at))
            elif self._recent.get(job_id) != finished_at:
                self._add(job_id, status, finished_at)
            recent[job_id] = finished_at
        if rows:
            self._recent, self._read_to = recent, rows[-1][2]

    def status(self, job_id: int) -> str | None:
        """How a job has ended."""
        return STATUSES[self._statuses[job_id]] if job_id < len(self._statuses) else None

    def _add(self, job_id: int, status: Any, finished_at: datetime) -> None:
        if job_id >= len(self._statuses):
            self._statuses.extend(bytes(job_id + 100_000 - len(self._statuses)))
        if self._statuses[job_id]:
            self.twice.append((job_id, finished_at))
        else:
            self.count += 1
        self._statuses[job_id] = STATUSES.index(status)

"""What has become of all jobs: the journals of the workers against the records of the queue.

Proven for **every** job, none is sampled:

- *not lost*: each id that an enqueue call has returned has a record. ``successful`` needs a run that came to its end,
  ``failed`` one with the intended error, ``cancelled`` a job that was cancelled; and no other kind has any of these
- *not recorded twice*, and no record of a job that nobody enqueued (calls whose answer was lost may have)
- *not run again without a reason*: a run that is followed by another one of its job has asked for it or was told to
  end, both in the journal; or it lies in the time of a fault that explains it: of its worker (killed, frozen, cut off
  for longer than its lease), or of the server (a crash undoes the claims of the last moment)
- *doubled* are the jobs whose handler came to its end more than once; each needs such a fault
- limits and serial order hold: never more at once than the limit, outside the faults that may break it
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Final

import attrs

from tests.soak.journal import Entry, Event, read

#: The times of journal and faults are compared with this tolerance (in seconds): a claim was made before its start.
MARGIN: Final = 2.0
#: Latency is told of jobs without limits or delays.
PLAIN: Final = ("work", "thread", "fail")
CAPPED: Final = ("limited", "serial")
_EXPECTED: Final = {"fail": ("failed", Event.FAILED), "held": ("cancelled", None)}


@attrs.define(eq=False, kw_only=True)
class Fault:
    """One fault, and the time in which its consequences may be seen."""

    name: str
    began_at: float
    ended_at: float = math.inf
    #: the workers whose runs may be repeated
    pids: frozenset[int] = frozenset()
    #: whether the server may have forgotten something, so that this holds for all workers
    is_crash: bool = False

    def explains(self, run: Run) -> bool:
        """Whether a run may be repeated because of this fault."""
        overlaps = run.started_at < self.ended_at + MARGIN and run.ended_at > self.began_at - MARGIN
        return overlaps and (self.is_crash or run.pid in self.pids)


@attrs.define(eq=False)
class Run:
    """One call of a handler."""

    job_id: int
    kind: str
    pid: int
    started_at: float
    ended_at: float = math.inf
    event: Event = Event.START

    @property
    def is_through(self) -> bool:
        """Whether the handler came to its end."""
        return self.event in (Event.END, Event.FAILED)


@attrs.define(eq=False)
class Runs:
    """What the journals say, in a size that millions of jobs allow: whole runs only of jobs that ran more than once,
    and of kinds with a limit.
    """

    journals: Sequence[Path]
    starts_in_all: int = attrs.field(default=0, init=False)
    #: by job: how often it was started (up to 255), and which ends it came to (bits)
    starts: bytearray = attrs.field(factory=bytearray, init=False)
    events: bytearray = attrs.field(factory=bytearray, init=False)
    latencies: list[tuple[float, float]] = attrs.field(factory=list, init=False)
    ticks: list[int] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        for entry in chain.from_iterable(map(read, self.journals)):
            if entry.kind == "tick":
                self.ticks.append(entry.job_id)
            else:
                self._count(entry)

    def _count(self, entry: Entry) -> None:
        job_id = entry.job_id
        if job_id >= len(self.starts):
            more = bytes(job_id + 100_000 - len(self.starts))
            self.starts.extend(more)
            self.events.extend(more)
        self.events[job_id] |= 1 << entry.event
        if entry.event is Event.START:
            self.starts_in_all += 1
            self.starts[job_id] = min(255, self.starts[job_id] + 1)
            if entry.latency >= 0 and entry.kind in PLAIN:
                self.latencies.append((entry.at, entry.latency))

    def has(self, job_id: int, event: Event) -> bool:
        """Whether one of a job's runs came to this end."""
        return job_id < len(self.events) and bool(self.events[job_id] >> event & 1)

    def whole(self) -> tuple[dict[int, list[Run]], list[Run]]:
        """The runs of each job that was started more than once, in order; and all runs with a limit."""
        repeated: defaultdict[int, list[Run]] = defaultdict(list)
        capped: list[Run] = []
        for path in self.journals:
            runs: dict[int, Run] = {}
            for entry in read(path):
                is_capped = entry.kind in CAPPED
                if entry.kind == "tick" or not (is_capped or self.starts[entry.job_id] > 1):
                    continue
                if entry.event is Event.START:
                    run = runs[entry.run] = Run(entry.job_id, entry.kind, int(path.name), entry.at)
                    if self.starts[entry.job_id] > 1:
                        repeated[entry.job_id].append(run)
                    if is_capped:
                        capped.append(run)
                else:
                    run = runs.pop(entry.run)
                    run.ended_at, run.event = entry.at, entry.event
        for job_runs in repeated.values():
            job_runs.sort(key=lambda run: run.started_at)
        return repeated, capped


def find_unexplained(repeated: dict[int, list[Run]], faults: Sequence[Fault]) -> list[tuple[Run, Run]]:
    """Runs that were followed by another one without a reason."""
    asked = (Event.AGAIN, Event.CANCELLED)
    return [
        (run, following)
        for runs in repeated.values()
        for run, following in pairwise(runs)
        if run.event not in asked and not any(fault.explains(run) or fault.explains(following) for fault in faults)
    ]


def count_doubled(repeated: dict[int, list[Run]]) -> int:
    """How many jobs came to their end more than once."""
    return sum(sum(run.is_through for run in runs) > 1 for runs in repeated.values())


def find_unfounded(ids: Iterable[tuple[int, str | None]], kinds: dict[int, str], runs: Runs) -> list[tuple[int, str]]:
    """Jobs that are recorded otherwise than their handlers have written.

    :param ids: job and recorded status
    :param kinds: of the jobs that are not to be successful
    """
    found = []
    for job_id, status in ids:
        expected, event = _EXPECTED.get(kinds.get(job_id, ""), ("successful", Event.END))
        if status != expected or (event is not None and not runs.has(job_id, event)):
            found.append((job_id, str(status)))
    return found


def most_at_once(capped: Iterable[Run], kind: str, faults: Sequence[Fault]) -> int:
    """How many runs of a kind overlapped at most, without those that a fault may have touched."""
    changes = []
    for run in capped:
        if run.kind == kind and run.ended_at < math.inf and not any(fault.explains(run) for fault in faults):
            changes += [(run.started_at, 1), (run.ended_at, -1)]
    return max(accumulate(change for _, change in sorted(changes)), default=0)


def percentiles(latencies: Iterable[float]) -> tuple[float, float]:
    """The 50th and the 99th (in milliseconds)."""
    ordered = sorted(latencies)
    if not ordered:
        return math.nan, math.nan
    return ordered[len(ordered) // 2] * 1000, ordered[len(ordered) * 99 // 100] * 1000

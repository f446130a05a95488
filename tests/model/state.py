"""What the tables ought to hold: a plain model of the life cycle, without SQL, locks or time.

``State`` is one moment of the database. A *move* (``moves.py``, ``worker_moves.py``) looks at a state and says which
answer its statement has to give, what it changes, and which rows it locks until its transaction ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from pgq_anyio._hints import Lanes
from pgq_anyio._limits import UNLIMITED, Limits
from pgq_anyio._timetable import ScheduleKey
from tests.model.schedule_state import Schedules

#: Deferred jobs are due in this year, and postponed ones before it; what lets one come due is the test.
FAR = datetime(2110, 1, 1, tzinfo=UTC)
NOT_YET = datetime(2100, 1, 1, tzinfo=UTC)  # and yet not before 1970 when LONG is taken off
POSTPONED = 80 * 365 * 86400.0
LONG = timedelta(days=100 * 365)
#: Names of the tests. What limits they have changes.
NAMES = ("plain", "other", "limited", "serial")


@attrs.define
class ModelJob:
    """One job, in whatever table."""

    id: int
    name: str
    priority: int
    payload: bytes | None
    table: str
    #: when it is due, and its place; ``None`` until the database has been asked for a new one
    run_at: datetime | None = None
    seq: int | None = None
    attempt: int = 1
    crashes: int = 0
    worker_id: int | None = None
    claim_no: int | None = None
    cancel_requested: bool = False
    reason: str | None = None
    status: str | None = None
    error_type: str | None = None
    #: how many errors of earlier attempts are kept
    errors: int = 0

    @property
    def order(self) -> tuple[int, int]:
        """Which of two queued jobs is claimed first."""
        assert self.seq is not None, "claims see jobs whose place is known"
        return -self.priority, self.seq

    @property
    def row(self) -> tuple[Any, ...]:
        """The job as ``World.read_jobs`` reads it from the table that holds it."""
        return (
            self.table,
            self.name,
            self.priority,
            self.payload,
            self.attempt,
            self.crashes,
            self.run_at,
            self.seq,
            self.worker_id,
            self.claim_no,
            self.cancel_requested,
            self.reason,
            self.status,
            self.error_type,
            self.errors,
        )


@attrs.define
class ModelWorker:
    """The row of one worker."""

    max_crashes: int
    beat: int = 0
    has_left: bool = False
    #: how many changes of limits it has to know of
    limit_changes: int = 0
    #: the schedules that it has code for
    serves: frozenset[ScheduleKey] = frozenset()


@attrs.frozen
class Locks:
    """What a transaction holds until it ends."""

    jobs: frozenset[int] = frozenset()
    workers: frozenset[int] = frozenset()
    #: names whose limits are locked
    names: frozenset[str] = frozenset()


NO_LOCKS = Locks()


@attrs.frozen
class Plan:
    """What a statement has to do."""

    answer: Any
    change: Callable[[State], None] = lambda _: None
    locks: Locks = NO_LOCKS


@attrs.define
class State:
    """One moment of the database."""

    jobs: dict[int, ModelJob] = attrs.field(factory=dict)
    workers: dict[int, ModelWorker] = attrs.field(factory=dict)
    limits: dict[str, Limits] = attrs.field(factory=dict)
    schedules: Schedules = attrs.field(factory=Schedules)
    #: jobs that got a new place, in the order in which they got it, until the database has been asked
    placed: list[int] = attrs.field(factory=list)

    def limits_of(self, name: str) -> Limits:
        return self.limits.get(name, UNLIMITED)

    def in_table(self, table: str) -> list[ModelJob]:
        """The jobs of one table, in the order of their ids."""
        return [job for _, job in sorted(self.jobs.items()) if job.table == table]

    def running(self, *, worker_id: int | None = None, name: str | None = None) -> list[ModelJob]:
        return [
            job for job in self.in_table("running") if worker_id in (None, job.worker_id) and name in (None, job.name)
        ]

    def held(self, fence: tuple[int, int, int]) -> ModelJob | None:
        """The job of (job id, worker id, claim number), if it is still held by that claim."""
        job = self.jobs.get(fence[0])
        if job is None or job.table != "running" or (job.worker_id, job.claim_no) != fence[1:]:
            return None
        return job

    def can_claim(self, worker_id: int) -> bool:
        worker = self.workers.get(worker_id)
        return worker is not None and not worker.has_left

    def orphans(self) -> list[ModelJob]:
        """Running jobs whose worker has no row."""
        return [job for job in self.running() if job.worker_id not in self.workers]

    def orphaned_schedules(self) -> set[ScheduleKey]:
        """Schedules that run on a worker that has no row."""
        return self.schedules.owned(lambda worker_id: worker_id not in self.workers)

    # -- transitions -----------------------------------------------------------------------------------------------

    def to_queued(self, jobs: Iterable[ModelJob], *, keep_place: bool) -> None:
        """Back, or for the first time, into the queue; new places are given in this order."""
        for job in jobs:
            job.table, job.run_at = "queued", None
            job.worker_id = job.claim_no = None
            if not keep_place:
                job.seq = None
                self.placed.append(job.id)

    def to_running(self, jobs: Iterable[ModelJob], worker_id: int, claim_no: int) -> None:
        for job in jobs:
            job.table, job.worker_id, job.claim_no = "running", worker_id, claim_no

    def to_finished(self, job: ModelJob, status: str, *, reason: str | None = None, error: str | None = None) -> None:
        job.table, job.status, job.error_type = "finished", status, error
        job.reason = reason if status == "cancelled" else None
        if status == "successful":
            job.payload = None
        job.run_at = job.seq = job.claim_no = None
        job.cancel_requested = False

    # -- claims ----------------------------------------------------------------------------------------------------

    def visible(self, name: str, lanes: Lanes | None, reach: int) -> list[ModelJob]:
        """The queued jobs of a name that a claim looks at: all, or the first of each lane and gap."""
        queued = sorted((job for job in self.in_table("queued") if job.name == name), key=lambda job: job.order)
        if lanes is None:
            return queued[:reach]
        found: list[ModelJob] = []
        for entrypoint, priority, seq in zip(lanes.entrypoints, lanes.priorities, lanes.seqs, strict=True):
            if entrypoint == name:
                behind = [job for job in queued if job.priority == priority and job.order[1] > seq]
                found += behind[:reach]
        for entrypoint, above, below in zip(lanes.gap_entrypoints, lanes.gap_aboves, lanes.gap_belows, strict=True):
            if entrypoint == name:
                found += [job for job in queued if above < job.priority < below][:reach]
        return sorted(found, key=lambda job: job.order)


def ids(jobs: Iterable[ModelJob]) -> list[int]:
    return [job.id for job in jobs]


def in_order(jobs: Iterable[ModelJob]) -> list[ModelJob]:
    """By priority, and then by place."""
    return sorted(jobs, key=lambda job: job.order)


def by_place(jobs: Iterable[ModelJob]) -> list[ModelJob]:
    return sorted(jobs, key=lambda job: job.order[1])


def free_of(jobs: Iterable[ModelJob], locked: Collection[int]) -> list[ModelJob]:
    """Without those that another transaction has locked."""
    return [job for job in jobs if job.id not in locked]


def changed_limits(state: State, wanted: Mapping[str, Limits]) -> dict[str, Limits]:
    """Which definitions differ from what stands there."""
    return {name: one for name, one in wanted.items() if one != state.limits_of(name)}

"""How a worker comes, beats, judges others and goes: statements on its row, and what they do to jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from pgq_anyio._db import Connection
from pgq_anyio._limits import Limits
from pgq_anyio._models import JobId
from pgq_anyio._store._sql import Store
from pgq_anyio._store.limiter import KnownLimits, define_limits, list_limits
from pgq_anyio._store.running import give_back_claims, list_claims
from pgq_anyio._store.worker import beat_worker, leave, mark_left, register_worker, rescue_jobs
from tests.model.state import NAMES, NO_LOCKS, Locks, ModelJob, ModelWorker, Plan, State, by_place, changed_limits, ids

#: The limits of names, and of how many changes they are the outcome.
Known = tuple[dict[str, Limits], int]

#: What counts for jobs whose worker left no row.
DEFAULT_MAX_CRASHES = 3


def back_or_cancelled(state: State, job_ids: Iterable[int]) -> None:
    """What happens to jobs that nobody finishes: cancelled if that was asked for, else to their old place."""
    for job in by_place(state.jobs[job_id] for job_id in job_ids):
        if job.cancel_requested:
            state.to_finished(job, "cancelled", reason=job.reason)
        else:
            state.to_queued([job], keep_place=True)


def known_limits(state: State, worker_id: int, changed: Mapping[str, Limits] | None = None) -> Known:
    """What a worker reads of limits: what they are, and of how many changes that is the outcome."""
    worker = state.workers.get(worker_id)
    return {**state.limits, **(changed or {})}, -1 if worker is None else worker.limit_changes


def told(known: KnownLimits) -> Known:
    """The same of the database's answer."""
    return {one.entrypoint: one.limits for one in known.definitions}, known.changes


@attrs.frozen
class Register:
    worker_id: int
    max_crashes: int

    def plan(self, state: State, others: Locks) -> Plan:
        def change(after: State) -> None:
            after.workers.setdefault(self.worker_id, ModelWorker(self.max_crashes))

        return Plan(None, change)

    async def run(self, conn: Connection, store: Store) -> None:
        await register_worker(
            conn,
            store,
            worker_id=self.worker_id,
            name=str(self.worker_id),
            entrypoints=NAMES,
            max_crashes=[self.max_crashes] * len(NAMES),
            lease=3600.0,
        )


@attrs.frozen
class Define:
    """Bring in limits; the answer is what holds then."""

    worker_id: int
    limits: Mapping[str, Limits]

    def plan(self, state: State, others: Locks) -> Plan:
        changed = changed_limits(state, self.limits)
        marked = frozenset(worker_id for worker_id in state.workers if changed and worker_id != self.worker_id)

        def change(after: State) -> None:
            after.limits.update(changed)
            for worker_id in marked:
                after.workers[worker_id].limit_changes += 1

        names = frozenset(name for name, one in self.limits.items() if one.is_limited)
        return Plan(known_limits(state, self.worker_id, changed), change, Locks(workers=marked, names=names))

    async def run(self, conn: Connection, store: Store) -> Known:
        name = str(self.worker_id)
        present, _ = await define_limits(
            conn, store, worker_id=self.worker_id, name=name, entrypoints=NAMES, limits=self.limits
        )
        return told(present)


@attrs.frozen
class ReadLimits:
    worker_id: int

    def plan(self, state: State, others: Locks) -> Plan:
        return Plan(known_limits(state, self.worker_id))

    async def run(self, conn: Connection, store: Store) -> Known:
        return told(await list_limits(conn, store, NAMES, worker_id=self.worker_id))


@attrs.frozen
class Beat:
    """The answer: cancels to deliver, the others with beat and farewell, orphans, strays, new limits; or ``None``."""

    worker_id: int
    unresolved: tuple[int, ...]

    def plan(self, state: State, others: Locks) -> Plan:
        if not state.can_claim(self.worker_id):
            return Plan(None)
        mine = state.running(worker_id=self.worker_id)
        answer = (
            [(job.id, job.claim_no) for job in mine if job.cancel_requested],
            [
                (worker_id, w.beat, w.has_left)
                for worker_id, w in sorted(state.workers.items())
                if worker_id != self.worker_id
            ],
            bool(state.orphans() or state.orphaned_schedules()),
            any(job.claim_no in self.unresolved for job in mine),
            state.workers[self.worker_id].limit_changes,
        )

        def change(after: State) -> None:
            after.workers[self.worker_id].beat += 1

        return Plan(answer, change, Locks(workers=frozenset([self.worker_id])))

    async def run(self, conn: Connection, store: Store) -> Any:
        pulse = await beat_worker(conn, store, worker_id=self.worker_id, unresolved=self.unresolved)
        if pulse is None:
            return None
        peers = [(peer.worker_id, peer.beat, peer.has_left) for peer in pulse.peers]
        return pulse.cancel_requested, peers, pulse.orphans, pulse.strays, pulse.limit_changes


@attrs.frozen
class MarkLeft:
    worker_id: int

    def plan(self, state: State, others: Locks) -> Plan:
        def change(after: State) -> None:
            if self.worker_id in after.workers:
                after.workers[self.worker_id].has_left = True

        return Plan(None, change, Locks(workers=frozenset([self.worker_id]) & frozenset(state.workers)))

    async def run(self, conn: Connection, store: Store) -> None:
        await mark_left(conn, store, worker_id=self.worker_id)


@attrs.frozen
class Leave:
    """The answer are the ids that had to be given back."""

    worker_id: int

    def plan(self, state: State, others: Locks) -> Plan:
        return self.plan_waited(state, state)

    def plan_waited(self, before: State, state: State) -> Plan:
        mine = ids(state.running(worker_id=self.worker_id))
        owned = set.intersection(*(one.schedules.owned(lambda by: by == self.worker_id) for one in (before, state)))

        def change(after: State) -> None:
            after.workers.pop(self.worker_id, None)
            back_or_cancelled(after, mine)
            after.schedules.end(owned, "given_back")

        return Plan(mine, change, Locks(jobs=frozenset(mine), workers=frozenset([self.worker_id])))

    async def run(self, conn: Connection, store: Store) -> list[int]:
        return sorted(await leave(conn, store, worker_id=self.worker_id))


@attrs.frozen
class GiveBack:
    """Jobs that their worker does not know: (job id, or ``None`` for the whole claim; claim number)."""

    worker_id: int
    unknown: tuple[tuple[JobId | None, int], ...]

    def plan(self, state: State, others: Locks) -> Plan:
        asked = set(self.unknown)
        given = [
            job.id
            for job in state.running(worker_id=self.worker_id)
            if asked & {(None, job.claim_no), (job.id, job.claim_no)}
        ]
        return Plan(given, lambda after: back_or_cancelled(after, given), Locks(jobs=frozenset(given)))

    async def run(self, conn: Connection, store: Store) -> list[int]:
        return sorted(await give_back_claims(conn, store, worker_id=self.worker_id, unknown=self.unknown))


@attrs.frozen
class ListClaims:
    worker_id: int

    def plan(self, state: State, others: Locks) -> Plan:
        return Plan({(job.id, job.claim_no) for job in state.running(worker_id=self.worker_id)})

    async def run(self, conn: Connection, store: Store) -> set[tuple[int, int]]:
        return {
            (int(job_id), claim_no) for job_id, claim_no in await list_claims(conn, store, worker_id=self.worker_id)
        }


@attrs.frozen
class Rescue:
    """Bury workers, given with the beat that was seen; the answer are the buried ones and the jobs taken over."""

    judged: tuple[tuple[int, int], ...]

    def plan(self, state: State, others: Locks) -> Plan:
        return self._plan(state, state, others)

    def plan_waited(self, before: State, state: State) -> Plan:
        return self._plan(before, state, NO_LOCKS)

    def _plan(self, before: State, state: State, others: Locks) -> Plan:
        buried = {
            worker_id: state.workers[worker_id]
            for worker_id, beat in sorted(self.judged)
            if worker_id in state.workers
            and worker_id not in others.workers
            and (state.workers[worker_id].has_left or state.workers[worker_id].beat == beat)
        }
        orphans = ids(state.orphans())
        taken = [job.id for job in state.running() if job.worker_id in buried or job.id in orphans]

        def is_gone(worker_id: int) -> bool:
            return worker_id in buried or worker_id not in before.workers

        owned = before.schedules.owned(is_gone) & state.schedules.owned(is_gone)

        def change(after: State) -> None:
            for job in by_place(after.jobs[job_id] for job_id in taken):
                self._decide(after, job, buried.get(job.worker_id or 0))
            for key in owned:
                worker = buried.get(after.schedules.rows[key].worker_id or 0)
                has_left = worker is not None and worker.has_left
                after.schedules.end([key], *(("given_back",) if has_left else ("failed", "WorkerDied")))
            for worker_id in buried:
                del after.workers[worker_id]

        return Plan((list(buried), taken), change, Locks(jobs=frozenset(taken), workers=frozenset(buried)))

    @staticmethod
    def _decide(state: State, job: ModelJob, worker: ModelWorker | None) -> None:
        crashed = worker is None or not worker.has_left
        job.crashes += crashed
        limit = DEFAULT_MAX_CRASHES if worker is None else worker.max_crashes
        if job.cancel_requested:
            state.to_finished(job, "cancelled", reason=job.reason)
        elif crashed and job.crashes >= limit:
            state.to_finished(job, "failed", error="WorkerDied")
        else:
            job.errors += crashed
            state.to_queued([job], keep_place=True)

    async def run(self, conn: Connection, store: Store) -> tuple[list[int], list[int]]:
        buried, taken = await rescue_jobs(conn, store, self.judged, max_crashes=DEFAULT_MAX_CRASHES)
        return sorted(buried), sorted(taken)

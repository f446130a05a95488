"""How a worker takes jobs and settles them: claims of both kinds, and every outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from pgq_anyio._db import Connection
from pgq_anyio._hints import Lanes
from pgq_anyio._lifecycle import Again, Cancelled, Failed, GivenBack, Outcome
from pgq_anyio._models import Held, Job
from pgq_anyio._store._sql import Store
from pgq_anyio._store.limiter import Scan, claim_limited
from pgq_anyio._store.queued import claim_hinted, claim_sweep
from pgq_anyio._store.running import finish_jobs, settle_jobs
from tests.model.state import Locks, ModelJob, Plan, State, by_place, free_of, ids, in_order


def to_running(job_ids: Sequence[int], worker_id: int, claim_no: int) -> Callable[[State], None]:
    return lambda state: state.to_running((state.jobs[job_id] for job_id in job_ids), worker_id, claim_no)


@attrs.frozen
class Claim:
    """Jobs of names without limits. The answer: how many candidates there were, and the ids, in their order."""

    worker_id: int
    claim_no: int
    names: tuple[str, ...]
    #: how many changes of limits the worker knows of
    limit_changes: int
    #: ``None`` for a sweep
    lanes: Lanes | None
    limit: int
    reach: int
    #: (job, place), when the database has answered
    claimed: list[tuple[Job, int]] = attrs.field(factory=list, eq=False)

    def plan(self, state: State, others: Locks) -> Plan:
        found: list[ModelJob] = []
        worker = state.workers.get(self.worker_id)
        if worker is not None and not worker.has_left and worker.limit_changes == self.limit_changes:
            for name in self.names:
                found += state.visible(name, self.lanes, self.reach)
        candidates = in_order(found)[: self.reach]
        taken = ids(free_of(candidates, others.jobs)[: self.limit])
        change = to_running(taken, self.worker_id, self.claim_no)
        return Plan((len(candidates), taken), change, Locks(jobs=frozenset(taken)))

    async def run(self, conn: Connection, store: Store) -> tuple[int, list[int]]:
        numbers = {
            "worker_id": self.worker_id,
            "claim_no": self.claim_no,
            "limit": self.limit,
            "reach": self.reach,
            "limit_changes": self.limit_changes,
        }
        if self.lanes is None:
            answer = await claim_sweep(conn, store, list(self.names), **numbers)
        else:
            answer = await claim_hinted(conn, store, self.lanes, **numbers)
        self.claimed[:] = answer.jobs
        return answer.candidates, [int(job.id) for job, _ in answer.jobs]


@attrs.frozen
class ClaimLimited:
    """Jobs of limited names. The answer: (locked, slots left, candidates) of each name, and the ids, in their order."""

    worker_id: int
    claim_no: int
    #: the lanes of each name, or ``None`` for all of it
    hinted: Mapping[str, Lanes | None]
    limit: int
    reach: int
    claimed: list[tuple[Job, int]] = attrs.field(factory=list, eq=False)

    def plan(self, state: State, others: Locks) -> Plan:
        told: dict[str, tuple[bool, int | None, int]] = {}
        locked: list[ModelJob] = []
        chosen: list[ModelJob] = []
        slots: dict[str, int | None] = {}
        for name, lanes in self.hinted.items():
            told[name] = name not in others.names, None, 0
            if name in others.names or name not in state.limits:
                continue
            limits = state.limits_of(name)
            slots[name] = limits.concurrency_limit - len(state.running(name=name)) if limits.concurrency_limit else None
            free = max(0, self.limit if slots[name] is None else min(slots[name] or 0, self.limit))
            reach = max(free, 1) * (1 if limits.serialized else self.reach)
            candidates = state.visible(name, lanes, reach)[:reach]
            told[name] = True, slots[name], len(candidates)
            if free and state.can_claim(self.worker_id):
                mine = free_of(candidates, others.jobs)
                locked += mine
                chosen += mine[:free]
        taken = ids(in_order(chosen)[: self.limit])
        for name, left in slots.items():
            took = sum(state.jobs[job_id].name == name for job_id in taken)
            told[name] = True, None if left is None else left - took, told[name][2]
        names = frozenset(name for name in self.hinted if name not in others.names)
        change = to_running(taken, self.worker_id, self.claim_no)
        return Plan((told, taken), change, Locks(jobs=frozenset(ids(locked)), names=names))

    async def run(self, conn: Connection, store: Store) -> Any:
        answer = await claim_limited(
            conn,
            store,
            Scan.over(self.hinted),
            worker_id=self.worker_id,
            claim_no=self.claim_no,
            limit=self.limit,
            reach=self.reach,
        )
        self.claimed[:] = answer.jobs
        told = {one.entrypoint: (one.locked, one.slots_left, one.candidates) for one in answer.names}
        return told, [int(job.id) for job, _ in answer.jobs]


def fence(held: Held) -> tuple[int, int, int]:
    return held.job.id, held.worker_id, held.claim_no


@attrs.frozen
class Finish:
    """Successes; the answer are the ids that were still ours."""

    held: tuple[Held, ...]

    def plan(self, state: State, others: Locks) -> Plan:
        ours = sorted(job.id for held in self.held if (job := state.held(fence(held))) is not None)

        def change(after: State) -> None:
            for job_id in ours:
                job = after.jobs[job_id]
                status = "cancelled" if job.cancel_requested else "successful"
                after.to_finished(job, status, reason=job.reason)

        return Plan(ours, change, Locks(jobs=running_ids(state, self.held)))

    async def run(self, conn: Connection, store: Store) -> list[int]:
        return sorted(int(job_id) for job_id in await finish_jobs(conn, store, self.held))


@attrs.frozen
class Settle:
    """Every other outcome; the answer is where each job went that was still ours."""

    endings: tuple[tuple[Held, Outcome], ...]

    def plan(self, state: State, others: Locks) -> Plan:
        ours = {job.id: outcome for held, outcome in self.endings if (job := state.held(fence(held))) is not None}
        went = {job_id: _action(state.jobs[job_id], outcome) for job_id, outcome in ours.items()}

        def change(after: State) -> None:
            for job in by_place(after.jobs[job_id] for job_id in ours):
                _settle(after, job, ours[job.id], went[job.id])

        return Plan(went, change, Locks(jobs=running_ids(state, [held for held, _ in self.endings])))

    async def run(self, conn: Connection, store: Store) -> dict[int, str]:
        return {int(job_id): action for job_id, action in await settle_jobs(conn, store, self.endings)}


def running_ids(state: State, held: Sequence[Held]) -> frozenset[int]:
    """Rows that an outcome locks: it looks at the fence only then."""
    return frozenset(one.job.id for one in held) & frozenset(ids(state.running()))


def _action(job: ModelJob, outcome: Outcome) -> str:
    if job.cancel_requested or isinstance(outcome, Cancelled):
        return "cancelled"
    match outcome:
        case Failed():
            return "failed"
        case Again():
            return "again"
        case _:
            return "back"


def _settle(state: State, job: ModelJob, outcome: Outcome, action: str) -> None:
    match action, outcome:
        case "cancelled", _:
            # A failure is kept with the record even though the request decides.
            error = outcome.error if isinstance(outcome, Failed | Again) else None
            asked = outcome.reason if isinstance(outcome, Cancelled) else None
            reason = job.reason if job.reason is not None else asked
            state.to_finished(job, "cancelled", reason=reason, error=None if error is None else error.type)
        case "failed", Failed(error):
            state.to_finished(job, "failed", error=error.type)
        case "back", GivenBack():
            state.to_queued([job], keep_place=True)
        case "again", Again(delay, counted, error):
            job.errors += error is not None
            job.attempt += counted
            if delay <= 0:
                state.to_queued([job], keep_place=False)
            else:
                job.table, job.seq, job.worker_id, job.claim_no = "deferred", None, None, None
        case _:
            raise AssertionError(f"{outcome} does not lead to {action}")

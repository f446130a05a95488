"""What producers, operators and the clock do: each move is a statement of the store, and what the model says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol

import attrs

from pgq_anyio._db import Connection
from pgq_anyio._models import JobId
from pgq_anyio._store._sql import Store
from pgq_anyio._store._steps import run_steps
from pgq_anyio._store.cancelling import UNFINISHED, UnfinishedFilter, cancel_jobs, cancel_matching
from pgq_anyio._store.deferred import promote_due
from pgq_anyio._store.queued import NewJobs, enqueue_jobs
from pgq_anyio._store.requeueing import requeue_jobs
from tests.model.state import FAR, LONG, NOT_YET, Locks, ModelJob, Plan, State, ids
from tests.store.scenes import rows


class Move(Protocol):
    """One statement."""

    def plan(self, state: State, others: Locks) -> Plan:
        """What it has to do in this state, while another transaction holds these locks."""

    async def run(self, conn: Connection, store: Store) -> Any:
        """Do it; the answer, in the form that ``plan`` gives."""


@attrs.frozen
class NewJob:
    name: str
    priority: int
    #: minutes after ``FAR``, or ``None`` for a job that is due at once
    minute: int | None


@attrs.frozen
class Enqueue:
    """The answer is the number of ids, for which ids these are is the database's business."""

    jobs: tuple[NewJob, ...]
    #: filled when the database has answered
    job_ids: list[int] = attrs.field(factory=list, eq=False)

    def plan(self, state: State, others: Locks) -> Plan:
        return Plan(len(self.jobs), self._add)

    def _add(self, state: State) -> None:
        for job_id, new in zip(self.job_ids, self.jobs, strict=True):
            run_at = None if new.minute is None else FAR + timedelta(minutes=new.minute)
            table = "queued" if run_at is None else "deferred"
            assert job_id not in state.jobs, "ids are given once"
            state.jobs[job_id] = ModelJob(job_id, new.name, new.priority, b"payload", table, run_at)
            if run_at is None:
                state.placed.append(job_id)

    async def run(self, conn: Connection, store: Store) -> int:
        jobs = NewJobs(
            [new.name for new in self.jobs],
            [b"payload"] * len(self.jobs),
            [new.priority for new in self.jobs],
            [None] * len(self.jobs),
            [None if new.minute is None else FAR + timedelta(minutes=new.minute) for new in self.jobs],
        )
        self.job_ids[:] = await enqueue_jobs(conn, store, jobs, always_notify=False)
        return len(self.job_ids)


@attrs.frozen
class ComeDue:
    """Time passes: deferred jobs up to a minute are due."""

    minute: int

    def plan(self, state: State, others: Locks) -> Plan:
        until = FAR + timedelta(minutes=self.minute)
        due = {
            job.id: job.run_at for job in state.in_table("deferred") if job.run_at and NOT_YET <= job.run_at <= until
        }

        def change(after: State) -> None:
            for job_id, run_at in due.items():
                after.jobs[job_id].run_at = run_at - LONG

        return Plan(len(due), change, Locks(jobs=frozenset(due)))

    async def run(self, conn: Connection, store: Store) -> int:
        query = "update {schema}.deferred set run_at = run_at - %s where run_at between %s and %s returning 1"
        return len(await rows(conn, store, query, LONG, NOT_YET, FAR + timedelta(minutes=self.minute)))


@attrs.frozen
class Promote:
    limit: int

    def plan(self, state: State, others: Locks) -> Plan:
        due = [job for job in state.in_table("deferred") if job.run_at is not None and job.run_at < NOT_YET]
        due.sort(key=lambda job: (job.run_at, job.id))
        moved = ids([job for job in due if job.id not in others.jobs][: self.limit])
        names = {state.jobs[job_id].name for job_id in moved}

        def change(after: State) -> None:
            after.to_queued((after.jobs[job_id] for job_id in moved), keep_place=False)

        return Plan((len(moved), names), change, Locks(jobs=frozenset(moved)))

    async def run(self, conn: Connection, store: Store) -> tuple[int, set[str]]:
        promotion = await promote_due(conn, store, limit=self.limit)
        return promotion.moved, set(promotion.entrypoints)


@attrs.frozen
class Cancel:
    """By id, or with a ``name`` all that have not ended; the answer are the ids that were affected."""

    job_ids: tuple[int, ...]
    reason: str | None
    name: str | None = None

    def plan(self, state: State, others: Locks) -> Plan:
        wanted = self.job_ids
        if self.name is not None:
            wanted = tuple(job.id for job in state.jobs.values() if job.name == self.name)
        seen = [state.jobs[job_id] for job_id in dict.fromkeys(wanted) if job_id in state.jobs]
        affected = [job for job in seen if job.table != "finished" and not job.cancel_requested]
        locked = frozenset(job.id for job in seen if job.table != "finished")
        answer = ids(affected) if self.name is None else sorted(ids(affected))
        return Plan(answer, self._change(answer), Locks(jobs=locked))

    def _change(self, affected: Sequence[int]) -> Callable[[State], None]:
        def change(state: State) -> None:
            for job_id in affected:
                job = state.jobs[job_id]
                if job.table == "running":
                    job.cancel_requested, job.reason = True, self.reason
                else:
                    state.to_finished(job, "cancelled", reason=self.reason)

        return change

    async def run(self, conn: Connection, store: Store) -> list[int]:
        if self.name is None:
            steps = cancel_jobs(store, conn, [JobId(job_id) for job_id in self.job_ids], self.reason)
        else:
            wanted = UnfinishedFilter(states=UNFINISHED, entrypoint=self.name, older_than=None, created_before=None)
            steps = cancel_matching(store, conn, wanted, self.reason)
        return [int(job_id) for job_id in await run_steps(conn, steps)]


@attrs.frozen
class Requeue:
    """The answer are the ids that came back."""

    job_ids: tuple[int, ...]

    def plan(self, state: State, others: Locks) -> Plan:
        seen = [state.jobs[job_id] for job_id in dict.fromkeys(self.job_ids) if job_id in state.jobs]
        back = ids(job for job in seen if job.table == "finished" and job.status != "successful")

        def change(after: State) -> None:
            jobs = [after.jobs[job_id] for job_id in sorted(back)]
            for job in jobs:
                job.errors += job.error_type is not None
                job.attempt, job.crashes, job.status, job.error_type, job.reason = 1, 0, None, None, None
            after.to_queued(jobs, keep_place=False)

        return Plan(back, change, Locks(jobs=frozenset(back)))

    async def run(self, conn: Connection, store: Store) -> list[int]:
        steps = requeue_jobs(store, [JobId(job_id) for job_id in self.job_ids])
        return [int(job_id) for job_id in await run_steps(conn, steps)]

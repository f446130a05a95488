"""The life cycle of jobs as a state machine: two workers, producers and operators, in any interleaving.

Every statement of the store is given a state of the tables, and has to answer and to leave them as the model says. It
may be the only one; it may be lost before the commit, or its answer after it; and it may run while another one has not
committed yet, which is then committed or rolled back. Whether the second then waits for the first is the database's
business: if it does, its answer must be that of the state after the first; if not, that of the state before, with the
locked rows left out.

What holds after every step: each job is in one table and each row is a job that was enqueued; every column is as the
model has it; times of creation never change; new places are behind all others, in order; no limit is exceeded by a
claim, and the slots of a limited name list all its running jobs.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from datetime import datetime
from typing import Any

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from hypothesis.strategies import DataObject

from pgq_anyio._limits import Limits
from pgq_anyio._models import Held
from tests.model.job_moves import Claim, ClaimLimited, Finish
from tests.model.moves import Cancel, ComeDue, Enqueue, Move, NewJob, Promote, Requeue
from tests.model.state import NAMES, NO_LOCKS, State
from tests.model.worker_moves import Define, ReadLimits, Register, Rescue
from tests.model.workers import Learn, Worker
from tests.model.world import World, open_world
from tests.profiles import scaled

#: Numbers of workers and claims, which no run uses twice.
_numbers = itertools.count(1)

NEW_JOBS = st.builds(
    NewJob,
    name=st.sampled_from(NAMES),
    priority=st.sampled_from([0, 0, 0, 1, -1, 2**31 - 1, -(2**31)]),
    minute=st.sampled_from([None, None, None, 1, 2]),
)


class LifeCycle(RuleBasedStateMachine):
    """Two workers, and everybody else."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.clear()
        self.state = State()
        self.created: dict[int, datetime] = {}
        self.highest_seq = 0
        self.workers = [Worker(lambda: next(_numbers), max_crashes) for max_crashes in (1, 3)]
        for worker in self.workers:
            worker.new_term()
            self._do(Register(worker.id, worker.max_crashes))
        self._do(Enqueue(tuple(NewJob(name, priority, None) for priority in (0, 0, 1) for name in NAMES)))
        self._do(Define(self.workers[0].id, {"limited": Limits(2), "serial": Limits(1, serialized=True)}))
        for worker in self.workers:
            self._do(ReadLimits(worker.id))
            worker.know_limits(self.state.limits)

    # -- rules -----------------------------------------------------------------------------------------------------

    @rule(data=st.data(), fate=st.sampled_from(["answered"] * 6 + ["answer lost", "rolled back"]))
    def act(self, data: DataObject, fate: str) -> None:
        """One statement alone."""
        move, learn = self._draw(data)
        note(f"{move} {fate}")
        plan = move.plan(self.state, NO_LOCKS)
        answer = self.world.act(move, roll_back=fate == "rolled back")
        assert plan.answer == answer
        if fate != "rolled back":
            plan.change(self.state)
        self._learn(move, learn, answer, is_heard=fate == "answered")

    @rule(data=st.data(), commit=st.sampled_from([True, True, False]))
    def race(self, data: DataObject, commit: bool) -> None:
        """A statement while another one has not committed."""
        first, learn_first = self._draw(data)
        second, learn_second = self._draw(data)
        note(f"{first} {'committed' if commit else 'rolled back'} after {second}")
        raced = self.world.race(first, second, commit=commit)
        plan = first.plan(self.state, NO_LOCKS)
        assert plan.answer == raced.first
        before = copy.deepcopy(self.state)
        if commit:
            plan.change(self.state)
        if raced.waited:
            plan = second.plan(self.state, NO_LOCKS)
        else:
            plan = second.plan(before, plan.locks)
        assert plan.answer == raced.second, "it waited" if raced.waited else "it did not wait"
        plan.change(self.state)
        self._learn(first, learn_first, raced.first, is_heard=commit)
        self._learn(second, learn_second, raced.second, is_heard=True)

    def _draw(self, data: DataObject) -> tuple[Move, Learn]:
        def nothing(_: Any) -> None:
            pass

        who = data.draw(st.sampled_from(["worker 0", "worker 1"] * 4 + ["producer", "operator", "operator", "clock"]))
        if who.startswith("worker"):
            return self.workers[int(who[-1])].draw(data, self.state)
        if who == "producer":
            return Enqueue(tuple(data.draw(st.lists(NEW_JOBS, min_size=1, max_size=5)))), nothing
        if who == "clock":
            moves: list[Move] = [ComeDue(1), ComeDue(2), Promote(1), Promote(100)]
            return data.draw(st.sampled_from(moves)), nothing
        chosen = tuple(data.draw(st.lists(st.sampled_from([*sorted(self.state.jobs), 2**62]), min_size=1, max_size=5)))
        kind = data.draw(st.sampled_from(["cancel", "cancel", "cancel name", "requeue", "requeue"]))
        if kind == "requeue":
            return Requeue(chosen), nothing
        reason = data.draw(st.sampled_from([None, "enough"]))
        if kind == "cancel":
            return Cancel(chosen, reason), nothing
        return Cancel((), reason, data.draw(st.sampled_from(NAMES))), nothing

    def _learn(self, move: Move, learn: Learn, answer: Any, *, is_heard: bool) -> None:
        if is_heard:
            learn(answer)
            return
        # What a claim may have taken is remembered by its number; everything else is simply done again.
        for worker in self.workers:
            if getattr(move, "worker_id", None) == worker.id and hasattr(move, "claim_no"):
                worker.lost.append(move.claim_no)

    # -- what holds after every step -------------------------------------------------------------------------------

    @invariant()
    def the_tables_are_as_the_model_has_them(self) -> None:
        found = self.world.read_jobs()
        twice = [job_id for job_id, number in Counter(row[0] for row in found).items() if number > 1]
        assert not twice, f"jobs in two places: {twice}"
        self._adopt({row[0]: row[2] for row in found})
        expected = {(job.id, job.row) for job in self.state.jobs.values()}
        actual = {(job_id, row) for job_id, _, row in found}
        assert expected == actual, f"expected {expected - actual}, found {actual - expected}"
        for job_id, created_at, _ in found:
            assert created_at == self.created.setdefault(job_id, created_at)
        assert self.state.workers == self.world.read_workers()

    def _adopt(self, found: dict[int, tuple[Any, ...]]) -> None:
        """Take over where new places are, and when postponed jobs are due: only their order is known before."""
        for job_id in self.state.placed:
            job, row = self.state.jobs[job_id], found.get(job_id)
            if job.table == "queued" and job.seq is None and row is not None:
                job.seq = row[7]
                assert job.seq is not None
                assert self.highest_seq < job.seq, "a new place is behind all others"
                self.highest_seq = job.seq
        self.state.placed.clear()
        for job in self.state.in_table("deferred"):
            if job.run_at is None and job.id in found:
                job.run_at = found[job.id][6]

    @invariant()
    def limits_hold(self) -> None:
        limits = self.world.read_limits()
        assert self.state.limits == {name: row.limits for name, row in limits.items()}
        for name, row in limits.items():
            running = {job.id for job in self.state.running(name=name)}
            if row.limits.concurrency_limit and row.counted:
                assert running <= set(row.slots), f"{name} has running jobs that no slot stands for"

    # -- the end ---------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Whatever has happened: one worker that goes on ends every job, and none is left anywhere."""
        worker_id = next(_numbers)
        judged = tuple((other, worker.beat) for other, worker in self.state.workers.items())
        for move in (Register(worker_id, 10), ReadLimits(worker_id), Rescue(judged), ComeDue(2), Promote(1000)):
            self._do(move)
        limited = {name: None for name in NAMES if self.state.limits_of(name).is_limited}
        unlimited = tuple(name for name in NAMES if name not in limited)
        taken = True
        while taken:
            claims = (
                Claim(worker_id, next(_numbers), unlimited, None, 100, 100),
                ClaimLimited(worker_id, next(_numbers), limited, 100, 1),
            )
            held = []
            for claim in claims:
                self._do(claim)
                held += [Held(job, worker_id, claim.claim_no) for job, _ in claim.claimed]
            self._do(Finish(tuple(held)))
            taken = bool(held)
        assert [] == [job for job in self.state.jobs.values() if job.table != "finished"]
        assert len(self.state.jobs) == len(self.created)

    def _do(self, move: Move) -> None:
        plan = move.plan(self.state, NO_LOCKS)
        assert plan.answer == self.world.act(move)
        plan.change(self.state)
        self.the_tables_are_as_the_model_has_them()


@pytest.mark.timeout(0)
@pytest.mark.promise(5, 14, 18, 20, 24, 25, 46)
def test_any_interleaving_of_two_workers(anyio_backend: str, dsn: str, schema: str) -> None:
    """No statement does anything else than the model, whatever other statements are under way."""
    with open_world(anyio_backend, dsn, schema) as opened:

        class Machine(LifeCycle):
            world = opened

        run_state_machine_as_test(Machine, settings=scaled(20, stateful_step_count=40))

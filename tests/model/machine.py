"""What state machines of the store have in common: one statement alone, or two at once, beside a model of the tables.

Every statement is given a state of the tables, and has to answer and to leave them as the model says. It may be the
only one; it may be lost before the commit, or its answer after it; and it may run while another one has not committed
yet, which is then committed or rolled back. Whether the second then waits for the first is the database's business: if
it does, its answer must be that of the state after the first; if not, that of the state before, with the locked rows
left out.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import Counter
from datetime import datetime
from typing import Any

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from hypothesis.strategies import DataObject

from tests.model.moves import Move
from tests.model.state import NO_LOCKS, Plan, State
from tests.model.workers import Learn
from tests.model.world import World


class Machine(RuleBasedStateMachine):
    """A model beside the tables of one schema."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.clear()
        self.state = State()
        self.created: dict[int, datetime] = {}
        self.highest_seq = 0

    @abstractmethod
    def draw(self, data: DataObject) -> tuple[Move, Learn]:
        """Something that anybody may do now, and what they make of the answer if they hear one."""

    @abstractmethod
    def lost_answer(self, move: Move) -> None:
        """Nobody hears what became of a move."""

    # -- rules -----------------------------------------------------------------------------------------------------

    @rule(data=st.data(), fate=st.sampled_from(["answered"] * 6 + ["answer lost", "rolled back"]))
    def act(self, data: DataObject, fate: str) -> None:
        """One statement alone."""
        move, learn = self.draw(data)
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
        first, learn_first = self.draw(data)
        second, learn_second = self.draw(data)
        note(f"{first} {'committed' if commit else 'rolled back'} after {second}")
        raced = self.world.race(first, second, commit=commit)
        plan = first.plan(self.state, NO_LOCKS)
        assert plan.answer == raced.first
        before = copy.deepcopy(self.state)
        if commit:
            plan.change(self.state)
        if raced.waited:
            plan = self._plan_after(second, before)
        else:
            plan = second.plan(before, plan.locks)
        assert plan.answer == raced.second, "it waited" if raced.waited else "it did not wait"
        plan.change(self.state)
        self._learn(first, learn_first, raced.first, is_heard=commit)
        self._learn(second, learn_second, raced.second, is_heard=True)

    def _plan_after(self, second: Move, before: State) -> Plan:
        """What a statement has to do that has waited: it was begun in a state before the present one."""
        plan_waited = getattr(second, "plan_waited", None)
        plan: Plan = second.plan(self.state, NO_LOCKS) if plan_waited is None else plan_waited(before, self.state)
        return plan

    def _learn(self, move: Move, learn: Learn, answer: Any, *, is_heard: bool) -> None:
        if is_heard:
            learn(answer)
        else:
            self.lost_answer(move)

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
        schedules = {(row[0], row[1]): row for row in self.world.read_schedules()}
        for key, schedule in self.state.schedules.rows.items():
            schedule.adopt(schedules[key])
        assert {key: one.row for key, one in self.state.schedules.rows.items()} == schedules

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

    def do(self, move: Move) -> None:
        plan = move.plan(self.state, NO_LOCKS)
        assert plan.answer == self.world.act(move)
        plan.change(self.state)
        self.the_tables_are_as_the_model_has_them()

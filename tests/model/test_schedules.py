"""Schedules as a state machine: two workers and an operator, in any interleaving.

What holds after every step, beside that the rows are as the model has them: a schedule has one holder at most, and a
claim of that; no occurrence is taken twice, unless its run was given back in between; one that is paused is passed
over, unless an operator asks for it; and as many runs have ended, or go on, as were begun.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, run_state_machine_as_test
from hypothesis.strategies import DataObject

from pgq_anyio._lifecycle import SUCCEEDED
from pgq_anyio._timetable import HeldSchedule, Wanted
from tests.model.machine import Machine
from tests.model.moves import Move
from tests.model.schedule_moves import Fire, Operate, ReadSchedules, RegisterSchedules, Release
from tests.model.schedule_workers import A_MOMENT, KEYS, ScheduleWorker
from tests.model.worker_moves import Register, Rescue
from tests.model.workers import Learn
from tests.model.world import open_world
from tests.profiles import scaled

pytestmark = pytest.mark.heavy

#: Numbers of workers and claims, which no run uses twice.
_numbers = itertools.count(1)


class ScheduleLife(Machine):
    """Two workers, and an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.workers = [ScheduleWorker(lambda: next(_numbers)) for _ in range(2)]
        self.do(RegisterSchedules(KEYS))
        for worker in self.workers:
            worker.new_term()
            self.do(Register(worker.id, 5))
            worker.is_registered = True

    def draw(self, data: DataObject) -> tuple[Move, Learn]:
        who = data.draw(st.sampled_from(["worker 0", "worker 1"] * 3 + ["operator"]))
        if who.startswith("worker"):
            return self.workers[int(who[-1])].draw(data, self.state)
        name, expression = data.draw(st.sampled_from(KEYS))
        acts = ["pause", "pause", "resume", "resume", "run", "run", "remove", "force"]
        move = Operate(data.draw(st.sampled_from(acts)), name, data.draw(st.sampled_from([expression, None])))
        return move, lambda _: None

    def lost_answer(self, move: Move) -> None:
        """What a worker may have taken it finds when it reads the rows."""

    @invariant()
    def no_occurrence_is_taken_twice(self) -> None:
        schedules = self.state.schedules
        twice = {one: number for one, number in schedules.taken.items() if number > 1 + schedules.given_back[one]}
        assert not twice

    @invariant()
    def counts_add_up(self) -> None:
        schedules = self.state.schedules
        assert schedules.taken.total() == schedules.ended.total() + schedules.running()

    def teardown(self) -> None:
        """Whatever has happened: one worker that goes on can run every schedule, and none stays with anybody."""
        worker_id, claim_no = next(_numbers), next(_numbers)
        judged = tuple((other, worker.beat) for other, worker in self.state.workers.items())
        for move in (Register(worker_id, 5), Rescue(judged), RegisterSchedules(KEYS)):
            self.do(move)
        assert 0 == self.state.schedules.running()
        for name in ("daily", "other"):
            self.do(Operate("resume", name, None))
        look = ReadSchedules(KEYS)
        self.do(look)
        wanted = [Wanted(one, one.given_back_due_at or one.last_due_at + A_MOMENT) for one in look.states]
        self.do(Fire(worker_id, claim_no, tuple(wanted)))
        assert len(KEYS) == self.state.schedules.running()
        self.do(Release(tuple((HeldSchedule(*key, worker_id, claim_no), SUCCEEDED) for key in KEYS)))
        assert 0 == self.state.schedules.running()
        self.no_occurrence_is_taken_twice()
        self.counts_add_up()


@pytest.mark.timeout(0)
@pytest.mark.promise(42, 43, 44)
def test_any_interleaving_of_two_workers_and_an_operator(anyio_backend: str, dsn: str, schema: str) -> None:
    """No statement does anything else than the model, whatever other statements are under way."""
    with open_world(anyio_backend, dsn, schema) as opened:

        class Opened(ScheduleLife):
            world = opened

        run_state_machine_as_test(Opened, settings=scaled(12, stateful_step_count=40))

"""The life cycle of jobs as a state machine: two workers, producers and operators, in any interleaving.

What holds after every step: each job is in one table and each row is a job that was enqueued; every column is as the
model has it; times of creation never change; new places are behind all others, in order; no limit is exceeded by a
claim, and the slots of a limited name list all its running jobs.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from hypothesis.strategies import DataObject

from pgq_anyio._limits import Limits
from pgq_anyio._models import Held
from tests.model.job_moves import Claim, ClaimLimited, Finish
from tests.model.machine import Machine
from tests.model.moves import Cancel, ComeDue, Enqueue, Move, NewJob, Promote, Requeue
from tests.model.state import NAMES
from tests.model.worker_moves import Define, ReadLimits, Register, Rescue, known_limits
from tests.model.workers import Learn, Worker
from tests.model.world import open_world
from tests.profiles import scaled

pytestmark = pytest.mark.heavy

#: Numbers of workers and claims, which no run uses twice.
_numbers = itertools.count(1)

NEW_JOBS = st.builds(
    NewJob,
    name=st.sampled_from(NAMES),
    priority=st.sampled_from([0, 0, 0, 1, -1, 2**31 - 1, -(2**31)]),
    minute=st.sampled_from([None, None, None, 1, 2]),
)


class LifeCycle(Machine):
    """Two workers, and everybody else."""

    def __init__(self) -> None:
        super().__init__()
        self.workers = [Worker(lambda: next(_numbers), max_crashes) for max_crashes in (1, 3)]
        for worker in self.workers:
            worker.new_term()
            self.do(Register(worker.id, worker.max_crashes))
        self.do(Enqueue(tuple(NewJob(name, priority, None) for priority in (0, 0, 1) for name in NAMES)))
        self.do(Define(self.workers[0].id, {"limited": Limits(2), "serial": Limits(1, serialized=True)}))
        for worker in self.workers:
            self.do(ReadLimits(worker.id))
            worker.know_limits(known_limits(self.state, worker.id))

    def draw(self, data: DataObject) -> tuple[Move, Learn]:
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

    def lost_answer(self, move: Move) -> None:
        # What a claim may have taken is remembered by its number; everything else is simply done again.
        for worker in self.workers:
            if getattr(move, "worker_id", None) == worker.id and hasattr(move, "claim_no"):
                worker.lost.append(move.claim_no)

    # -- the end ---------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Whatever has happened: one worker that goes on ends every job, and none is left anywhere."""
        worker_id = next(_numbers)
        judged = tuple((other, worker.beat) for other, worker in self.state.workers.items())
        for move in (Register(worker_id, 10), ReadLimits(worker_id), Rescue(judged), ComeDue(2), Promote(1000)):
            self.do(move)
        changes = self.state.workers[worker_id].limit_changes
        limited = {name: None for name in NAMES if self.state.limits_of(name).is_limited}
        unlimited = tuple(name for name in NAMES if name not in limited)
        taken = True
        while taken:
            claims = (
                Claim(worker_id, next(_numbers), unlimited, changes, None, 100, 100),
                ClaimLimited(worker_id, next(_numbers), limited, 100, 1),
            )
            held = []
            for claim in claims:
                self.do(claim)
                held += [Held(job, worker_id, claim.claim_no) for job, _ in claim.claimed]
            self.do(Finish(tuple(held)))
            taken = bool(held)
        assert [] == [job for job in self.state.jobs.values() if job.table != "finished"]
        assert len(self.state.jobs) == len(self.created)


@pytest.mark.timeout(0)
@pytest.mark.promise(5, 14, 18, 20, 24, 25, 46)
def test_any_interleaving_of_two_workers(anyio_backend: str, dsn: str, schema: str) -> None:
    """No statement does anything else than the model, whatever other statements are under way."""
    with open_world(anyio_backend, dsn, schema) as opened:

        class Opened(LifeCycle):
            world = opened

        run_state_machine_as_test(Opened, settings=scaled(20, stateful_step_count=40))

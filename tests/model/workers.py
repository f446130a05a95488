"""What a worker of the model knows: it may be wrong, late or forgotten, and the tables must bear that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from pgq_anyio._hints import Hints
from pgq_anyio._lifecycle import (
    CANCELLED,
    GIVEN_BACK,
    UNSTARTED_CANCELLED,
    UNSTARTED_GIVEN_BACK,
    Again,
    Cancelled,
    ErrorText,
    Failed,
    Outcome,
)
from pgq_anyio._limits import UNLIMITED, Limits
from pgq_anyio._models import Held, JobId
from tests.model.job_moves import Claim, ClaimLimited, Finish, Settle
from tests.model.moves import Move
from tests.model.state import NAMES, POSTPONED, State
from tests.model.worker_moves import (
    Beat,
    Define,
    GiveBack,
    Known,
    Leave,
    ListClaims,
    MarkLeft,
    ReadLimits,
    Register,
    Rescue,
)

ERROR = ErrorText("ValueError", "no", None)
OUTCOMES: st.SearchStrategy[Outcome] = st.sampled_from(
    [
        Failed(ERROR),
        CANCELLED,
        Cancelled("by its handler"),
        UNSTARTED_CANCELLED,
        GIVEN_BACK,
        UNSTARTED_GIVEN_BACK,
        Again(0.0, counted=True, error=ERROR),
        Again(POSTPONED, counted=True, error=ERROR),
        Again(0.0, counted=False, error=None),
        Again(POSTPONED, counted=False, error=None),
    ]
)
LIMITS = st.fixed_dictionaries(
    {
        "limited": st.sampled_from([Limits(1), Limits(2), Limits(3)]),
        "serial": st.just(Limits(1, serialized=True)),
        # A name that has a limit only now and then.
        "other": st.sampled_from([UNLIMITED, UNLIMITED, Limits(1)]),
    }
)

#: The more often one stands here, the more often it is done.
MOVES = (*("claim", "claim_limited") * 3, "beat", "rescue", "rescue", "reconcile", "define", "read_limits", "go")
WITH_JOBS = (*("settle", "settle", "finish") * 3, *MOVES)

Learn = Callable[[Any], None]


def _nothing(_: Any) -> None:
    pass


@attrs.define(eq=False)
class Worker:
    """One worker process, term after term."""

    #: gives numbers that were never used
    fresh: Callable[[], int]
    max_crashes: int
    id: int = 0
    #: the limits as it last read them, or ``None`` before it has claimed anything
    limits: dict[str, Limits] | None = None
    #: of how many changes they are the outcome
    changes: int = 0
    #: what it believes to hold
    held: list[Held] = attrs.field(factory=list)
    #: what it held once: outcomes may be sent again, and late
    past: list[Held] = attrs.field(factory=list)
    #: numbers of claims whose answer was lost
    lost: list[int] = attrs.field(factory=list)
    hints: Hints = attrs.field(factory=lambda: Hints(NAMES))
    limited_hints: dict[str, Hints] = attrs.field(factory=dict)

    def new_term(self) -> None:
        """Become another worker, which knows nothing."""
        self.past += self.held
        self.id, self.limits, self.held, self.lost = self.fresh(), None, [], []
        self.hints, self.limited_hints = Hints(NAMES), {}

    def draw(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        """Something that this worker may do now, and what it makes of the answer if it hears one."""
        if not data.draw(st.integers(0, 19)):
            self.new_term()  # the process was killed, and another one takes its place
        if self.limits is None:
            return (self._define if self.id in state.workers else self._register)(data, state)
        late = [held for held in self.past if self._runs_again(held, state)]
        if late and not data.draw(st.integers(0, 2)):
            held = data.draw(st.sampled_from(late))
            return (Finish((held,)) if data.draw(st.booleans()) else Settle(((held, data.draw(OUTCOMES)),))), _nothing
        return getattr(self, f"_{data.draw(st.sampled_from(WITH_JOBS if self.held else MOVES))}")(data, state)  # type: ignore[no-any-return]

    # -- its row ---------------------------------------------------------------------------------------------------

    def _register(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        return Register(self.id, self.max_crashes), _nothing

    def _define(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        return Define(self.id, data.draw(LIMITS)), self.know_limits

    def _read_limits(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        return ReadLimits(self.id), self.know_limits

    def know_limits(self, known: Known) -> None:
        """Take in what the database says that the limits are."""
        self.limits, self.changes = known
        self.hints = Hints(tuple(name for name in NAMES if not self._is_limited(name)))

    def _is_limited(self, name: str) -> bool:
        return (self.limits or {}).get(name, UNLIMITED).is_limited

    def _beat(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        return Beat(self.id, tuple(self.lost)), self._heard

    def _heard(self, answer: Any) -> None:
        if answer is None:
            self.new_term()

    def _rescue(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        """Judge others by a beat that is still theirs, or by an old one."""
        others = [worker_id for worker_id in state.workers if worker_id != self.id]
        judged = data.draw(st.lists(st.sampled_from(others), unique=True)) if others else []
        age = data.draw(st.sampled_from([0, 0, 0, 1]))
        return Rescue(tuple((worker_id, state.workers[worker_id].beat - age) for worker_id in judged)), _nothing

    def _go(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        move: Move = Leave(self.id) if data.draw(st.booleans()) else MarkLeft(self.id)
        return move, lambda _: self.new_term()

    def _reconcile(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        """Look what the database believes that this worker holds, or give back what it does not know of."""
        known = {(held.job.id, held.claim_no) for held in self.held}
        strays = [(job.id, job.claim_no or 0) for job in state.running(worker_id=self.id)]
        unknown: list[tuple[JobId | None, int]] = [(None, number) for number in self.lost]
        unknown += [(JobId(job_id), number) for job_id, number in strays if (job_id, number) not in known]
        if not unknown or data.draw(st.booleans()):
            return ListClaims(self.id), self._compare
        return GiveBack(self.id, tuple(unknown)), lambda _: self.lost.clear()

    def _compare(self, answer: set[tuple[int, int]]) -> None:
        gone = [held for held in self.held if (held.job.id, held.claim_no) not in answer]
        self.past += gone
        self.held = [held for held in self.held if held not in gone]

    # -- jobs ------------------------------------------------------------------------------------------------------

    def _claim(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        if not self.hints.entrypoints:
            return self._claim_limited(data, state)
        lanes = self.hints.lanes(data.draw(st.sampled_from([0.0, 0.0, 1.0])))
        limit, reach = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
        claim = Claim(self.id, self.fresh(), self.hints.entrypoints, self.changes, lanes, limit, limit * reach)

        def learn(_: Any) -> None:
            self.hints.learn(claim.claimed)
            if lanes is None:
                self.hints.swept(0.0, 0.0)
            self._take(claim)

        return claim, learn

    def _claim_limited(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        limited = [name for name in NAMES if self._is_limited(name)]
        names = data.draw(st.lists(st.sampled_from(limited), min_size=1, unique=True)) if limited else []
        now = data.draw(st.sampled_from([0.0, 0.0, 1.0]))
        known = {name: self.limited_hints.setdefault(name, Hints((name,))) for name in names}
        limits = self.limits or {}
        hinted = {name: None if limits[name].serialized else hints.lanes(now) for name, hints in known.items()}
        limit, reach = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
        claim = ClaimLimited(self.id, self.fresh(), hinted, limit, reach)

        def learn(_: Any) -> None:
            for name, lanes in hinted.items():
                known[name].learn([one for one in claim.claimed if one[0].entrypoint == name])
                if lanes is None:
                    known[name].swept(0.0, 0.0)
            self._take(claim)

        return claim, learn

    def _take(self, claim: Claim | ClaimLimited) -> None:
        held = [Held(job, claim.worker_id, claim.claim_no) for job, _ in claim.claimed]
        if claim.worker_id == self.id:
            self.held += held
        else:
            self.past += held  # the lease was lost meanwhile

    @staticmethod
    def _runs_again(held: Held, state: State) -> bool:
        """Whether the same worker has claimed the job once more: only the number of the claim tells the two apart."""
        job = state.jobs[held.job.id]
        return job.table == "running" and job.worker_id == held.worker_id and job.claim_no != held.claim_no

    def _some_held(self, data: DataObject) -> list[Held]:
        """What it believes to hold, and at times what it held once."""
        chosen = data.draw(st.lists(st.sampled_from(self.held), unique_by=id, min_size=1, max_size=4))
        if self.past and data.draw(st.integers(0, 3)) == 0:
            chosen.append(data.draw(st.sampled_from(self.past)))
        return list({held.job.id: held for held in chosen}.values())

    def _finish(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        held = self._some_held(data)
        return Finish(tuple(held)), lambda _: self._forget(held)

    def _settle(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        held = self._some_held(data)
        return Settle(tuple((one, data.draw(OUTCOMES)) for one in held)), lambda _: self._forget(held)

    def _forget(self, settled: list[Held]) -> None:
        self.past += settled
        self.held = [held for held in self.held if held not in settled]

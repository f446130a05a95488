"""What a worker of the model knows of schedules: it may be wrong, late or forgotten, and the rows must bear that."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from pgq_anyio._lifecycle import CANCELLED, GIVEN_BACK, SUCCEEDED, Cancelled, Failed, Outcome
from pgq_anyio._timetable import HeldSchedule, ScheduleKey, ScheduleState, Wanted
from tests.model.moves import Move
from tests.model.schedule_moves import (
    TOO_EARLY,
    Fire,
    ReadSchedules,
    RegisterSchedules,
    Release,
    ServeSchedules,
)
from tests.model.state import State
from tests.model.worker_moves import Beat, Leave, MarkLeft, Register, Rescue
from tests.model.workers import ERROR, Learn

#: Two expressions under one name, and another name.
KEYS: Final[tuple[ScheduleKey, ...]] = (("daily", "0 0 * * *"), ("daily", "0 12 * * *"), ("other", "@hourly"))
#: From one occurrence to the next. The last one was never long ago.
A_MOMENT: Final = timedelta(microseconds=1)
OUTCOMES: st.SearchStrategy[Outcome] = st.sampled_from(
    [SUCCEEDED, SUCCEEDED, GIVEN_BACK, GIVEN_BACK, Failed(ERROR), CANCELLED, Cancelled("enough")]
)
MOVES: Final = ("read", "read", "fire", "fire", "fire", "fire", "register", "serve", "beat", "rescue", "rescue", "go")


def _nothing(_: Any) -> None:
    pass


@attrs.define(eq=False)
class ScheduleWorker:
    """One worker."""

    fresh: Callable[[], int]
    id: int = 0
    is_registered: bool = False
    #: what it believes that the rows say
    known: dict[ScheduleKey, ScheduleState] = attrs.field(factory=dict)
    #: what it runs, and what it ran once or has taken without hearing of it
    held: list[HeldSchedule] = attrs.field(factory=list)
    past: list[HeldSchedule] = attrs.field(factory=list)
    unknown: list[HeldSchedule] = attrs.field(factory=list)

    def new_term(self) -> None:
        """Become another worker, which knows nothing."""
        self.past += self.held
        self.id, self.is_registered, self.known, self.held, self.unknown = self.fresh(), False, {}, [], []

    def draw(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        """Something that this worker may do now, and what it makes of the answer if it hears one."""
        if not data.draw(st.integers(0, 19)):
            self.new_term()  # the process was killed, and another one takes its place
        if not self.is_registered:
            return Register(self.id, 5), self._registered
        gives_back = data.draw(st.booleans())
        if self.unknown and gives_back:
            back: tuple[tuple[HeldSchedule, Outcome], ...] = tuple((held, GIVEN_BACK) for held in self.unknown)
            return Release(back), lambda _: self.unknown.clear()
        moves = (*MOVES, *["release"] * 5) if self.held or self.past else MOVES
        return getattr(self, f"_{data.draw(st.sampled_from(moves))}")(data, state)  # type: ignore[no-any-return]

    def _registered(self, _: Any) -> None:
        self.is_registered = True

    # -- its row ---------------------------------------------------------------------------------------------------

    def _serve(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        return ServeSchedules(self.id, _some(data, KEYS)), _nothing

    def _beat(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        return Beat(self.id, ()), lambda answer: self.new_term() if answer is None else None

    def _rescue(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        """Judge others by a beat that is still theirs, or by an old one."""
        others = [worker_id for worker_id in state.workers if worker_id != self.id]
        judged = data.draw(st.lists(st.sampled_from(others), unique=True)) if others else []
        age = data.draw(st.sampled_from([0, 0, 0, 1]))
        return Rescue(tuple((worker_id, state.workers[worker_id].beat - age) for worker_id in judged)), _nothing

    def _go(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        move: Move = Leave(self.id) if data.draw(st.booleans()) else MarkLeft(self.id)
        return move, lambda _: self.new_term()

    # -- schedules -------------------------------------------------------------------------------------------------

    def _register(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        return RegisterSchedules(_some(data, KEYS)), _nothing

    def _read(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        move = ReadSchedules(KEYS)
        return move, lambda _: self._know(move.states)

    def _know(self, states: list[ScheduleState]) -> None:
        self.known.update({one.key: one for one in states})
        mine = {(held.key, held.claim_no) for held in self.held}
        self.unknown = [
            HeldSchedule(one.name, one.expression, self.id, one.claim_no)
            for one in states
            if one.worker_id == self.id and one.claim_no is not None and (one.key, one.claim_no) not in mine
        ]

    def _fire(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        if not self.known:
            return self._read(data, state)
        worker_id, claim_no = self.id, self.fresh()
        wanted = tuple(Wanted(self.known[key], self._next(data, key)) for key in _some(data, sorted(self.known)))
        move = Fire(worker_id, claim_no, wanted)

        def learn(answer: Any) -> None:
            taken = [HeldSchedule(name, expression, worker_id, claim_no) for name, expression in answer[0]]
            if worker_id != self.id:
                self.past += taken  # the lease was lost meanwhile
                return
            self.held += taken
            self._know(move.states)

        return move, learn

    def _next(self, data: DataObject, key: ScheduleKey) -> datetime:
        """Which occurrence it takes to be the next one."""
        known = self.known[key]
        if known.given_back_due_at is not None:
            return known.given_back_due_at
        return data.draw(
            st.sampled_from([known.last_due_at + A_MOMENT] * 6 + [known.last_due_at + 2 * A_MOMENT, TOO_EARLY])
        )

    def _release(self, data: DataObject, state: State) -> tuple[Move, Learn]:
        """The end of what it believes to run, and at times of what it ran once."""
        chosen = _some(data, self.held) if self.held else ()
        if self.past and (not chosen or not data.draw(st.integers(0, 3))):
            chosen += (data.draw(st.sampled_from(self.past)),)
        ended = tuple({held.key: held for held in chosen}.values())

        def learn(_: Any) -> None:
            self.past += [held for held in ended if held in self.held]
            self.held = [held for held in self.held if held not in ended]

        return Release(tuple((held, data.draw(OUTCOMES)) for held in ended)), learn


def _some(data: DataObject, choice: Any) -> Any:
    """At least one of them, in their order."""
    chosen = data.draw(st.sets(st.integers(0, len(choice) - 1), min_size=1))
    return tuple(choice[index] for index in sorted(chosen))

"""What workers and operators do to schedules: each move is a statement of the store, and what the model says of it.

A statement that has waited for another one was begun before that one was committed: it looks only at rows that it saw
then, and takes them as they are now. What it reads of workers is as it was then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import attrs

from pgq_anyio._db import Connection
from pgq_anyio._lifecycle import Failed, GivenBack, Outcome, Succeeded
from pgq_anyio._store._sql import Store
from pgq_anyio._store._steps import run_steps
from pgq_anyio._store.operating import remove_schedules, run_schedules, set_paused
from pgq_anyio._store.schedule import (
    fire_schedules,
    read_schedules,
    register_schedules,
    release_schedules,
    serve_schedules,
)
from pgq_anyio._timetable import HeldSchedule, ScheduleKey, ScheduleState, Wanted
from tests.model.schedule_state import NOW, ModelSchedule
from tests.model.state import Locks, Plan, State

#: An occurrence that has not come yet.
TOO_EARLY: Final = datetime(2100, 1, 1, tzinfo=UTC)


class Waiting:
    """A move that may have waited."""

    def plan(self, state: State, others: Locks) -> Plan:
        return self.plan_waited(state, state)

    def plan_waited(self, before: State, after: State) -> Plan:
        raise NotImplementedError


@attrs.frozen
class RegisterSchedules:
    """The answer is how many are new. What others have registered meanwhile is known, whenever this began."""

    keys: tuple[ScheduleKey, ...]

    def plan(self, state: State, others: Locks) -> Plan:
        new = [key for key in self.keys if key not in state.schedules.rows]

        def change(after: State) -> None:
            after.schedules.rows.update({key: ModelSchedule(*key) for key in new})

        return Plan(len(new), change)

    async def run(self, conn: Connection, store: Store) -> int:
        return await register_schedules(conn, store, [(*key, "UTC") for key in sorted(self.keys)])


@attrs.frozen
class ServeSchedules:
    worker_id: int
    keys: tuple[ScheduleKey, ...]

    def plan(self, state: State, others: Locks) -> Plan:
        def change(after: State) -> None:
            if self.worker_id in after.workers:
                after.workers[self.worker_id].serves = frozenset(self.keys)

        return Plan(None, change, Locks(workers=frozenset([self.worker_id]) & frozenset(state.workers)))

    async def run(self, conn: Connection, store: Store) -> None:
        await serve_schedules(conn, store, self.keys, worker_id=self.worker_id)


@attrs.frozen
class ReadSchedules:
    """The answer is what the rows say."""

    keys: tuple[ScheduleKey, ...]
    states: list[ScheduleState] = attrs.field(factory=list, eq=False)

    def plan(self, state: State, others: Locks) -> Plan:
        rows = state.schedules.rows
        return Plan({key: rows[key].said for key in self.keys if key in rows})

    async def run(self, conn: Connection, store: Store) -> dict[ScheduleKey, tuple[Any, ...]]:
        self.states[:] = (await read_schedules(conn, store, self.keys)).states
        return {one.key: _said(one) for one in self.states}


def _said(state: ScheduleState) -> tuple[Any, ...]:
    return state.worker_id, state.claim_no, state.paused, state.asked_for


@attrs.frozen
class Fire(Waiting):
    """Take occurrences. The answer: which are ours, and what the rows say then."""

    worker_id: int
    claim_no: int
    wanted: tuple[Wanted, ...]
    states: list[ScheduleState] = attrs.field(factory=list, eq=False)

    def plan_waited(self, before: State, after: State) -> Plan:
        rows = {
            one.state.key: after.schedules.rows[one.state.key]
            for one in self.wanted
            if one.state.key in before.schedules.rows and one.state.key in after.schedules.rows
        }
        ours = {
            one.state.key: one.due_at
            for one in self.wanted
            if before.can_claim(self.worker_id)
            and one.state.key in rows
            and one.due_at < TOO_EARLY
            and _is_free(rows[one.state.key], one.state)
        }
        said = {
            key: (self.worker_id, self.claim_no, *row.said[2:]) if key in ours else row.said
            for key, row in rows.items()
        }

        def change(state: State) -> None:
            for key, due_at in ours.items():
                state.schedules.take(key, self.worker_id, self.claim_no, due_at)

        return Plan((sorted(ours), said), change)

    async def run(self, conn: Connection, store: Store) -> Any:
        taken = await fire_schedules(conn, store, self.wanted, worker_id=self.worker_id, claim_no=self.claim_no)
        self.states[:] = taken.states
        return sorted(taken.fired), {one.key: _said(one) for one in taken.states}


def _is_free(row: ModelSchedule, known: ScheduleState) -> bool:
    """Whether nobody runs it, no pause holds it back, and nobody has changed it since it was read."""
    held_back = row.paused and not (row.asked_for and row.given_back_due_at is not None)
    as_known = (row.last_due_at, row.given_back_due_at) == (known.last_due_at, known.given_back_due_at)
    return row.worker_id is None and not held_back and as_known


@attrs.frozen
class Release(Waiting):
    """The ends of runs; the answer are those that were still ours."""

    endings: tuple[tuple[HeldSchedule, Outcome], ...]

    def plan_waited(self, before: State, after: State) -> Plan:
        ours = [
            (held, outcome)
            for held, outcome in self.endings
            if before.schedules.is_held(held) and after.schedules.is_held(held)
        ]

        def change(state: State) -> None:
            for held, outcome in ours:
                state.schedules.end([held.key], *_ending(outcome))

        return Plan(sorted((held.name, held.expression, held.claim_no) for held, _ in ours), change)

    async def run(self, conn: Connection, store: Store) -> list[tuple[str, str, int]]:
        return sorted(await release_schedules(conn, store, self.endings))


def _ending(outcome: Outcome) -> tuple[str, str | None]:
    match outcome:
        case Succeeded():
            return "successful", None
        case GivenBack():
            return "given_back", None
        case Failed(error):
            return "failed", error.type
        case _:
            return "cancelled", None


@attrs.frozen
class Operate(Waiting):
    """What an operator does to the schedules of a name, or to one of them; the answer are those that it was done to."""

    #: ``pause``, ``resume``, ``run``, ``remove`` or ``force``
    act: str
    name: str
    expression: str | None

    def plan_waited(self, before: State, after: State) -> Plan:
        served = {key for worker in before.workers.values() if not worker.has_left for key in worker.serves}

        def is_chosen(one: ModelSchedule) -> bool:
            match self.act:
                case "pause" | "resume":
                    return one.paused != (self.act == "pause")
                case "remove":
                    return one.worker_id is None and one.key not in served
                case _:
                    return True

        seen, now = (
            {one.key for one in state.schedules.named(self.name, self.expression) if is_chosen(one)}
            for state in (before, after)
        )
        chosen = sorted(seen & now)
        return Plan(chosen, self._change(chosen))

    def _change(self, chosen: Sequence[ScheduleKey]) -> Callable[[State], None]:
        def change(state: State) -> None:
            for key in chosen:
                one = state.schedules.rows[key]
                match self.act:
                    case "pause":
                        one.paused, one.asked_for = True, False
                    case "resume":
                        one.paused, one.last_due_at = False, NOW
                    case "run":
                        one.asked_for = True
                        one.given_back_due_at = NOW if one.given_back_due_at is None else one.given_back_due_at
                    case _:
                        state.schedules.remove(key)

        return change

    async def run(self, conn: Connection, store: Store) -> list[ScheduleKey]:
        match self.act:
            case "pause" | "resume":
                steps = set_paused(store, self.name, self.expression, paused=self.act == "pause")
            case "run":
                steps = run_schedules(store, self.name, self.expression)
            case _:
                steps = remove_schedules(store, self.name, self.expression, force=self.act == "force")
        return await run_steps(conn, steps)

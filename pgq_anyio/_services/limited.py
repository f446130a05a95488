"""Brings in jobs of limited names: a claimer of their own, so that limits neither delay nor slow the other names.

One claim is for all names that may have something, in one round trip: it tries their locks, then counts and takes. What
a name has to wait for decides when it is asked for again:

- its lock is held by another worker: a moment;
- it is full: until a slot is free. Slots of our own jobs are known when their outcome is stored; other workers say so
  when they free a slot and do not take it themselves;
- its next token is not due: until it is;
- it has nothing queued: until a notification, as for other names (the row of the worker lists such names).

Its claims take jobs of the other names along, so that all start in one order (the *turn* of ``_holdings.py``).

Nothing depends on notifications: each name is looked at again after the poll interval. Names are found in memory of the
registered limits, but what they allow is read by each claim: the database's definition holds.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import anyio
import attrs
from anyio import CancelScope
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint_if_cancelled
from psycopg import OperationalError

from .._db import retrying
from .._db.line import Line
from .._db.retrying import PATIENCE
from .._doorbell import Doorbell
from .._hints import Hints
from .._holdings import Holdings
from .._limited_name import LimitedName
from .._limits import Limits
from .._models import Job
from .._store._sql import Store
from .._store.limiter import (
    NOWHERE,
    Definition,
    LimitedClaim,
    Scan,
    claim_limited,
    list_limits,
    list_writers,
    notify_slots,
    set_dozing,
)
from .._strict_hints import StrictHints

logger = logging.getLogger("pgq_anyio.limits")

#: How far a claim reaches beyond rows that others have locked.
MAX_REACH: Final = 8
#: Pause before a claim is tried again whose rows were all locked by others (in seconds, jittered).
CONTENDED_PAUSE: Final = 0.002
#: Without being empty for this long, nobody has to notify us for a name (in seconds).
AWAKE_AFTER: Final = 1.0
#: Pause between two notifications that slots are free which we cannot take (in seconds).
TELL_PAUSE: Final = 0.05


@attrs.define(eq=False, kw_only=True)
class LimitedClaimer:
    """What the claimer of limited names knows."""

    line: Line
    store: Store
    worker_id: int
    #: all names that this worker serves, with the limits that it registered
    registered: Mapping[str, Limits]
    holdings: Holdings
    #: opens the shielded scope of one claim
    shield: Callable[[], CancelScope]
    #: told whether a claim was answered in time
    on_answer: Callable[[bool], None]
    #: the hints of the other names, or ``None`` if there are none
    front: Callable[[], Hints | None]
    #: told that another server may answer now
    on_connection: Callable[[], None]
    #: starts the jobs of one claim; never waits
    start_jobs: Callable[[Sequence[Job], int], None]
    #: called when the definitions have been read: each name belongs to one of the two claimers
    on_names: Callable[[], None]
    #: called when nothing is to be done
    on_idle: Callable[[], None]
    #: whether the worker is to stop: true before the cancellation of this task arrives
    leaving: Callable[[], bool]
    #: rung when a slot of the worker becomes free
    room: Doorbell
    batch_size: int
    poll_interval: float
    names: dict[str, LimitedName] = attrs.field(factory=dict, init=False)
    #: the names for which enqueuers notify this worker, as its row says
    dozing: frozenset[str] = attrs.field(default=frozenset(), init=False)
    _bell: Doorbell = attrs.field(factory=Doorbell, init=False)
    #: whether the definitions have changed since they were read
    _outdated: bool = attrs.field(default=False, init=False)
    _definitions: dict[str, Definition] = attrs.field(factory=dict, init=False)
    reach: int = attrs.field(default=1, init=False)
    told_at: float = attrs.field(default=-math.inf, init=False)
    connection_no: int = attrs.field(default=0, init=False)
    #: whether the last claim was not answered: the next one is to block no more than one slot
    is_wary: bool = attrs.field(default=False, init=False)

    # -- news, all of it synchronous -------------------------------------------------------------------------------

    def define(self, definitions: Sequence[Definition]) -> None:
        """Take in what the database says that the limits are."""
        for one in definitions:
            known, ours = self._definitions.get(one.entrypoint), self.registered[one.entrypoint]
            if one.limits != ours and (known is None or known.limits != one.limits):
                logger.warning(
                    "the entrypoint %r was registered here with %s, but %s started later and registered it with %s; "
                    "the database keeps the last definition",
                    one.entrypoint,
                    ours,
                    one.defined_by,
                    one.limits,
                )
        self._definitions = {one.entrypoint: one for one in definitions}
        before = self.names
        self.names = {}
        for name, one in self._definitions.items():
            if not one.limits.is_limited:
                continue
            entry = self.names[name] = before.get(name) or LimitedName(name)
            if one.limits.serialized != isinstance(entry.hints, StrictHints):
                entry.hints = StrictHints(name) if one.limits.serialized else Hints((name,))
            entry.wake()
        self._outdated = False
        self.on_names()
        self._ring()

    def outdate(self) -> None:
        """The limits in the database have changed."""
        self._outdated = True
        self._bell.ring()
        self.room.ring()

    def wake(self, name: str | None, *, in_front: bool = False) -> None:
        """There may be something for a name (``None``: for any)."""
        for one in self.names.values() if name is None else [self.names[name]]:
            one.wake(in_front=in_front)
        self._ring()

    def freed(self, names: Iterable[str]) -> None:
        """Outcomes of our own jobs have been stored: their slots are free."""
        for name in names:
            one = self.names.get(name)
            if one is not None:
                one.freed = True
                one.wake()
                self._ring()

    def _ring(self) -> None:
        """Wake this claimer, and let the other one wait for it: both may have been woken by one transaction."""
        if self.names:
            self.holdings.take_turn()
        self._bell.ring()

    # -- what is to be done ----------------------------------------------------------------------------------------

    @property
    def outdated(self) -> bool:
        """Whether the definitions have to be read."""
        return self._outdated

    def due(self) -> list[LimitedName]:
        """The names to ask for now. A poll is one for all names that rest: it costs one statement."""
        now = anyio.current_time()
        due = [one for one in self.names.values() if one.ready_at <= now]
        if any(one.resting for one in due):
            due = [one for one in self.names.values() if one.ready_at <= now or one.resting]
        return due

    def sleepers(self) -> frozenset[str]:
        """The names for which enqueuers have to notify this worker."""
        now = anyio.current_time()
        return frozenset(one.name for one in self.names.values() if one.empty or now - one.emptied_at < AWAKE_AFTER)

    async def wait_news(self) -> None:
        """Wait until a name is due."""
        next_at = min((one.ready_at for one in self.names.values()), default=math.inf)
        if math.isinf(next_at) and next_at > 0:
            await self._bell.wait()
        elif (pause := next_at - anyio.current_time()) > 0:
            await self._bell.wait(pause)


async def run_limited(claimer: LimitedClaimer, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Claim until cancelled."""
    task_status.started()
    while True:
        # As in the other claimer: a claim is shielded, and may be answered without any wait.
        await checkpoint_if_cancelled()
        if claimer.leaving():
            await anyio.sleep_forever()
        if claimer.outdated:
            claimer.holdings.end_turn()
            await retrying(partial(refresh_once, claimer), what="reading the limits", patience=PATIENCE)
        elif not (due := claimer.due()):
            claimer.holdings.end_turn()
            await _doze(claimer)
            claimer.on_idle()
            await claimer.wait_news()
        elif claimer.holdings.free < 1:
            claimer.holdings.take_turn()
            await _wait_room(claimer, due)
        else:
            await retrying(partial(claim_limited_once, claimer, due), what="claiming limited jobs")
            await retrying(partial(list_writers_once, claimer), what="listing who enqueues", patience=PATIENCE)
            if claimer.dozing - claimer.sleepers():
                await _doze(claimer)


async def refresh_once(claimer: LimitedClaimer) -> None:
    """Read the definitions."""
    conn = await claimer.line.connection()
    names = list(claimer.registered)
    claimer.define(await list_limits(conn, claimer.store, names, worker_id=claimer.worker_id))


async def claim_limited_once(claimer: LimitedClaimer, due: Sequence[LimitedName]) -> int:
    """Make one claim for these names and start what it brings.

    :return: how many jobs it brought, of any kind
    :raises psycopg.OperationalError: if the claim was not answered in time; its number is then remembered as lost
    """
    number: int | None = None
    limit = 0
    claim: LimitedClaim | None = None
    passed_over = False
    try:
        with claimer.shield():
            conn = await claimer.line.connection()
            if claimer.line.opened != claimer.connection_no:
                # Another server may have taken over, one that has not heard of the last second: the mark may be gone.
                claimer.connection_no = claimer.line.opened
                claimer.dozing = frozenset()
                for one in claimer.names.values():
                    one.hints.forget()
                claimer.on_connection()
            claimer.holdings.take_turn()
            limit = min(claimer.holdings.free, 1 if claimer.is_wary else claimer.batch_size)
            if limit < 1:
                return 0
            number = claimer.holdings.open_claim(limit)
            for one in due:
                one.woken = False
            started_at = anyio.current_time()
            hinted = {
                one.name: one.hints.lanes(started_at) if isinstance(one.hints, Hints) else one.hints.lanes()
                for one in due
            }
            # Somebody who holds that many rows is not waited for.
            front = claimer.front() if claimer.reach < MAX_REACH else None
            lanes = None if front is None else front.lanes(started_at)
            others = NOWHERE if front is None else Scan.of(front.entrypoints, lanes)
            claim = await claim_limited(
                conn,
                claimer.store,
                Scan.over(hinted),
                worker_id=claimer.worker_id,
                claim_no=number,
                limit=limit,
                reach=claimer.reach,
                others=others,
            )
            claimer.start_jobs([job for job, _ in claim.jobs], number)
            has_room = len(claim.jobs) < limit
            swept = {name for name, lanes in hinted.items() if lanes is None}
            took = anyio.current_time() - started_at
            if front is not None:
                passed_over = _learn_of_others(front, claim, None if lanes else took, has_room=has_room)
            contended = _learn(claimer, claim, swept, took, has_room=has_room and not passed_over)
            contended |= passed_over
            claimer.reach = min(claimer.reach * 2, MAX_REACH) if contended else 1
    finally:
        if number is not None:
            if claim is None:
                claimer.holdings.lose_claim(number)
            else:
                claimer.holdings.resolve_claim(number)
        claimer.holdings.end_turn(next_one=claim is not None and bool(claimer.due()))
    claimer.on_answer(claim is not None)
    claimer.is_wary = claim is None
    if claim is None:
        claimer.line.close()
        raise OperationalError("the claim was not answered in time")
    if passed_over and not claim.jobs:
        await anyio.sleep(CONTENDED_PAUSE * random.random())  # noqa: S311  (jitter, not a secret)
    return len(claim.jobs)


async def list_writers_once(claimer: LimitedClaimer) -> bool:
    """Let the hints of serialized names move on, if it is time; whether it was."""
    strict = [one.hints for one in claimer.names.values() if isinstance(one.hints, StrictHints)]
    if not any(hints.wants_writers(anyio.current_time()) for hints in strict):
        return False
    writers = await list_writers(await claimer.line.connection(), claimer.store)
    for hints in strict:
        hints.see_writers(writers, anyio.current_time())
    return True


def _learn(claimer: LimitedClaimer, claim: LimitedClaim, swept: set[str], took: float, *, has_room: bool) -> bool:
    """Decide for each name when it is to be asked for again.

    :return: whether others had some of the rows locked
    """
    now = anyio.current_time()
    by_name: dict[str, list[tuple[Job, int]]] = {}
    for job, seq in claim.jobs:
        by_name.setdefault(job.entrypoint, []).append((job, seq))
    contended = False
    for answer in claim.names:
        one = claimer.names.get(answer.entrypoint)
        if one is None:
            continue  # its limits are gone since
        jobs = by_name.get(one.name, [])
        if answer.locked:
            one.hints.learn(jobs)
            if isinstance(one.hints, StrictHints):
                if answer.slots_left and not answer.candidates:
                    one.hints.found_nothing()
            elif one.name in swept:
                one.hints.swept(now, took)
        was_freed = one.freed
        contended |= one.answered(
            now,
            locked=answer.locked,
            slots_left=answer.slots_left,
            candidates=answer.candidates,
            pause=answer.pause,
            got=len(jobs),
            swept=one.name in swept or isinstance(one.hints, StrictHints),
            has_room=has_room,
            poll_interval=claimer.poll_interval,
        )
        if answer.slots_left and not has_room and answer.candidates > len(jobs):
            one.freed = was_freed  # others are still to be told: its slot went to no job of its own
    return contended


def _learn_of_others(front: Hints, claim: LimitedClaim, sweep: float | None, *, has_room: bool) -> bool:
    """Move the hints of the names without limits.

    :param sweep: what the claim took (in seconds) if it looked at all of their queue
    :return: whether others had some of the rows locked
    """
    names = frozenset(front.entrypoints)
    jobs = [one for one in claim.jobs if one[0].entrypoint in names]
    front.learn(jobs)
    if sweep is not None:
        front.swept(anyio.current_time(), sweep)
    elif has_room:
        front.sweep_next()
    return has_room and len(jobs) < claim.open_candidates


async def _wait_room(claimer: LimitedClaimer, due: Sequence[LimitedName]) -> None:
    """Wait for room in this worker. Slots that it frees meanwhile are for others."""
    freed = [one.name for one in due if one.freed]
    timeout: float | None = None
    if freed:
        now = anyio.current_time()
        if now - claimer.told_at >= TELL_PAUSE:
            claimer.told_at = now
            for name in freed:
                claimer.names[name].freed = False

            async def tell() -> None:
                await notify_slots(await claimer.line.connection(), claimer.store, freed)

            await retrying(tell, what="telling that slots are free", patience=PATIENCE)
            if claimer.holdings.free >= 1:
                return
        else:
            timeout = TELL_PAUSE - (now - claimer.told_at)
    await claimer.room.wait(timeout)


async def _doze(claimer: LimitedClaimer) -> None:
    """Bring the row of the worker up to date: for which names it is to be notified."""
    sleepers = claimer.sleepers()
    empty = {one.name for one in claimer.names.values() if one.empty}
    if empty <= claimer.dozing and not (claimer.dozing - sleepers):
        return

    async def mark() -> None:
        conn = await claimer.line.connection()
        await set_dozing(conn, claimer.store, worker_id=claimer.worker_id, entrypoints=sorted(sleepers))

    await retrying(mark, what="marking the worker as waiting for limited jobs", patience=PATIENCE)
    for name in sleepers - claimer.dozing:
        # What was enqueued without seeing the mark is found by looking again.
        one = claimer.names.get(name)
        if one is not None and one.empty:
            one.look_again(anyio.current_time(), claimer.poll_interval, first=True)
    claimer.dozing = sleepers

"""Brings in work: one claimer per worker, in batches as large as there is room.

A claim is a commit point: from the server's commit to the start of the jobs the stretch is shielded, or rows would be
held by a worker that does not know them. The shield ends soon after the worker is told to stop
(``ClaimShield.hurry``); a claim that is lost all the same is remembered by its number and given back.

While jobs wait and nearly all slots are taken, a claimer gives the next slots the time of one round trip to become
free: claiming ten jobs costs as much as claiming a hundred, and a worker with short jobs would do little else. For the
same reason it claims ahead of the slots, as far as jobs end while it asks (``_pace.py``).

While the claimer of limited names has the turn (``_holdings.py``) it takes these jobs along, and moves the hints.

While there is work nobody notifies anybody. A claimer that finds nothing marks its worker as sleeping, looks again
after 10 ms, 50 ms, 250 ms and 1 s (an enqueue that did not see the mark may have been under way), and then trusts
notifications, with the poll interval as fallback. If the other claimer has names, one look is for all of them, and that
one leaves it to this one. The mark stays while the worker wakes for single jobs, and is taken off only after a second
without idling, so that its row is no hot row.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

import anyio
import attrs
from anyio.abc import TaskStatus
from psycopg import OperationalError

from .._claim_shield import ClaimShield
from .._db import Connection, retrying
from .._db.line import Line
from .._db.retrying import PATIENCE
from .._doorbell import Doorbell
from .._hints import Hints, Lanes
from .._holdings import Holdings
from .._models import Job
from .._pace import TRIPS, Pace
from .._stop import Stop
from .._store._sql import Store
from .._store.queued import Claim, claim_hinted, claim_sweep, look_queued
from .._store.worker import set_sleeping

#: When a worker that fell asleep looks again (in seconds after the last look).
LOOK_AGAIN: Final = (0.01, 0.05, 0.25, 1.0)
#: Without idling for this long a worker is no sleeper (in seconds).
AWAKE_AFTER: Final = 1.0
#: How far beyond its batch a claimer reaches when others claim the same rows.
MAX_REACH: Final = 8
#: How many rows it looks at to get past those of a transaction that stays open (cancel requests).
MOST_ROWS: Final = 4096
#: Pause before a claim is tried again whose rows were all locked by others (in seconds, jittered): the first, and the
#: longest.
FIRST_PAUSE: Final = 0.002
LONGEST_PAUSE: Final = 0.25
#: During longer ones it is to be notified of jobs (in seconds).
AUDIBLE_PAUSE: Final = 0.01
#: With less room than this part of a whole claim it is worth waiting for more, but no longer than this (in seconds).
WORTHWHILE_SHARE: Final = 4
LONGEST_GATHERING: Final = 0.005
#: The longest that the claimer of limited names is waited for between two of its answers (in seconds).
LONGEST_TURN: Final = 0.5

#: What a claimer that is at work uses; seq scans, hash and merge joins are never right for it, whatever ANALYZE has
#: seen.
DISPATCH_SETTINGS: Final = {
    "synchronous_commit": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


@attrs.define(eq=False, kw_only=True)
class Claimer:
    """What a claimer knows."""

    line: Line
    store: Store
    worker_id: int
    holdings: Holdings
    hints: Hints
    shield: ClaimShield
    #: starts the jobs of one claim; never waits
    start_jobs: Callable[[Sequence[Job], int], None]
    #: whether jobs wait that may start as soon as one of ours ends: what is held ahead would overtake them
    keeps_back: Callable[[], bool]
    #: rung when there may be work
    bell: Doorbell
    #: rung when a slot becomes free
    room: Doorbell
    batch_size: int
    poll_interval: float
    #: called when the claimer finds nothing to do
    on_idle: Callable[[], None]
    #: how many changes of the limits are known: which names have none may be out of date
    limit_changes: Callable[[], int]
    #: the names of the other claimer
    others: Callable[[], Collection[str]]
    #: called with the names that have jobs, when all names have been looked at
    on_looked: Callable[[frozenset[str]], None]
    #: called when there will be no such look at the time that was said
    on_look_dropped: Callable[[], None]
    #: the worker's: requested before the cancellation of this task arrives
    stop: Stop
    #: how fast jobs end
    pace: Pace = attrs.field(factory=Pace, init=False)
    #: rows looked at per row wanted
    reach: int = attrs.field(default=1, init=False)
    #: how long the last pause was that was made because all rows in reach were locked (in seconds)
    pause: float = attrs.field(default=0.0, init=False)
    #: whether the last claim was not answered: the next one is to hold up no more than one job, and to be short
    is_wary: bool = attrs.field(default=False, init=False)
    #: whether the last claim left jobs behind for want of room, and how long it took (in seconds)
    behind: bool = attrs.field(default=False, init=False)
    took: float = attrs.field(default=0.0, init=False)
    #: whether the worker row says that enqueuers should notify us
    sleeping: bool = attrs.field(default=False, init=False)
    #: how many of LOOK_AGAIN have passed
    looks: int = attrs.field(default=0, init=False)
    #: whether it has looked in another way than by a claim, and found nothing
    knows_of_none: bool = attrs.field(default=False, init=False)
    #: when it looks for jobs of all names, as far as it knows (the event loop's clock)
    next_look_at: float = attrs.field(default=-math.inf, init=False)
    idled_at: float = attrs.field(default=0.0, init=False)
    #: which of the line's connections made the last claim
    connection_no: int = attrs.field(default=0, init=False)
    #: the turn of the other claimer that is waited for, and until when
    turn: int = attrs.field(default=0, init=False)
    turn_ends_at: float = attrs.field(default=0.0, init=False)

    def front(self) -> Hints | None:
        """The hints for a claim that takes these jobs along, or ``None`` if there are no such names."""
        return self.hints if self.hints.entrypoints else None

    def forget(self) -> None:
        """A crash of the server may have undone what was not waited for: the mark too."""
        self.hints.forget()
        self.sleeping = False

    def look_ahead(self) -> None:
        """Decide how many jobs to hold beyond those that run."""
        self.pace.look(anyio.current_time(), self.holdings.ended, self.took)
        self.holdings.ahead = 0 if self.keeps_back() else self.pace.ahead(TRIPS * self.batch_size)

    def claim_no_more_ahead(self) -> None:
        """Jobs that were claimed ahead did not start in time."""
        self.pace.forget()
        self.holdings.ahead = 0

    def drop_look(self) -> None:
        """There will be no look for all at the time that was said."""
        self.next_look_at = -math.inf
        self.on_look_dropped()

    @property
    def has_worthwhile_room(self) -> bool:
        """Whether there is room for a good part of the largest claim that there can be."""
        largest = min(self.batch_size, self.holdings.max_concurrency + self.holdings.ahead)
        return self.holdings.room * WORTHWHILE_SHARE >= largest


async def run_claimer(claimer: Claimer, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Claim until cancelled."""
    claimer.idled_at = anyio.current_time()
    task_status.started()
    gathered = False
    while True:
        await claimer.stop.checkpoint()
        claimer.look_ahead()
        if not claimer.hints.entrypoints:
            claimer.on_idle()
            await _poll(claimer, claimer.poll_interval)
        elif claimer.holdings.room < 1:
            await _wait_room(claimer)
        elif not gathered and claimer.behind and not claimer.has_worthwhile_room:
            gathered = True
            await anyio.sleep(min(claimer.took, LONGEST_GATHERING))
        elif not claimer.knows_of_none and await retrying(partial(claim_once, claimer), what="claiming jobs"):
            gathered = False
            await _mark_at_work(claimer)
        else:
            gathered = False
            await _rest(claimer)


async def claim_once(claimer: Claimer) -> bool:
    """Make one claim and start what it brings.

    :return: whether it is worth claiming again at once
    :raises psycopg.OperationalError: if the claim was not answered in time; its number is then remembered as lost
    """
    number: int | None = None
    limit = 0
    claim: Claim | None = None
    lanes: Lanes | None = None
    try:
        with claimer.shield.open():
            conn = await claimer.line.connection()
            if claimer.line.opened != claimer.connection_no:
                claimer.connection_no = claimer.line.opened
                claimer.forget()
            limit = min(claimer.holdings.room, 1 if claimer.is_wary else claimer.batch_size)
            if limit < 1:
                return True
            number = claimer.holdings.open_claim(limit)
            lanes = claimer.hints.lanes(anyio.current_time())
            asked_at = anyio.current_time()
            claim = await _claim(claimer, conn, lanes, number, limit)
            claimer.took = anyio.current_time() - asked_at
            claimer.behind = len(claim.jobs) == limit
            claimer.hints.learn(claim.jobs)
            claimer.start_jobs([job for job, _ in claim.jobs], number)
    finally:
        if number is not None:
            if claim is None:
                claimer.holdings.lose_claim(number)
            else:
                claimer.holdings.resolve_claim(number)
    claimer.shield.answered(in_time=claim is not None)
    claimer.is_wary = claim is None
    if claim is None:
        claimer.line.close()
        raise OperationalError("the claim was not answered in time")
    got = len(claim.jobs)
    contended = got < min(limit, claim.candidates)
    claimer.reach = min(claimer.reach * 2, MAX_REACH if got else MOST_ROWS) if contended else 1
    claimer.pause = 0.0 if got or not contended else min(max(claimer.pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
    if claimer.pause:
        await claimer.bell.wait(claimer.pause * random.random())  # noqa: S311  (jitter, not a secret)
    if got < limit and lanes is not None:
        claimer.hints.sweep_next()
    return got == limit or contended or lanes is not None


async def _claim(claimer: Claimer, conn: Connection, lanes: Lanes | None, number: int, limit: int) -> Claim:
    ask: dict[str, int] = {
        "worker_id": claimer.worker_id,
        "claim_no": number,
        "limit": limit,
        "reach": min(limit * claimer.reach, max(limit * MAX_REACH, MOST_ROWS)),
        "limit_changes": claimer.limit_changes(),
    }
    if lanes is not None:
        return await claim_hinted(conn, claimer.store, lanes, **ask)
    started = anyio.current_time()
    claim = await claim_sweep(conn, claimer.store, list(claimer.hints.entrypoints), **ask)
    now = anyio.current_time()
    claimer.hints.swept(now, now - started)
    return claim


async def _wait_room(claimer: Claimer) -> None:
    """Wait for a slot, and for the turn of the other claimer to end; but that one may hang."""
    timeout: float | None = None
    if claimer.holdings.free > 0:
        now = anyio.current_time()
        if claimer.turn != claimer.holdings.turn:
            claimer.turn, claimer.turn_ends_at = claimer.holdings.turn, now + LONGEST_TURN
        timeout = claimer.turn_ends_at - now
        if timeout <= 0:
            claimer.holdings.break_turn()
            return
    await claimer.room.wait(timeout)


async def _rest(claimer: Claimer) -> None:
    """Nothing to do: wait for the bell, or until it is time to look again."""
    if not claimer.sleeping:
        await _mark(claimer, sleeping=True)
        claimer.looks = 0
    claimer.on_idle()
    claimer.knows_of_none = False
    if claimer.looks + 1 < len(LOOK_AGAIN):
        if not await claimer.bell.wait(LOOK_AGAIN[claimer.looks]):
            claimer.looks += 1
    else:
        # The last of the first looks is for all, so that from then on nobody else has to look.
        pause = LOOK_AGAIN[claimer.looks] if claimer.looks < len(LOOK_AGAIN) else claimer.poll_interval
        found = await _poll(claimer, pause)
        if found is not None:
            claimer.looks = len(LOOK_AGAIN)
            claimer.knows_of_none = not found
    claimer.idled_at = anyio.current_time()
    claimer.hints.sweep_next()


async def _poll(claimer: Claimer, pause: float) -> bool | None:
    """Look for jobs of all names after a pause, unless the bell rings; whether this claimer is to claim."""
    claimer.next_look_at = anyio.current_time() + pause
    found = None if await claimer.bell.wait(pause) else await _look(claimer)
    if found is None:
        claimer.drop_look()
    else:
        claimer.next_look_at = -math.inf
    return found


async def _look(claimer: Claimer) -> bool:
    """Look for jobs of all names, for both claimers; whether this one is to claim."""
    others = claimer.others()
    if not others:
        return True
    ours = claimer.hints.entrypoints

    async def look() -> frozenset[str]:
        try:
            return await look_queued(await claimer.line.connection(), claimer.store, [*ours, *others])
        except BaseException:
            claimer.drop_look()
            raise

    found = await retrying(look, what="looking for jobs", patience=PATIENCE)
    claimer.on_looked(found)
    return not found.isdisjoint(ours)


async def _mark_at_work(claimer: Claimer) -> None:
    """Be no sleeper after a while of work, but one while all that could be claimed is locked by others."""
    now = anyio.current_time()
    if claimer.pause > AUDIBLE_PAUSE:
        claimer.idled_at = now
        if not claimer.sleeping:
            await _mark(claimer, sleeping=True)
    elif claimer.sleeping and now - claimer.idled_at > AWAKE_AFTER:
        await _mark(claimer, sleeping=False)


async def _mark(claimer: Claimer, *, sleeping: bool) -> None:
    async def mark() -> None:
        conn = await claimer.line.connection()
        await set_sleeping(conn, claimer.store, worker_id=claimer.worker_id, sleeping=sleeping)

    await retrying(mark, what="marking the worker as sleeping", patience=PATIENCE)
    claimer.sleeping = sleeping

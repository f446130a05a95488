"""Takes over the jobs of workers that are gone.

*Dead* is a judgement of this worker's own, by its own monotonic clock: it has seen the same beat for a full lease of
the other worker, as that worker's row states it. The database's clock may step, a server may have been promoted or away
for an hour: nobody is judged by that. When a beat was *made* is estimated from its age in the answer, but never as
earlier than our own look before it, and only if the database's clock ran as ours did between the two looks; otherwise
the lease is counted from the moment we saw it. Time in which we saw nothing does not count: after a pause of our own
looks everybody has a full lease again, for the server may have been away from all. That happens once for each beat: a
worker whose heartbeats need a second attempt every time has to judge others, too. Of a further pause, and of the time
between two looks at a worker that beats more often than we look, no more than ``BLIND_SHARE`` of its lease counts:
there is still time for a beat, at a server that answers.

The heartbeats' answers bring all the sightings: as long as everybody is well this asks the database nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Final

import anyio
import attrs

from .._db import retrying
from .._db.line import Line
from .._db.retrying import PATIENCE
from .._doorbell import Doorbell
from .._store._sql import Store
from .._store.worker import Peer, Pulse, rescue_jobs

logger = logging.getLogger("pgq_anyio.rescuer")

#: What a worker allows the jobs of one that left no row to say otherwise.
DEFAULT_MAX_CRASHES: Final = 5
#: A clock that ran differently from ours by more than this between two looks has stepped (in seconds).
CLOCK_TOLERANCE: Final = 1.0
#: Past the end of a lease by this much it is over for certain (in seconds).
SLACK: Final = 0.05
#: After so much of another worker's lease without a look of ours it is not judged before the next one.
BLIND_SHARE: Final = 2 / 3
#: After a rescue that found its worker's row locked or its beat changed, look again this much later (in seconds), once:
#: then the next heartbeat tells which of the two it was.
LOOK_AGAIN: Final = 0.5


@attrs.define(eq=False)
class Sighting:
    """A beat of another worker, and when it was made at the latest (event loop's clock)."""

    beat: int
    made_at: float
    lease: float
    #: whether a rescue has found that this worker lives, or that its row was locked
    doubted: bool = False
    #: whether its lease has been counted anew once, after a pause of our looks
    renewed: bool = False

    @property
    def due_at(self) -> float:
        """When this worker is dead unless it beats again."""
        return self.made_at + self.lease + SLACK

    def end_pause(self, now: float, pause: float, *, is_ours: bool) -> None:
        """It has not beaten, and we could not have judged it just before this look.

        :param pause: since the look before (in seconds)
        :param is_ours: whether we wanted to look earlier
        """
        if is_ours and not self.renewed:
            self.renewed = True
            self.made_at = now
        elif pause > BLIND_SHARE * self.lease:
            self.made_at = max(self.made_at, now - BLIND_SHARE * self.lease)


@attrs.define(eq=False)
class Sightings:
    """What is known of the other workers."""

    #: after a longer time without a look (in seconds) nobody is judged before the next one
    longest_gap: float
    _seen: dict[int, Sighting] = attrs.field(factory=dict, init=False)
    _left: dict[int, int] = attrs.field(factory=dict, init=False)
    _last_look: float | None = attrs.field(default=None, init=False)
    _last_clock: float = attrs.field(default=0.0, init=False)

    def observe(self, peers: Sequence[Peer], *, clock: float, now: float) -> None:
        """Take in an answer.

        :param clock: the database's clock (in seconds)
        :param now: when the answer came (event loop's clock); however long it took, no beat is taken for older
            than it is
        """
        steady = (
            self._last_look is not None and abs((clock - self._last_clock) - (now - self._last_look)) < CLOCK_TOLERANCE
        )
        earliest = self._last_look if steady and self._last_look is not None else now
        self._left = {peer.worker_id: peer.beat for peer in peers if peer.has_left}
        known = {peer.worker_id for peer in peers}
        self._seen = {worker_id: seen for worker_id, seen in self._seen.items() if worker_id in known}
        for peer in peers:
            seen = self._seen.get(peer.worker_id)
            is_blind = self._is_blind(peer.lease, now)
            if seen is None or seen.beat != peer.beat or seen.lease != peer.lease or math.isinf(seen.made_at):
                made_at = now if is_blind else min(now, max(earliest, now - max(0.0, peer.age)))
                self._seen[peer.worker_id] = Sighting(peer.beat, made_at, peer.lease)
            elif is_blind:
                seen.end_pause(now, self._pause(now), is_ours=self._is_late(now))
        self._last_look, self._last_clock = now, clock

    def next_due(self, now: float) -> float:
        """When the earliest lease runs out, unless its worker beats again."""
        if self._left:
            return -math.inf
        due = (seen.due_at for seen in self._seen.values() if not self._is_blind(seen.lease, now))
        return min(due, default=math.inf)

    def _is_blind(self, lease: float, now: float) -> bool:
        """Whether so much time has passed without a look that a worker with this lease cannot be judged."""
        return self._is_late(now) or self._pause(now) > BLIND_SHARE * lease

    def _is_late(self, now: float) -> bool:
        return self._pause(now) > self.longest_gap

    def _pause(self, now: float) -> float:
        """How long ago the last look was."""
        return 0.0 if self._last_look is None else now - self._last_look

    def dead(self, now: float) -> list[tuple[int, int]]:
        """(worker id, beat) of those whose time is over, and of those who said that they leave."""
        gone = {
            worker_id: seen.beat
            for worker_id, seen in self._seen.items()
            if seen.due_at <= now and not self._is_blind(seen.lease, now)
        }
        return sorted((gone | self._left).items())

    def forget(self, judged: Sequence[tuple[int, int]], *, now: float) -> None:
        """They are gone, or they are not: in either case the next sighting starts from now."""
        for worker_id, beat in judged:
            self._left.pop(worker_id, None)
            seen = self._seen.get(worker_id)
            if seen is not None and seen.beat == beat:
                seen.made_at = math.inf if seen.doubted else now - seen.lease + LOOK_AGAIN
                seen.doubted = True


@attrs.define(eq=False, kw_only=True)
class Rescuer:
    """What a rescuer knows."""

    line: Line
    store: Store
    sightings: Sightings
    _orphans: bool = attrs.field(default=False, init=False)
    _bell: Doorbell = attrs.field(factory=Doorbell, init=False)

    def observe(self, pulse: Pulse) -> None:
        """Take in the answer to a heartbeat that has just come."""
        self.sightings.observe(pulse.peers, clock=pulse.clock, now=anyio.current_time())
        self._orphans = self._orphans or pulse.orphans
        self._bell.ring()

    async def wait_due(self) -> None:
        """Wait until a worker may be dead, or rows belong to nobody."""
        while not self._orphans and (pause := self._pause()) > 0:
            await self._bell.wait(None if math.isinf(pause) else pause)

    def _pause(self) -> float:
        now = anyio.current_time()
        return self.sightings.next_due(now) - now


async def run_rescuer(rescuer: Rescuer) -> None:
    """Rescue until cancelled."""
    while True:
        await rescuer.wait_due()
        await retrying(partial(rescue_once, rescuer), what="rescuing jobs of dead workers", patience=PATIENCE)


async def rescue_once(rescuer: Rescuer) -> int:
    """Bury those who are due, and take what belongs to nobody; how many jobs were taken."""
    judged = rescuer.sightings.dead(anyio.current_time())
    conn = await rescuer.line.connection()
    buried, jobs = await rescue_jobs(conn, rescuer.store, judged, max_crashes=DEFAULT_MAX_CRASHES)
    rescuer._orphans = False
    rescuer.sightings.forget(judged, now=anyio.current_time())
    if buried or jobs:
        logger.warning("rescued %d jobs of workers that are gone: %s", len(jobs), buried)
    return len(jobs)

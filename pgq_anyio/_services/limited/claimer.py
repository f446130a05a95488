"""What the claimer of limited names knows, and what news changes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Final

import anyio
import attrs
from anyio import CancelScope

from ..._db.line import Line
from ..._doorbell import Doorbell
from ..._hints import Hints
from ..._holdings import Holdings
from ..._limited_name import LimitedName
from ..._limits import UNLIMITED, Limits
from ..._models import Job
from ..._process_room import ProcessRoom
from ..._stop import Stop
from ..._store._sql import Store
from ..._store.limiter import Definition, KnownLimits
from ..._strict_hints import StrictHints

logger = logging.getLogger("pgq_anyio.limits")

#: Without being empty for this long, nobody has to notify us for a name (in seconds).
AWAKE_AFTER: Final = 1.0
#: How much later than its poll a name may be looked at by somebody who looks for all (in seconds; no more than a tenth
#: of the poll interval).
LATE_LOOK: Final = 0.25


@attrs.define(eq=False, kw_only=True)
class LimitedClaimer:
    """What the claimer of limited names knows."""

    line: Line
    store: Store
    worker_id: int
    #: all names that this worker serves, with the limits that it registered
    registered: Mapping[str, Limits]
    #: those whose handlers run in processes, and how many more could start
    in_process: frozenset[str]
    processes: ProcessRoom
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
    #: when somebody else looks for jobs of all names (the event loop's clock); in the past if that is not planned
    next_look: Callable[[], float]
    #: called when nothing is to be done
    on_idle: Callable[[], None]
    #: the worker's: requested before the cancellation of this task arrives
    stop: Stop
    #: rung when a slot of the worker becomes free
    room: Doorbell
    batch_size: int
    poll_interval: float
    names: dict[str, LimitedName] = attrs.field(factory=dict, init=False)
    #: the names for which enqueuers notify this worker, as its row says
    dozing: frozenset[str] = attrs.field(default=frozenset(), init=False)
    _bell: Doorbell = attrs.field(factory=Doorbell, init=False)
    #: whether the definitions have to be read
    outdated: bool = attrs.field(default=False, init=False)
    _definitions: dict[str, Definition] = attrs.field(factory=dict, init=False)
    #: how many changes of the limits are known
    limit_changes: int = attrs.field(default=0, init=False)
    #: whether it waits for the look of somebody else, longer than its poll
    _leans: bool = attrs.field(default=False, init=False)
    reach: int = attrs.field(default=1, init=False)
    told_at: float = attrs.field(default=-math.inf, init=False)
    connection_no: int = attrs.field(default=0, init=False)
    #: whether it claims nothing any more
    has_ended: bool = attrs.field(default=False, init=False)
    #: whether the last claim was not answered: the next one is to block no more than one slot
    is_wary: bool = attrs.field(default=False, init=False)

    # -- news, all of it synchronous -------------------------------------------------------------------------------

    def define(self, limits: KnownLimits) -> None:
        """Take in what the database says that the limits are."""
        for one in limits.definitions:
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
        self._definitions = {one.entrypoint: one for one in limits.definitions}
        has_changed = limits.changes != self.limit_changes
        self.limit_changes = limits.changes
        before = self.names
        self.names = {}
        for name in self.registered:
            allowed = self._definitions[name].limits if name in self._definitions else UNLIMITED
            in_process = name in self.in_process
            if not allowed.is_limited and not in_process:
                continue
            entry = self.names[name] = before.get(name) or LimitedName(name)
            entry.is_limited, entry.in_process = allowed.is_limited, in_process
            if allowed.serialized != isinstance(entry.hints, StrictHints):
                entry.hints = StrictHints(name) if allowed.serialized else Hints((name,))
            elif has_changed:
                entry.hints.forget()  # in between it may have been another definition, by which others left gaps
            entry.wake()
        self.on_names()
        self._ring()

    def forget(self) -> None:
        """Another server may answer now, one that has not heard of the last second: the mark may be gone."""
        self.dozing = frozenset()
        for one in self.names.values():
            one.hints.forget()

    def outdate(self) -> None:
        """The limits in the database have changed."""
        self.outdated = True
        self._bell.ring()
        self.room.ring()

    def hear_of_changes(self, number: int) -> None:
        """So many changes of the limits there have been, by the last heartbeat: notifications may be lost. After a
        failover it may be fewer than are known.
        """
        if number != self.limit_changes:
            self.outdate()

    def wake(self, name: str | None, *, in_front: bool = False) -> None:
        """There may be something for a name (``None``: for any)."""
        for one in self.names.values() if name is None else [self.names[name]]:
            one.wake(in_front=in_front)
        self._ring()

    def freed(self, names: Mapping[str, int]) -> None:
        """Outcomes of so many of our own jobs of each name have been stored: their slots are free."""
        for name, count in names.items():
            one = self.names.get(name)
            if one is not None and one.is_limited:
                one.freed += count
                one.wake()
                self._ring()

    def looked(self, found: Container[str]) -> None:
        """Somebody has looked for jobs of all names: those that rest need no look of their own for a while.

        :param found: names that have jobs
        """
        now = anyio.current_time()
        for one in self.names.values():
            if one.resting and one.name in found:
                self.wake(one.name)
            elif one.resting:
                one.ready_at = now + self.poll_interval
                self._bell.ring()  # it may have been due, and waiting for nothing but a process

    def look_dropped(self) -> None:
        """Somebody was about to look for jobs of all names, and does not."""
        if self._leans:
            self._bell.ring()

    def process_freed(self) -> None:
        """A process of this worker has become free."""
        if any(one.in_process for one in self.due()):
            self._ring()

    def _ring(self) -> None:
        """Wake this claimer, and let the other one wait for it: both may have been woken by one transaction."""
        if self.names:
            self.holdings.take_turn()
        self._bell.ring()

    # -- what is to be done ----------------------------------------------------------------------------------------

    def due(self) -> list[LimitedName]:
        """The names to ask for now. A poll is one for all names that rest: it costs one statement."""
        now, lacking = anyio.current_time(), self.lacking()
        names = [one for one in self.names.values() if one not in lacking]
        due = [one for one in names if self._asks_at(one) <= now]
        if any(one.resting for one in due):
            due = [one for one in names if one.ready_at <= now or one.resting]
        return due

    def _asks_at(self, one: LimitedName) -> float:
        """When to ask for a name. One that rests is left to a look for all names, unless that is a whole poll late."""
        look_at = self.next_look() if one.resting else -math.inf
        if look_at > one.ready_at + min(LATE_LOOK, self.poll_interval / 10):
            return one.ready_at
        return max(one.ready_at, look_at + self.poll_interval)

    def lacking(self) -> list[LimitedName]:
        """The names for whose jobs there is no process: they are not asked for."""
        needy = [one for one in self.names.values() if one.in_process]
        if not needy or self.processes.free > 0:
            return []
        # A job that is held ahead of its process would take a slot or a token that another worker could use.
        limited, now = [one for one in needy if one.is_limited], anyio.current_time()
        if self.processes.room > 0 and not any(self._asks_at(one) <= now for one in limited):
            return limited
        # Nothing else is held ahead while such a job may wait: it could never be the first one.
        return needy

    def seats_for(self, due: Iterable[LimitedName]) -> int:
        """How many jobs that run in processes a claim for these names may bring."""
        is_exact = any(one.in_process and one.is_limited for one in due)
        return self.processes.free if is_exact else self.processes.room

    def waits_for_process(self) -> bool:
        """Whether there may be jobs that only wait for a process of this worker."""
        now = anyio.current_time()
        return any(self._asks_at(one) <= now for one in self.lacking())

    def sleepers(self) -> frozenset[str]:
        """The names for which enqueuers have to notify this worker."""
        now = anyio.current_time()
        return frozenset(one.name for one in self.names.values() if one.empty or now - one.emptied_at < AWAKE_AFTER)

    async def wait_news(self, at_most: float | None = None) -> None:
        """Wait until a name is due, and no longer than that (in seconds)."""
        now, lacking = anyio.current_time(), self.lacking()
        # A name that lacks a process is due when it has one, but not before its time has come.
        names = [one for one in self.names.values() if one not in lacking or self._asks_at(one) > now]
        next_at = min(map(self._asks_at, names), default=math.inf)
        self._leans = any(one.ready_at < next_at for one in names)
        pause = min(next_at - now, math.inf if at_most is None else at_most)
        if pause > 0:
            await self._bell.wait(None if math.isinf(pause) else pause)
        self._leans = False

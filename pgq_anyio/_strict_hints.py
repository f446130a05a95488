"""Where a claim of a serialized name starts to look: as near to the front of the queue as strict order allows.

The hints of other names (``_hints.py``) lie behind what was claimed, and a sweep finds now and then what came back to
its old place or was committed late. A name in strict order cannot wait for that: left of its hint there must never be a
job. What may still come there:

- the job that was claimed last, if it is given back: so a hint is the place of a job that was claimed, not the one
  behind it. No other job can come back, for none is claimed before the last one has ended;
- jobs whose place was allotted before, and whose transaction is still open. Whoever inserts into the queue has a lock
  on the table from before the place is allotted until the transaction ends, so that such transactions can be listed.
  When all those have ended that were there just after the claim, every job left of it is visible, and if the next claim
  finds none, there will be none.

A transaction that enqueues and stays open holds the hint back as long as it lives, and only then does a claim walk the
entries of jobs done meanwhile. Transactions that only hold a snapshot, or write to other tables, do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from ._hints import HIGHEST, LOWEST, MAX_LANES, Lanes
from ._models import Job

#: Pause between two lists of the transactions that write to the queue (in seconds).
LIST_PAUSE: Final = 0.25


@attrs.define(eq=False)
class StrictHints:
    """The hints of one serialized name; each by priority."""

    name: str
    #: nothing lies left of these, or will ever
    _safe: dict[int, int] = attrs.field(factory=dict, init=False)
    #: the same, once a claim has found nothing left of them
    _ripe: dict[int, int] = attrs.field(factory=dict, init=False)
    #: the same, once these transactions have ended
    _waiting: dict[int, int] = attrs.field(factory=dict, init=False)
    _writers: frozenset[str] = attrs.field(default=frozenset(), init=False)
    #: what was claimed since the transactions were listed
    _claimed: dict[int, int] = attrs.field(factory=dict, init=False)
    _list_at: float = attrs.field(default=0.0, init=False)

    def lanes(self) -> Lanes | None:
        """The lanes to enter and all gaps between them, or ``None`` for everything."""
        if len(self._safe) > MAX_LANES:
            self._safe.clear()  # most of them may be in use no more; those that are will be learnt again
        if not self._safe:
            return None
        lanes = Lanes([], [], [], [], [], [])
        above = LOWEST
        for priority, seq in sorted(self._safe.items()):
            lanes.entrypoints.append(self.name)
            lanes.priorities.append(priority)
            lanes.seqs.append(seq - 1)
            lanes.add_gap(self.name, above, priority)
            above = priority
        lanes.add_gap(self.name, above, HIGHEST)
        return lanes

    def learn(self, claimed: Sequence[tuple[Job, int]]) -> None:
        """A claim has taken the first job: in higher lanes it found nothing, in lower ones it has not looked."""
        for job, seq in claimed:
            for priority, ripe in list(self._ripe.items()):
                if priority > job.priority or (priority == job.priority and seq >= ripe):
                    self._safe[priority] = self._ripe.pop(priority)
            self._claimed[job.priority] = seq

    def found_nothing(self) -> None:
        """A claim that might have taken a job has found the queue of the name empty, and none running."""
        self._safe.update(self._ripe)
        self._ripe.clear()

    def wants_writers(self, now: float) -> bool:
        """Whether the transactions that write to the queue are to be listed.

        :param now: any steady clock (in seconds)
        """
        return bool(self._claimed or self._waiting) and now >= self._list_at

    def see_writers(self, writers: frozenset[str], now: float) -> None:
        """Take in the list, read after the last claim was answered and before the next begins."""
        self._list_at = now + LIST_PAUSE
        self._writers &= writers
        if self._writers:
            return
        self._ripe.update(self._waiting)
        self._waiting, self._claimed = self._claimed, {}
        self._writers = writers if self._waiting else frozenset()

    def forget(self) -> None:
        """Drop all hints: after a reconnect, sequences may have jumped or gone back with a failover."""
        for known in (self._safe, self._ripe, self._waiting, self._claimed):
            known.clear()
        self._writers = frozenset()

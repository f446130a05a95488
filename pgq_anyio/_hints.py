"""Where a claim starts to look: behind the last row it took from each lane, a lane being a name and a priority.

Entries of jobs already done stay in the index until a vacuum can remove them, and no vacuum can while any transaction
holds an old snapshot. A scan that starts behind them never walks them. The hint is only a hint: rows that commit late
or come back to their old place lie left of it. A *sweep* from the very start finds them: whenever a claim comes back
short, when a notification says that something was put in front, and otherwise so rarely that sweeps take at most 5 % of
the time.

To keep each hint back until all transactions of its snapshot have ended was left out: one long writing transaction
anywhere in the server would hold every hint back, and the sweep is needed in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from ._models import Job

#: A fleet with more (name, priority) pairs than this in use is swept every time: the hinted scan enters every lane.
MAX_LANES: Final = 64
#: Just outside of PostgreSQL's ``integer``, which a priority is.
LOWEST: Final = -(2**31) - 1
HIGHEST: Final = 2**31
#: Pause between sweeps as a multiple of what the last one took, and at least this long (in seconds).
SWEEP_SHARE: Final = 20
SWEEP_PAUSE: Final = 0.25


@attrs.frozen
class Lanes:
    """Where the scan of each known lane starts, and the gaps between known priorities, column by column."""

    entrypoints: list[str]
    priorities: list[int]
    seqs: list[int]
    gap_entrypoints: list[str]
    #: exclusive bounds of each gap; an open end is just outside of what a priority can be, so that both are index
    #: conditions
    gap_aboves: list[int]
    gap_belows: list[int]

    def add_gap(self, entrypoint: str, above: int, below: int) -> None:
        """Add what lies between two priorities, if anything can."""
        if below - above > 1:
            self.gap_entrypoints.append(entrypoint)
            self.gap_aboves.append(above)
            self.gap_belows.append(below)


@attrs.define(eq=False)
class Hints:
    """The hints of one claimer."""

    entrypoints: tuple[str, ...]
    _seqs: dict[str, dict[int, int]] = attrs.field(factory=dict, init=False)
    _sweep_at: float = attrs.field(default=0.0, init=False)
    #: whether something may have come in front since the last claim began
    _has_news: bool = attrs.field(default=False, init=False)

    def lanes(self, now: float) -> Lanes | None:
        """The lanes to enter, or ``None`` if this claim is to be a sweep.

        :param now: any steady clock (in seconds)
        """
        self._has_news = False
        known = self._count_known()
        if not known or known > MAX_LANES or now >= self._sweep_at:
            return None
        lanes = Lanes([], [], [], [], [], [])
        for entrypoint in self.entrypoints:
            above = LOWEST
            for priority, seq in sorted(self._seqs.get(entrypoint, {}).items()):
                lanes.entrypoints.append(entrypoint)
                lanes.priorities.append(priority)
                lanes.seqs.append(seq)
                lanes.add_gap(entrypoint, above, priority)
                above = priority
            lanes.add_gap(entrypoint, above, HIGHEST)
        return lanes

    def learn(self, claimed: Sequence[tuple[Job, int]]) -> None:
        """Move the hints behind what was claimed."""
        for job, seq in claimed:
            lanes = self._seqs.setdefault(job.entrypoint, {})
            if seq > lanes.get(job.priority, -1):
                lanes[job.priority] = seq

    def swept(self, now: float, took: float) -> None:
        """Note a sweep that ended at ``now`` and took ``took`` seconds. What came meanwhile it may have missed."""
        if self._count_known() > MAX_LANES:
            self._seqs.clear()  # most of them may be in use no more; those that are will be learnt again
        if not self._has_news:
            self._sweep_at = now + max(SWEEP_PAUSE, took * SWEEP_SHARE)

    def _count_known(self) -> int:
        return sum(len(lanes) for lanes in self._seqs.values())

    def sweep_next(self) -> None:
        """Let the next claim be a sweep: something may lie in front."""
        self._sweep_at = 0.0
        self._has_news = True

    def forget(self) -> None:
        """Drop all hints: after a reconnect, sequences may have jumped or gone back with a failover."""
        self._seqs.clear()
        self.sweep_next()

"""What this worker holds: the jobs it has claimed, its claim numbers, and how much more it may take.

All decisions are synchronous; nothing here waits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import attrs

from ._context import Context
from ._models import CancelReason, Held, JobId
from ._registry import Entrypoint

#: How many outcomes per slot may wait for the database before no more jobs are claimed.
MAX_UNSTORED_PER_SLOT: Final = 10

_claim_numbers = itertools.count(1)
"""Claim numbers are the process's: two terms of one process never share one."""


@attrs.define(eq=False, slots=True, weakref_slot=False)
class Run:
    """A job that this worker holds, from its claim to its stored outcome."""

    held: Held
    entrypoint: Entrypoint
    context: Context
    #: whether it was claimed by the claimer of limited names
    is_limited: bool = False
    #: whether the handler has ended (or will never start): only the outcome is still to be stored
    ended: bool = False
    #: what ends at this time and still runs is overdue (event loop's clock), set when it is cancelled
    overdue_at: float | None = None

    @property
    def title(self) -> str:
        """What logs call it."""
        return f"job {self.held.job.id} of {self.held.job.entrypoint!r}"


@attrs.define(eq=False)
class Party:
    """One of the two claimers that share the worker's capacity."""

    #: how many handlers run for it, or are about to
    busy: int = 0
    #: how many more its claims under way may bring
    reserved: int = 0
    #: whether its last claim was cut short by the worker's capacity
    hungry: bool = False


@attrs.define(eq=False)
class Holdings:
    """The jobs of one term."""

    worker_id: int
    #: how many handlers may run at once
    max_concurrency: int
    cancel_grace: float
    #: outcomes that wait for the database, large ones counted for more
    unstored: Callable[[], int]
    #: called when a slot becomes free
    on_room: Callable[[], None]
    #: called when a claim has been lost: what it took, if anything, is to be given back
    on_lost_claim: Callable[[], None]
    #: called when a running job has been asked to end
    on_cancelled: Callable[[Run], None]
    _runs: dict[tuple[JobId, int], Run] = attrs.field(factory=dict, init=False)
    _running: dict[tuple[JobId, int], Run] = attrs.field(factory=dict, init=False)
    _by_id: dict[JobId, Run] = attrs.field(factory=dict, init=False)
    #: claims under way, with who makes them and how many jobs they may bring
    _in_flight: dict[int, tuple[Party, int]] = attrs.field(factory=dict, init=False)
    _open: Party = attrs.field(factory=Party, init=False)
    _limited: Party = attrs.field(factory=Party, init=False)
    #: who got jobs last
    _served: Party | None = attrs.field(default=None, init=False)
    _unresolved: set[int] = attrs.field(factory=set, init=False)
    #: requests that came before the claim's answer did: (job id, claim number)
    _early: set[tuple[JobId, int]] = attrs.field(factory=set, init=False)

    # -- room ------------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more jobs may be claimed."""
        return self._room(self._open, self._limited)

    @property
    def limited_room(self) -> int:
        """How many more jobs of limited names may be claimed."""
        return self._room(self._limited, self._open)

    def _room(self, mine: Party, other: Party) -> int:
        """What is free; or half of the whole, less what is mine, while the other claimer waits for more. The odd one
        goes to who was not served last, so that both take turns even in a worker of one slot.
        """
        if self.unstored() > MAX_UNSTORED_PER_SLOT * self.max_concurrency:
            return 0
        free = self.max_concurrency - len(self._running) - mine.reserved - other.reserved
        if not other.hungry:
            return free
        share = (self.max_concurrency + (self._served is not mine)) // 2
        return min(free, share - mine.busy - mine.reserved)

    def wait_hungry(self, *, limited: bool = False) -> None:
        """A claimer has something to claim and no room: the other one is to leave it some."""
        (self._limited if limited else self._open).hungry = True

    @property
    def busy(self) -> int:
        """How many handlers are running or about to."""
        return len(self._running)

    # -- claims ----------------------------------------------------------------------------------------------------

    def open_claim(self, size: int, *, limited: bool = False) -> int:
        """A fresh claim number: the fence of the jobs it will bring.

        :param size: the most jobs that it may bring
        :param limited: whether the claimer of limited names makes it
        """
        number = next(_claim_numbers)
        party = self._limited if limited else self._open
        party.reserved += size
        self._in_flight[number] = party, size
        return number

    def resolve_claim(self, number: int, *, hungry: bool) -> None:
        """The answer to a claim has come, and its jobs are held.

        :param hungry: whether it would have brought more if the worker had more room
        """
        self._close_claim(number, hungry=hungry)
        self._early = {key for key in self._early if key[1] in self._in_flight}

    def _close_claim(self, number: int, *, hungry: bool) -> None:
        party, size = self._in_flight.pop(number)
        party.reserved -= size
        party.hungry = hungry
        self.on_room()

    def lose_claim(self, number: int) -> None:
        """The answer to a claim will never come: what it took is to be given back, however late it commits."""
        self._close_claim(number, hungry=False)
        self._unresolved.add(number)
        self.on_lost_claim()

    @property
    def unresolved(self) -> list[int]:
        """Claims whose answer was lost."""
        return sorted(self._unresolved)

    # -- jobs ------------------------------------------------------------------------------------------------------

    def add(self, run: Run) -> None:
        """Hold a job that was just claimed."""
        key = (run.held.job.id, run.held.claim_no)
        self._runs[key] = run
        self._running[key] = run
        self._by_id[run.held.job.id] = run
        self._served = self._limited if run.is_limited else self._open
        self._served.busy += 1
        if key in self._early:
            run.context.request_cancel(CancelReason.USER, grace=self.cancel_grace)

    def handler_ended(self, run: Run) -> None:
        """The handler has ended: its slot is free, its row is still ours."""
        run.ended = True
        job_id = run.held.job.id
        del self._running[job_id, run.held.claim_no]
        (self._limited if run.is_limited else self._open).busy -= 1
        # A job may be held twice for a moment: its claim was undone by a crash of the server, and we claimed it again.
        if self._by_id.get(job_id) is run:
            del self._by_id[job_id]
        self.on_room()

    def release(self, held: Iterable[Held]) -> None:
        """Outcomes have been stored: the rows are gone."""
        for one in held:
            self._runs.pop((one.job.id, one.claim_no), None)
        self.on_room()

    def find(self, job_id: JobId) -> Run | None:
        """The run of this job, if its handler has not ended."""
        return self._by_id.get(job_id)

    def running(self) -> list[Run]:
        """Jobs whose handler has not ended."""
        return list(self._running.values())

    def can_cancel(self, job_id: JobId, claim_no: int) -> bool:
        """Whether this is a job that a cancel request may interrupt, or may become one."""
        run = self._runs.get((job_id, claim_no))
        if run is None:
            return claim_no in self._in_flight and (job_id, claim_no) not in self._early
        return not run.ended

    def request_cancel(self, job_id: JobId, claim_no: int) -> bool:
        """Deliver a cancel request from the database. Repeats and requests for others' jobs do nothing.

        :return: whether it did anything
        """
        if not self.can_cancel(job_id, claim_no):
            return False
        run = self._runs.get((job_id, claim_no))
        if run is None:
            self._early.add((job_id, claim_no))
            return True
        if not run.context.request_cancel(CancelReason.USER, grace=self.cancel_grace):
            return False
        self.on_cancelled(run)
        return True

    # -- reconcile -------------------------------------------------------------------------------------------------

    def known(self) -> set[tuple[JobId, int]]:
        """What we hold at this moment."""
        return set(self._runs)

    def reconcile(
        self, before: set[tuple[JobId, int]], rows: Sequence[tuple[JobId, int]]
    ) -> list[tuple[JobId | None, int]]:
        """Compare with what the database says after a reconnect.

        :param before: what we held before the rows were read
        :param rows: (job id, claim number) of every row that the database holds for us
        :return: rows that we do not know; they are to be given back. One that we released meanwhile may be among them:
            its row is gone, so that giving it back changes nothing
        """
        ours = set(rows)
        for key in before - ours:
            run = self._runs.get(key)
            # A crash of the server undid the claim: by now somebody else may run the job.
            if (
                run is not None
                and not run.ended
                and run.context.request_cancel(CancelReason.LEASE_LOST, grace=self.cancel_grace)
            ):
                self.on_cancelled(run)
        return [key for key in ours - set(self._runs) if key[1] not in self._in_flight]

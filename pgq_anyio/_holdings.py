"""What this worker holds: the jobs it has claimed, its claim numbers, and how much more it may take.

Two claimers share the slots, one of limited names and one of all others, and jobs start by priority whichever kind
they are. Only a claim of limited names can tell which of them may start now. So while there may be any, their claimer
has the *turn*: its claims take jobs of both kinds in one order, and the other claimer waits. It has no turn while it
has nothing to claim, cannot, or does not get on.

Jobs without limits may be held *ahead*, beyond those that can run: as many as end while more are being claimed
(``_pace.py``). A limited one never is, for it would take a slot or a token that another worker could use.

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
MAX_UNSTORED_PER_SLOT: Final = 20

_claim_numbers = itertools.count(1)
"""Claim numbers are the process's: two terms of one process never share one."""


@attrs.define(eq=False, slots=True, weakref_slot=False)
class Run:
    """A job that this worker holds, from its claim to its stored outcome."""

    held: Held
    entrypoint: Entrypoint
    context: Context
    #: whether its name has limits
    is_limited: bool = False
    #: whether it was given a slot
    started: bool = False
    #: whether the handler has ended (or will never start): only the outcome is still to be stored
    ended: bool = False

    @property
    def title(self) -> str:
        """What logs call it."""
        return f"job {self.held.job.id} of {self.held.job.entrypoint!r}"


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
    #: whether jobs go on whose rows are not ours any more
    spares_lost: bool = False
    _runs: dict[tuple[JobId, int], Run] = attrs.field(factory=dict, init=False)
    _running: dict[tuple[JobId, int], Run] = attrs.field(factory=dict, init=False)
    _by_id: dict[JobId, Run] = attrs.field(factory=dict, init=False)
    #: claims under way, with how many jobs they may bring, and all that together
    _in_flight: dict[int, int] = attrs.field(factory=dict, init=False)
    _reserved: int = attrs.field(default=0, init=False)
    #: how many of the jobs that have not ended were not given a slot yet
    _waiting: int = attrs.field(default=0, init=False)
    #: how many jobs may be held beyond those that can run
    ahead: int = attrs.field(default=0, init=False)
    #: how many jobs have ended so far
    ended: int = attrs.field(default=0, init=False)
    #: the number of the turn that the claimer of limited names has, or had last
    turn: int = attrs.field(default=0, init=False)
    _has_turn: bool = attrs.field(default=False, init=False)
    #: whether it was waited for in vain, and has not moved since
    _is_late: bool = attrs.field(default=False, init=False)
    _unresolved: set[int] = attrs.field(factory=set, init=False)
    #: requests that came before the claim's answer did: (job id, claim number)
    _early: set[tuple[JobId, int]] = attrs.field(factory=set, init=False)

    # -- room ------------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more jobs may be claimed by a claimer that looks at names without limits only."""
        return 0 if self._has_turn or self._is_backed_up else self._unused + self.ahead

    @property
    def free(self) -> int:
        """How many more jobs may be claimed that could start at once."""
        return 0 if self._is_backed_up else max(self._unused, 0)

    @property
    def _unused(self) -> int:
        return self.max_concurrency - len(self._running) - self._reserved

    @property
    def _is_backed_up(self) -> bool:
        return self.unstored() > MAX_UNSTORED_PER_SLOT * self.max_concurrency

    @property
    def free_slots(self) -> int:
        """How many more jobs may start."""
        return self.max_concurrency - len(self._running) + self._waiting

    def take_turn(self) -> None:
        """There may be jobs of limited names: their claimer is to claim for both kinds."""
        if not self._has_turn and not self._is_late:
            self._has_turn = True
            self.turn += 1

    def end_turn(self, *, next_one: bool = False) -> None:
        """The claimer of limited names has claimed, or cannot, or has nothing to claim.

        :param next_one: whether there may be more for it
        """
        self._has_turn = self._is_late = False
        if next_one:
            self.take_turn()
        else:
            self.on_room()

    def break_turn(self) -> None:
        """The claimer of limited names does not get on: it is not waited for again before it does."""
        self._has_turn, self._is_late = False, True
        self.on_room()

    @property
    def busy(self) -> int:
        """How many jobs have not ended, whether they run or wait for a slot."""
        return len(self._running)

    # -- claims ----------------------------------------------------------------------------------------------------

    def open_claim(self, size: int) -> int:
        """A fresh claim number: the fence of the jobs it will bring.

        :param size: the most jobs that it may bring
        """
        number = next(_claim_numbers)
        self._reserved += size
        self._in_flight[number] = size
        return number

    def resolve_claim(self, number: int) -> None:
        """The answer to a claim has come, and its jobs are held."""
        self._close_claim(number)
        self._early = {key for key in self._early if key[1] in self._in_flight}

    def _close_claim(self, number: int) -> None:
        self._reserved -= self._in_flight.pop(number)
        self.on_room()

    def lose_claim(self, number: int) -> None:
        """The answer to a claim will never come: what it took is to be given back, however late it commits."""
        self._close_claim(number)
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
        self._waiting += 1
        self._by_id[run.held.job.id] = run
        if key in self._early:
            run.context.request_cancel(CancelReason.USER, grace=self.cancel_grace)

    def give_slot(self, run: Run) -> None:
        """The job starts."""
        run.started = True
        self._waiting -= 1

    def handler_ended(self, run: Run) -> None:
        """The handler has ended, or will never start: its slot is free, its row is still ours."""
        run.ended = True
        if run.started:
            self.ended += 1
        else:
            self._waiting -= 1
        job_id = run.held.job.id
        del self._running[job_id, run.held.claim_no]
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
                and not self.spares_lost
                and run.context.request_cancel(CancelReason.LEASE_LOST, grace=self.cancel_grace)
            ):
                self.on_cancelled(run)
        return [key for key in ours - set(self._runs) if key[1] not in self._in_flight]

"""What is heard of the database, of other services and of the jobs, and whom it wakes."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import attrs

from .._hints import Hints
from .._holdings import Run
from .._models import CancelReason
from .._scheduled import ScheduledRun
from .._services.listener import (
    Alarm,
    CancelRequest,
    LimitChange,
    ScheduleChange,
    SlotFree,
    Wake,
    parse_notification,
)
from .._store.worker import Pulse

if TYPE_CHECKING:
    from .term import Term


@attrs.define(eq=False)
class News:
    """Hands on what is heard. Nothing here waits."""

    term: Term
    #: how many other workers there are
    peers: int = attrs.field(default=0, init=False)

    def on_pulse(self, pulse: Pulse, asked_at: float) -> None:
        """The answer to a heartbeat that was sent at ``asked_at`` (event loop's clock)."""
        term = self.term
        self.peers = len(pulse.peers)
        term.worker.heard.ring()
        term.promoter.observe(pulse)
        term.limited.hear_of_changes(pulse.limit_changes)
        term.rescuer.observe(pulse)
        term.scheduler.observe(pulse.clock, asked_at)

    def on_notification(self, payload: str) -> None:
        """What somebody has notified on a channel of ours."""
        term = self.term
        match parse_notification(payload):
            case Wake(entrypoint, in_front) if entrypoint is None or entrypoint in term.worker.registry.entrypoints:
                self._wake(entrypoint, in_front=in_front)
            case SlotFree(entrypoint) if entrypoint is None or entrypoint in term.limited.names:
                term.limited.wake(entrypoint)
            case LimitChange():
                term.limited.outdate()
            case Alarm(run_at):
                term.promoter.look(run_at)
            case ScheduleChange():
                term.scheduler.look()
            case CancelRequest(worker_id, jobs) if worker_id == term.worker_id:
                term.heart.look_soon(jobs)
            case _:
                pass

    def _wake(self, entrypoint: str | None, *, in_front: bool = False) -> None:
        """There is work for a name (``None``: for any): wake the claimer that brings it in."""
        term = self.term
        if entrypoint is None or entrypoint in term.limited.names:
            term.limited.wake(entrypoint, in_front=in_front)
        if entrypoint is None or entrypoint not in term.limited.names:
            if in_front:
                term.claimer.hints.sweep_next()
            term.claimer.bell.ring()

    def on_promoted(self, entrypoints: list[str]) -> None:
        """Deferred jobs of these names are due."""
        for entrypoint in entrypoints:
            if entrypoint in self.term.worker.registry.entrypoints:
                self._wake(entrypoint)

    def on_names(self) -> None:
        """The limits in the database have been read: each name belongs to one of the two claimers. Until then, claims
        without limits may have been refused.
        """
        claimer, limited = self.term.claimer, self.term.limited.names
        unlimited = tuple(name for name in self.term.entrypoints if name not in limited)
        if unlimited != claimer.hints.entrypoints:
            claimer.hints = Hints(unlimited)
        claimer.hints.sweep_next()
        claimer.bell.ring()

    def on_room(self) -> None:
        """A slot is free."""
        self.term.claimer.room.ring()
        self.term.limited.room.ring()

    def keeps_back(self) -> bool:
        """Whether jobs wait for nothing but a process."""
        return self.term.limited.waits_for_process()

    def others(self) -> Collection[str]:
        """The names of the claimer of limited names."""
        return self.term.limited.names

    def on_looked(self, found: frozenset[str]) -> None:
        """The other claimer has looked for their jobs too."""
        self.term.limited.looked(found)

    def on_look_dropped(self) -> None:
        """The other claimer has been rung before it looked."""
        self.term.limited.look_dropped()

    def next_look(self) -> float:
        """When the other claimer looks for the jobs of all."""
        return self.term.claimer.next_look_at

    def on_process_free(self) -> None:
        """A process has no handler any more."""
        self.term.limited.process_freed()

    def on_lost_claim(self) -> None:
        """What a claim took in vain is held by nobody until a heartbeat says so."""
        self.term.heart.beat_soon()

    def on_cancelled(self, run: Run) -> None:
        """A job has been cancelled, and is to end within the grace."""
        self.term.overdue.expect(run)

    def on_lost_run(self, run: ScheduledRun) -> None:
        """The row of a scheduled run is not ours any more: the run is cancelled, as a job is."""
        spares_runs = self.term.worker.settings.on_lease_lost == "continue"
        if not spares_runs and run.context.request_cancel(CancelReason.LEASE_LOST, grace=0.0):
            self.term.overdue.expect(run)

    def on_listening(self) -> None:
        """Notifications may have been missed, and a server that crashed may have forgotten what we hold."""
        self.term.heart.beat_soon()
        self._look_again()

    def on_new_session(self) -> None:
        """A server may have crashed, and what comes after it has not heard of its last moments."""
        self.term.claimer.forget()
        self.term.limited.forget()
        self._look_again()

    def _look_again(self) -> None:
        self._wake(None, in_front=True)
        self.term.promoter.look()
        self.term.scheduler.look()

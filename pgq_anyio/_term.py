"""One registration of a worker, and how its services are wired to each other.

Everything that changes the worker's memory is a synchronous method here or a value below; ``_worker.py`` opens the
groups and scopes in which the services run.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC
from functools import partial
from typing import Any, Final

import anyio
import attrs
from anyio import CancelScope, CapacityLimiter
from anyio.abc import TaskGroup

from ._context import Context, ExecutionTools, OuterScopes
from ._db import PsycopgDriver, retrying
from ._db.line import Line
from ._db.retrying import PATIENCE
from ._doorbell import Doorbell
from ._endings import Endings
from ._errors import in_a_line
from ._hints import Hints
from ._holdings import Holdings, Run
from ._lifecycle import GIVEN_BACK, Outcome
from ._models import Held, Job, Schedule
from ._registry import Registry, ScheduleEntry
from ._run_settings import RunSettings
from ._scheduled import ScheduledRun
from ._services.claimer import CLAIM_TIMEOUT, DISPATCH_SETTINGS, SHORTEST_CLAIM_TIMEOUT, Claimer, ClaimShield
from ._services.completer import Batch
from ._services.drain import Drain
from ._services.heartbeat import Heart
from ._services.last_resort import LastResort
from ._services.limited import LimitedClaimer
from ._services.listener import (
    Alarm,
    CancelRequest,
    Ear,
    LimitChange,
    ScheduleChange,
    SlotFree,
    Wake,
    parse_notification,
    worker_channel,
)
from ._services.overdue import OverdueWatch
from ._services.promoter import Promoter
from ._services.pruner import Pruner
from ._services.rescuer import Rescuer
from ._services.runner import run_job, run_schedule, unstarted_outcome
from ._services.scheduler import SCHEDULE_SETTINGS, Scheduler
from ._services.slots import Slots
from ._stop import Stop
from ._store._sql import Store
from ._store.limiter import define_limits
from ._store.worker import BEATS_PER_LEASE, Pulse, leave, mark_left, register_worker
from ._timetable import HeldSchedule, Wanted

logger = logging.getLogger("pgq_anyio.worker")

#: How long a registration that is interrupted may take to be cancelled on the server (in seconds).
REGISTRATION_CLEANUP: Final = 1.0
#: Claims of limited names are waited for: one that a crash of the server undid would break exactness. Each statement
#: has to have a snapshot of its own, whatever the database's default is.
LIMITED_SETTINGS: Final = {
    **DISPATCH_SETTINGS,
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
}

Lifespan = Callable[[], AbstractAsyncContextManager[Any]]


@attrs.define(eq=False, kw_only=True)
class Worker:
    """What all terms of a worker share."""

    registry: Registry
    driver: PsycopgDriver
    store: Store
    settings: RunSettings
    stop: Stop
    lifespan: Lifespan
    endings: Endings = attrs.field(factory=Endings, init=False)
    #: rings with every answer to a heartbeat
    heard: Doorbell = attrs.field(factory=Doorbell, init=False)
    #: what the lifespan gave
    resources: Any = attrs.field(default=None, init=False)
    #: the present term, once there is one
    term: Term | None = attrs.field(default=None, init=False)
    #: whether the caller of ``tg.start(app.run)`` has been told that we are ready
    reported: bool = attrs.field(default=False, init=False)
    #: whether the limits have been put into the database: later terms leave them as they are
    has_defined: bool = attrs.field(default=False, init=False)
    last_resort: LastResort = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.last_resort = LastResort(
            stop=self.stop,
            shutdown_grace=self.settings.shutdown_grace,
            cancel_grace=self.settings.cancel_grace,
            running=lambda: [] if self.term is None else self.term.running(),
            endings=self.endings,
            mark_left=self._mark_left,
        )

    async def _mark_left(self) -> None:
        if self.term is not None:
            await self.term.mark_left_once()

    def service_failed(self, name: str, error: Exception) -> None:
        """A service has met an error that no retry can mend. It ends the run; ``run()`` raises it, but not before the
        last handler has ended, and that may take a while.
        """
        logger.error("the %s has failed, which ends the worker: %s", name, in_a_line(error))
        self.stop.fail()

    def is_leaving(self) -> bool:
        """Whether slots that become free are left to other workers, because this one stops or is being stopped."""
        return self.stop.requested or (self.term is not None and self.term.limited.has_ended)

    def on_reopened(self) -> None:
        """The connection for outcomes had to be replaced."""
        if self.term is not None:
            self.term.heart.compare_soon()

    def on_stored(self, batch: Batch) -> None:
        """Outcomes are in the database: their jobs are no longer held."""
        if self.term is not None:
            jobs = [held for held, _ in batch if isinstance(held, Held)]
            self.term.holdings.release(jobs)
            self.term.limited.freed({held.job.entrypoint for held in jobs})
            for held, outcome in batch:
                if isinstance(held, HeldSchedule):
                    self.term.scheduler.released(held, outcome)
            self.term.drain.bell.ring()


class Term:
    """One registration, from its worker row to its farewell."""

    def __init__(self, worker: Worker) -> None:
        registry, settings, store = worker.registry, worker.settings, worker.store
        self.worker = worker
        self.worker_id = secrets.randbits(63)
        self.entrypoints = tuple(registry.entrypoints)
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self.lease = registry.shortest_lease(settings.lease)
        self.margin = min(settings.cancel_grace, self.lease / 4)
        self.lease_scope = CancelScope()
        self.stop_scope = CancelScope()
        self.outer = OuterScopes(self.lease_scope, self.stop_scope, lambda: worker.stop.requested)
        self.tools: ExecutionTools | None = None
        self.jobs: TaskGroup | None = None
        self.slots: Slots | None = None
        self.peers = 0
        self._schedule_threads = CapacityLimiter(math.inf)

        self.heartbeat_line = Line(worker.driver, "heartbeat", cleanup_timeout=REGISTRATION_CLEANUP)
        self.dispatch_line = Line(worker.driver, "dispatch", dict(DISPATCH_SETTINGS), cleanup_timeout=0.5)
        self.limited_line = Line(worker.driver, "dispatch limited", dict(LIMITED_SETTINGS), cleanup_timeout=0.5)
        self.maintenance_line = Line(worker.driver, "maintenance")
        schedule_line = Line(worker.driver, "schedule", dict(SCHEDULE_SETTINGS), cleanup_timeout=0.5)
        listen_line = Line(worker.driver, "listen", direct=True, cleanup_timeout=0.0)
        self._lines = (
            self.heartbeat_line,
            self.dispatch_line,
            self.limited_line,
            self.maintenance_line,
            schedule_line,
            listen_line,
        )

        self.holdings = Holdings(
            worker_id=self.worker_id,
            max_concurrency=settings.max_concurrency,
            cancel_grace=settings.cancel_grace,
            unstored=lambda: worker.endings.weight,
            on_room=self._on_room,
            on_lost_claim=self._give_back_soon,
            on_cancelled=self._expect_end,
        )
        self.overdue = OverdueWatch(
            line=self.dispatch_line,
            store=store,
            grace=settings.cancel_grace,
            shortest_timeout=registry.shortest_timeout(),
            running=self.running,
        )
        self.drain = Drain(
            line=self.dispatch_line,
            store=store,
            entrypoints=self.entrypoints,
            unfinished=lambda: self.holdings.busy + worker.endings.unstored,
            on_drained=worker.stop.request,
        )
        # Jobs that a claim took in vain are held by nobody for less than a heartbeat.
        beat = self.lease / BEATS_PER_LEASE
        patience = min(CLAIM_TIMEOUT, max(beat / 2, SHORTEST_CLAIM_TIMEOUT))
        longest = min(CLAIM_TIMEOUT, max(beat, patience))
        self.claimer = Claimer(
            line=self.dispatch_line,
            store=store,
            worker_id=self.worker_id,
            holdings=self.holdings,
            hints=Hints(self.entrypoints),
            shield=ClaimShield(patience, longest),
            start_jobs=self._start_jobs,
            bell=Doorbell(),
            room=Doorbell(),
            batch_size=settings.batch_size,
            poll_interval=settings.dequeue_timeout,
            on_idle=self.drain.bell.ring,
            stop=worker.stop,
        )
        self._limited_shield = ClaimShield(patience, longest)
        self.limited = LimitedClaimer(
            line=self.limited_line,
            store=store,
            worker_id=self.worker_id,
            registered={name: entrypoint.limits for name, entrypoint in registry.entrypoints.items()},
            holdings=self.holdings,
            shield=self._limited_shield.open,
            on_answer=lambda in_time: self._limited_shield.answered(in_time=in_time),
            front=self.claimer.front,
            on_connection=self.claimer.forget,
            start_jobs=self._start_jobs,
            on_names=self._share_names,
            on_idle=self.drain.bell.ring,
            stop=worker.stop,
            room=Doorbell(),
            batch_size=settings.batch_size,
            poll_interval=settings.dequeue_timeout,
        )
        self.promoter = Promoter(line=self.dispatch_line, store=store, on_promoted=self._on_promoted)
        self._schedule_shield = ClaimShield(patience)
        self.scheduler = Scheduler(
            line=schedule_line,
            store=store,
            worker_id=self.worker_id,
            entries=registry.schedules,
            shield=self._schedule_shield.open,
            start_run=self._start_scheduled,
        )
        self.rescuer = Rescuer(line=self.dispatch_line, store=store)
        self.pruner = Pruner(
            line=self.maintenance_line, store=store, workers=lambda: self.peers + 1, retention=settings.retention
        )
        self.heart = Heart(
            line=self.heartbeat_line,
            store=store,
            worker_id=self.worker_id,
            holdings=self.holdings,
            lease=self.lease,
            margin=self.margin,
            lease_scope=self.lease_scope,
            on_pulse=self._on_pulse,
            on_new_session=self._forget_server,
        )
        for line in self._lines:
            if line is not self.heartbeat_line:
                line.on_reopened = self.heart.compare_soon
        self.ear = Ear(
            line=listen_line,
            channels=(store.channel, worker_channel(self.worker_id)),
            silence=self.lease,
            poll_interval=settings.dequeue_timeout,
            on_notification=self._on_notification,
            on_listening=self._look_everywhere,
        )

    # -- registration ----------------------------------------------------------------------------------------------

    async def register(self) -> None:
        """Become a worker. The lease counts from before the request.

        An interrupted request is cancelled on the server and waited for: one that was left to itself could be committed
        after our farewell, and nobody would remove its row before the lease is over.
        """
        await retrying(self._register_once, what="registering the worker", patience=self.lease)
        await retrying(self._define_limits_once, what="defining limits", patience=self.lease)
        # From now on, what is not answered is tried on another connection, without a second's delay.
        self.heartbeat_line.limit_cleanup(0.0)

    async def _register_once(self) -> None:
        asked_at = anyio.current_time()
        entrypoints = self.worker.registry.entrypoints
        await register_worker(
            await self.heartbeat_line.connection(),
            self.worker.store,
            worker_id=self.worker_id,
            name=self._name,
            entrypoints=self.entrypoints,
            max_crashes=[entrypoint.max_crashes for entrypoint in entrypoints.values()],
            lease=self.lease,
        )
        self.lease_scope.deadline = asked_at + self.lease - self.margin

    async def _define_limits_once(self) -> None:
        """Put our limits into the database, when the worker starts, and read what holds now."""
        entrypoints = self.worker.registry.entrypoints
        ours = {} if self.worker.has_defined else {name: one.limits for name, one in entrypoints.items()}
        definitions, replaced = await define_limits(
            await self.heartbeat_line.connection(),
            self.worker.store,
            worker_id=self.worker_id,
            name=self._name,
            entrypoints=self.entrypoints,
            limits=ours,
        )
        self.worker.has_defined = True
        for one in replaced:
            logger.warning(
                "the entrypoint %r is registered with %s here (%s), and with %s by %s, which still runs; the database "
                "keeps the last definition, ours",
                one.entrypoint,
                ours[one.entrypoint],
                self._name,
                one.limits,
                one.defined_by,
            )
        self.limited.define(definitions)

    async def leave_once(self) -> None:
        """Give up the registration, and whatever the database still holds for it."""
        await leave(await self.heartbeat_line.connection(), self.worker.store, worker_id=self.worker_id)

    async def mark_left_once(self) -> None:
        """Say that the worker goes although handlers still run."""
        await mark_left(await self.heartbeat_line.connection(), self.worker.store, worker_id=self.worker_id)

    async def wind_up(self) -> None:
        """After a lost lease: see that everything of this term is stored or given back, however long it takes."""
        try:
            await self.worker.endings.wait_stored()
            await retrying(self.leave_once, what="giving back the jobs of a lost lease", patience=PATIENCE)
        finally:
            self.close()

    def close(self) -> None:
        """Close the term's connections."""
        for line in self._lines:
            line.close()

    # -- jobs ------------------------------------------------------------------------------------------------------

    def open_tools(self, process_pool: Any) -> None:
        """Set what executors run handlers with."""
        settings = self.worker.settings
        self.tools = ExecutionTools(CapacityLimiter(settings.max_concurrency), process_pool, settings.cancel_grace)

    def _start_jobs(self, jobs: Sequence[Job], claim_no: int) -> None:
        assert self.tools is not None, "jobs are claimed while the tools are open"
        assert self.jobs is not None, "jobs are claimed inside the jobs group"
        runs: list[Run] = []
        limited = self.limited.names
        for job in jobs:
            entrypoint = self.worker.registry.entrypoints[job.entrypoint]
            context = Context(
                job=job,
                schedule=None,
                resources=self.worker.resources,
                tools=self.tools,
                outer=self.outer,
            )
            run = Run(Held(job, self.worker_id, claim_no), entrypoint, context, job.entrypoint in limited)
            self.holdings.add(run)
            if self.worker.stop.requested:
                self._end_job(run, unstarted_outcome(context))
            else:
                runs.append(run)
        if self.slots is None:
            run_to_its_end = partial(run_job, end=self._end_job)
            self.slots = Slots(
                self.jobs, self.holdings, run_to_its_end, lambda: self.outer.reason() is not None, self._give_back
            )
        self.slots.start(runs)

    def _end_job(self, run: Run, outcome: Outcome) -> None:
        self.holdings.handler_ended(run)
        self.worker.endings.put(run.held, outcome, urgent=run.is_limited)
        if self.slots is not None:
            self.slots.go_on()

    def _give_back(self, runs: Sequence[Run]) -> None:
        """Jobs that were claimed ahead found no slot in time."""
        self.claimer.claim_no_more_ahead()
        for run in runs:
            self._end_job(run, unstarted_outcome(run.context))

    def _start_scheduled(self, entry: ScheduleEntry, held: HeldSchedule, wanted: Wanted) -> None:
        assert self.tools is not None, "occurrences are taken while the tools are open"
        assert self.jobs is not None, "occurrences are taken inside the jobs group"
        schedule = Schedule(entry.name, entry.expression, entry.cron.timezone, wanted.due_at.astimezone(UTC))
        context = Context(
            job=None,
            schedule=schedule,
            resources=self.worker.resources,
            # Scheduled runs never wait behind jobs, nor do they take their threads.
            tools=attrs.evolve(self.tools, thread_limiter=self._schedule_threads),
            outer=self.outer,
        )
        run = ScheduledRun(held, entry, schedule, context)
        self.scheduler.add(run)
        if self.worker.stop.requested:
            self._end_scheduled(run, GIVEN_BACK)
        else:
            self.jobs.start_soon(run_schedule, run, self._end_scheduled, name=f"schedule:{entry.name}")

    def _end_scheduled(self, run: ScheduledRun, outcome: Outcome) -> None:
        self.scheduler.handler_ended(run)
        self.worker.endings.put(run.held, outcome)

    def running(self) -> list[Run | ScheduledRun]:
        """Jobs and scheduled runs whose handler has not ended."""
        return [*self.holdings.running(), *self.scheduler.running()]

    def hurry(self) -> None:
        """Let the claims under way, if any, end soon."""
        self.claimer.shield.hurry()
        self._limited_shield.hurry()
        self._schedule_shield.hurry()

    def _on_room(self) -> None:
        self.claimer.room.ring()
        self.limited.room.ring()

    def _give_back_soon(self) -> None:
        self.heart.beat_soon()

    def _expect_end(self, run: Run) -> None:
        self.overdue.expect(run)

    def begin_stop(self, deadline: float) -> None:
        """Nothing new is claimed any more: set when what still runs is cancelled (event loop's clock)."""
        self.stop_scope.deadline = min(self.stop_scope.deadline, deadline)
        if self.slots is not None:
            self.slots.give_back()
        for run in self.running():
            run.context.end_wait()

    def interrupted(self) -> None:
        """Something around the jobs has just been cancelled: by the end of a grace, by a second signal, with the lease,
        by an error, or by the caller of ``run()``. All but the lease end the worker.
        """
        if not self.lease_scope.cancel_called:
            self.worker.stop.hurry()
        self.overdue.expect_all()

    # -- news ------------------------------------------------------------------------------------------------------

    def _on_pulse(self, pulse: Pulse, asked_at: float) -> None:
        self.peers = len(pulse.peers)
        self.worker.heard.ring()
        self.promoter.observe(pulse)
        if pulse.outdated:
            self.limited.outdate()
        self.rescuer.observe(pulse)
        self.scheduler.observe(pulse.clock, asked_at)

    def _on_notification(self, payload: str) -> None:
        match parse_notification(payload):
            case Wake(entrypoint, in_front) if entrypoint is None or entrypoint in self.worker.registry.entrypoints:
                self._wake(entrypoint, in_front=in_front)
            case SlotFree(entrypoint) if entrypoint is None or entrypoint in self.limited.names:
                self.limited.wake(entrypoint)
            case LimitChange():
                self.limited.outdate()
            case Alarm(run_at):
                self.promoter.look(run_at)
            case ScheduleChange():
                self.scheduler.look()
            case CancelRequest(worker_id, jobs) if worker_id == self.worker_id:
                self.heart.look_soon(jobs)
            case _:
                pass

    def _wake(self, entrypoint: str | None, *, in_front: bool = False) -> None:
        """There is work for a name (``None``: for any): wake the claimer that brings it in."""
        if entrypoint is None or entrypoint in self.limited.names:
            self.limited.wake(entrypoint, in_front=in_front)
        if entrypoint is None or entrypoint not in self.limited.names:
            if in_front:
                self.claimer.hints.sweep_next()
            self.claimer.bell.ring()

    def _on_promoted(self, entrypoints: list[str]) -> None:
        for entrypoint in entrypoints:
            if entrypoint in self.worker.registry.entrypoints:
                self._wake(entrypoint)

    def _share_names(self) -> None:
        """The limits in the database have been read: each name belongs to one of the two claimers. Until then, claims
        without limits may have been refused.
        """
        unlimited = tuple(name for name in self.entrypoints if name not in self.limited.names)
        if unlimited != self.claimer.hints.entrypoints:
            self.claimer.hints = Hints(unlimited)
        self.claimer.hints.sweep_next()
        self.claimer.bell.ring()

    def _look_everywhere(self) -> None:
        """Notifications may have been missed, and a server that crashed may have forgotten what we hold."""
        self.heart.beat_soon()
        self._look_again()

    def _forget_server(self) -> None:
        """A server may have crashed, and what comes after it has not heard of its last moments."""
        self.claimer.forget()
        self.limited.forget()
        self._look_again()

    def _look_again(self) -> None:
        self._wake(None, in_front=True)
        self.promoter.look()
        self.scheduler.look()

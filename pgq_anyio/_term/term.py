"""The services of one registration, and what they are handed."""

from __future__ import annotations

import secrets
from typing import Final

import anyio
from anyio import CancelScope

from .._claim_shield import CLAIM_TIMEOUT, SHORTEST_CLAIM_TIMEOUT, ClaimShield
from .._context import OuterScopes
from .._db import retrying
from .._db.retrying import PATIENCE
from .._doorbell import Doorbell
from .._hints import Hints
from .._holdings import Holdings
from .._lease import Lease
from .._process_room import ProcessRoom
from .._services.claimer import Claimer
from .._services.drain import Drain
from .._services.heartbeat import Heart
from .._services.limited import LimitedClaimer
from .._services.listener import Ear, worker_channel
from .._services.overdue import OverdueWatch
from .._services.promoter import Promoter
from .._services.pruner import Pruner
from .._services.rescuer import Rescuer, Sightings
from .._services.scheduler import Scheduler
from .._store.worker import BEATS_PER_LEASE
from .handlers import Handlers
from .lines import Lines
from .news import News
from .registration import Registration
from .worker import Worker

#: Without an answer for so many heartbeats nobody is judged: of two workers with the same lease, the server was away
#: from one for at least that long before the other may seem dead.
BLIND_AFTER: Final = 2.0


class Term:
    """One registration, from its worker row to its farewell."""

    def __init__(self, worker: Worker) -> None:
        registry, settings, store = worker.registry, worker.settings, worker.store
        self.worker = worker
        self.worker_id = secrets.randbits(63)
        self.entrypoints = tuple(registry.entrypoints)
        lease = registry.shortest_lease(settings.lease)
        spares_jobs = settings.on_lease_lost == "continue"
        self.lease = Lease(lease, min(settings.cancel_grace, lease / 4), spares_jobs=spares_jobs)
        self.stop_scope = CancelScope()
        self.outer = OuterScopes(self.lease.scope, self.stop_scope, lambda: worker.stop.requested)
        self.lines = Lines(worker.driver)
        self.handlers = Handlers(self)
        self.news = News(self)
        self.holdings = Holdings(
            worker_id=self.worker_id,
            max_concurrency=settings.max_concurrency,
            cancel_grace=settings.cancel_grace,
            spares_lost=spares_jobs,
            unstored=lambda: worker.endings.weight,
            on_room=self.news.on_room,
            on_lost_claim=self.news.on_lost_claim,
            on_cancelled=self.news.on_cancelled,
        )
        self.processes = ProcessRoom(self.news.on_process_free)
        self.overdue = OverdueWatch(
            line=self.lines.dispatch,
            store=store,
            grace=settings.cancel_grace,
            shortest_timeout=registry.shortest_timeout(),
            running=self.handlers.running,
        )
        self.drain = Drain(
            line=self.lines.dispatch,
            store=store,
            entrypoints=self.entrypoints,
            unfinished=lambda: self.holdings.busy + worker.endings.unstored,
            on_drained=worker.stop.request,
        )
        # Jobs that a claim took in vain are held by nobody for less than a heartbeat.
        beat = lease / BEATS_PER_LEASE
        patience = min(CLAIM_TIMEOUT, max(beat / 2, SHORTEST_CLAIM_TIMEOUT))
        longest = min(CLAIM_TIMEOUT, max(beat, patience))
        self.claimer = Claimer(
            line=self.lines.dispatch,
            store=store,
            worker_id=self.worker_id,
            holdings=self.holdings,
            hints=Hints(self.entrypoints),
            shield=ClaimShield(patience, longest),
            start_jobs=self.handlers.start_jobs,
            keeps_back=self.news.keeps_back,
            bell=Doorbell(),
            room=Doorbell(),
            batch_size=settings.batch_size,
            poll_interval=settings.dequeue_timeout,
            on_idle=self.drain.bell.ring,
            limit_changes=lambda: self.limited.limit_changes,
            others=self.news.others,
            on_looked=self.news.on_looked,
            on_look_dropped=self.news.on_look_dropped,
            stop=worker.stop,
        )
        limited_shield = ClaimShield(patience, longest)
        self.limited = LimitedClaimer(
            line=self.lines.limited,
            store=store,
            worker_id=self.worker_id,
            registered={name: entrypoint.limits for name, entrypoint in registry.entrypoints.items()},
            in_process=registry.names_in_process(),
            processes=self.processes,
            holdings=self.holdings,
            shield=limited_shield.open,
            on_answer=lambda in_time: limited_shield.answered(in_time=in_time),
            front=self.claimer.front,
            on_connection=self.claimer.forget,
            start_jobs=self.handlers.start_jobs,
            on_names=self.news.on_names,
            next_look=self.news.next_look,
            on_idle=self.drain.bell.ring,
            stop=worker.stop,
            room=Doorbell(),
            batch_size=settings.batch_size,
            poll_interval=settings.dequeue_timeout,
        )
        self.promoter = Promoter(line=self.lines.dispatch, store=store, on_promoted=self.news.on_promoted)
        schedule_shield = ClaimShield(patience, longest)
        self.scheduler = Scheduler(
            line=self.lines.schedule,
            store=store,
            worker_id=self.worker_id,
            entries=registry.schedules,
            shield=schedule_shield.open,
            on_answer=lambda in_time: schedule_shield.answered(in_time=in_time),
            start_run=self.handlers.start_scheduled,
            on_lost_run=self.news.on_lost_run,
        )
        self._shields = (self.claimer.shield, limited_shield, schedule_shield)
        self.rescuer = Rescuer(line=self.lines.dispatch, store=store, sightings=Sightings(BLIND_AFTER * beat))
        self.pruner = Pruner(
            line=self.lines.maintenance,
            store=store,
            workers=lambda: self.news.peers + 1,
            retention=settings.retention,
        )
        self.heart = Heart(
            line=self.lines.heartbeat,
            store=store,
            worker_id=self.worker_id,
            holdings=self.holdings,
            lease=self.lease,
            on_pulse=self.news.on_pulse,
            on_new_session=self.news.on_new_session,
        )
        self.lines.on_reopened(self.heart.compare_soon)
        self.ear = Ear(
            line=self.lines.listen,
            channels=(store.channel, worker_channel(self.worker_id)),
            silence=lease,
            poll_interval=settings.dequeue_timeout,
            on_notification=self.news.on_notification,
            on_listening=self.news.on_listening,
        )

        self.registration = Registration(
            worker=worker,
            worker_id=self.worker_id,
            line=self.lines.heartbeat,
            lease=self.lease,
            on_limits=self.limited.define,
        )

    def begin_stop(self) -> None:
        """Nothing new is claimed any more: what still runs has the grace, and is cancelled then."""
        deadline = anyio.current_time() + self.worker.settings.shutdown_grace
        self.stop_scope.deadline = min(self.stop_scope.deadline, deadline)
        self.handlers.begin_stop()

    def begin_end(self) -> None:
        """The worker was declared dead: nothing new is claimed, and what has not started never does."""
        self.handlers.begin_stop()

    def hurry(self) -> None:
        """Let the claims under way, if any, end soon."""
        for shield in self._shields:
            shield.hurry()

    def interrupted(self) -> None:
        """Something around the jobs has just been cancelled: by the end of a grace, by a second signal, with the lease,
        by an error, or by the caller of ``run()``. All but the lease end the worker. What has not started is given back
        at once: threads may hold every slot for long.
        """
        if not self.lease.scope.cancel_called:
            self.worker.stop.hurry()
        self.handlers.begin_stop()
        self.overdue.expect_all()

    async def wind_up(self) -> None:
        """After a lost lease: see that everything of this term is stored or given back, however long it takes."""
        try:
            await self.worker.endings.wait_stored()
            await retrying(self.registration.leave, what="giving back the jobs of a lost lease", patience=PATIENCE)
        finally:
            self.lines.close()

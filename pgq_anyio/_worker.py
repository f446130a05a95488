"""The task tree of a worker: the one file that opens these groups and scopes.

::

    run_worker
    ├─ signals, last resort         to the very end; only if asked for
    ├─ watchdog                     to the very end; names what blocks the event loop
    ├─ completer                    stores outcomes; ends when its queue is closed and flushed
    └─ lifespan                     the user's resources
       └─ term                      one registration (worker_id); a new one after a lost lease
          ├─ overdue watch          to the end of the term; names handlers that ignore their cancellation
          ├─ heartbeat, listener    until the last job has ended
          └─ lease scope            deadline moved by each heartbeat
             ├─ process pool        if an entrypoint uses it
             └─ stop scope          deadline set once, when the stop begins
                ├─ lookout          tells that the jobs are being cancelled, by whatever
                ├─ late stop        if jobs go on although the lease is lost
                └─ jobs             every running job and scheduled run, each in its own CancelScope
                   └─ intake        cancelled first: claimers, promoter, scheduler, rescuer, pruner, drain

Nesting order is stop order. Services meet here only: they are handed functions and values. Memory changes in
synchronous functions (``Term``'s), never across an ``await``.

An error that no retry can mend cancels everything beside it and inside of that, and nothing is left but handlers that
ignore their cancellation. What bounds that end, or names who delays it, is *kept*: no error and no cancellation ends it
before all the rest has ended.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Protocol

import anyio
import attrs
from anyio import CancelScope
from anyio.abc import TaskGroup, TaskStatus

from ._db import retrying
from ._db.line import Line
from ._errors import in_a_line
from ._executors import ProcessPool
from ._registry import HandlerKind
from ._services.claimer import run_claimer
from ._services.completer import COMPLETION_SETTINGS, CompleterShield, run_completer
from ._services.drain import run_drain
from ._services.heartbeat import run_heartbeat
from ._services.last_resort import run_last_resort
from ._services.limited import run_limited
from ._services.listener import run_listener
from ._services.overdue import run_overdue_watch
from ._services.promoter import run_promoter
from ._services.pruner import run_pruner
from ._services.rescuer import run_rescuer
from ._services.scheduler import run_scheduler
from ._services.signals import run_signals
from ._services.watchdog import run_watchdog
from ._term import Term, Worker

logger = logging.getLogger("pgq_anyio.worker")

#: How long the last outcomes of a worker, and its farewell, may take (in seconds).
FAREWELL: Final = 5.0


async def run_worker(worker: Worker, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Run until the stop is requested, the queue is drained, or an error that no retry can mend."""
    completion = Line(worker.driver, "completion", COMPLETION_SETTINGS, cleanup_timeout=1.0)
    completion.on_reopened = worker.on_reopened
    shield = CompleterShield()
    guard = partial(_guard, worker)
    async with _open_keep(worker) as keep:
        if worker.settings.signals:
            await keep(run_signals, worker.settings.signals, worker.stop, name="signals")
        if worker.settings.exit_process:
            await keep(run_last_resort, worker.last_resort, name="last resort")
        if worker.watchdog is not None:
            await keep(run_watchdog, worker.watchdog, name="watchdog")
        async with anyio.create_task_group() as services:
            services.start_soon(
                partial(
                    guard,
                    run_completer,
                    completion,
                    worker.store,
                    worker.endings,
                    shield,
                    on_stored=worker.on_stored,
                    leaving=worker.is_leaving,
                    heard=worker.heard,
                ),
                name="completer",
            )
            opened, entry = anyio.Event(), CancelScope()
            try:
                with entry:
                    services.start_soon(_watch_entry, worker, opened, entry, name="lifespan's entry")
                    async with worker.lifespan() as worker.resources:
                        opened.set()
                        try:
                            with worker.outside_lifespan():
                                await _run_terms(worker, completion, task_status)
                        except BaseException:
                            worker.stop.fail()
                            raise
            finally:
                opened.set()
                shield.limit(FAREWELL)
                worker.endings.close()


async def _watch_entry(worker: Worker, opened: anyio.Event, entry: CancelScope) -> None:
    """Let a stop end the lifespan's entry, which may wait for something that is away. It goes on if it is open."""
    await until(opened.wait, worker.stop.wait_requested)
    if not opened.is_set():
        entry.cancel()


async def _run_terms(worker: Worker, completion: Line, task_status: TaskStatus[None]) -> None:
    """One term after the other: each loss of the lease begins a new one."""
    while not worker.stop.requested:
        term = worker.term = Term(worker)
        try:
            if await until(worker.stop.wait_requested, term.registration.register):
                await _run_term(term, task_status)
        finally:
            if term.lease.is_lost:
                completion.close()  # it may have gone silent with the heartbeat's; outcomes can be sent again
            await _say_farewell(term)  # noqa: ASYNC102  (shielded and bounded inside)
        if term.lease.is_lost and not worker.stop.requested:
            logger.warning("the lease was lost and its jobs have ended; registering anew")
            # What the old term still owes is stored, or given back, before anything is claimed again.
            wound_up = False
            try:
                wound_up = await until(worker.stop.wait_requested, term.wind_up)
            finally:
                if not wound_up:
                    await _say_farewell(term)  # noqa: ASYNC102  (shielded and bounded inside)


async def _run_term(term: Term, task_status: TaskStatus[None]) -> None:
    stop = term.worker.stop
    async with _open_keep(term.worker) as keep:
        await keep(run_overdue_watch, term.overdue, name="overdue watch")
        async with anyio.create_task_group() as upkeep:
            with term.lease.scope:
                if await until(stop.wait_requested, partial(_start_upkeep, term, keep, upkeep)):
                    async with _open_process_pool(term) as pool:
                        term.handlers.open_tools(pool)
                        with term.stop_scope:
                            stop.bind(term.stop_scope)
                            await _run_jobs(term, task_status)
            upkeep.cancel_scope.cancel()


async def _start_upkeep(term: Term, keep: _Keep, upkeep: TaskGroup) -> None:
    """What has to work before anything is claimed, and goes on until the last job has ended: the heartbeat even if all
    is cancelled, for handlers in threads may go on for long.
    """
    await keep(run_heartbeat, term.heart, name="heartbeat")
    await upkeep.start(_run_listener, term, name="listener")


async def _run_listener(term: Term, *, task_status: TaskStatus[None]) -> None:
    """Listen until the lease is lost: a worker that nobody counts as one has nothing to hear. It may be lost before
    anything is heard.
    """
    status = _Once(task_status)
    listen = partial(_guard, term.worker, run_listener, term.ear, task_status=status)
    await until(term.lease.revoked.wait, listen)
    status.started()


@attrs.define(eq=False)
class _Once(TaskStatus[None]):
    """Says once that a task has started."""

    _status: TaskStatus[None]
    _has_started: bool = attrs.field(default=False, init=False)

    def started(self, value: None = None) -> None:
        """Say so, if nobody has."""
        if not self._has_started:
            self._has_started = True
            self._status.started()


async def _run_jobs(term: Term, task_status: TaskStatus[None]) -> None:
    over = anyio.Event()
    async with anyio.create_task_group() as around_jobs:
        around_jobs.start_soon(_run_lookout, over, term.interrupted, name="lookout")
        async with anyio.create_task_group() as jobs:
            await _run_intake(term, jobs, task_status)
            if term.lease.is_lost:
                around_jobs.start_soon(_run_late_stop, term, over, name="late stop")
        over.set()


async def _run_intake(term: Term, jobs: TaskGroup, task_status: TaskStatus[None]) -> None:
    """Everything that brings in work, until the stop is requested, or another worker has declared this one dead."""
    term.handlers.open(jobs)
    guard = partial(_guard, term.worker)
    async with anyio.create_task_group() as intake:
        try:
            await intake.start(guard, run_pruner, term.pruner, name="pruner")
            intake.start_soon(guard, run_promoter, term.promoter, name="promoter")
            intake.start_soon(guard, run_rescuer, term.rescuer, name="rescuer")
            if term.worker.settings.mode == "drain":
                intake.start_soon(guard, run_drain, term.drain, name="drain")
            await intake.start(guard, run_scheduler, term.scheduler, name="scheduler")
            await intake.start(guard, run_limited, term.limited, name="limited claimer")
            await intake.start(guard, run_claimer, term.claimer, name="claimer")
            if not term.worker.reported:
                term.worker.reported = True
                task_status.started()
            if await until(term.worker.stop.wait_requested, term.lease.revoked.wait):
                term.begin_end()
            else:
                term.begin_stop()
        except BaseException:
            term.interrupted()
            raise
        finally:
            term.hurry()
        intake.cancel_scope.cancel()


async def _run_late_stop(term: Term, over: anyio.Event) -> None:
    """Let a stop reach jobs that go on although the lease is lost."""
    if not await until(term.worker.stop.wait_requested, over.wait):
        term.begin_stop()


class _Keep(Protocol):
    """Starts a task that is kept."""

    async def __call__(self, service: Callable[..., Coroutine[Any, Any, None]], *args: object, name: str) -> None: ...


@asynccontextmanager
async def _open_keep(worker: Worker) -> AsyncIterator[_Keep]:
    """Keep the tasks that are started with this until the block has been left, whatever is cancelled or fails."""
    scopes: list[CancelScope] = []

    async def run(
        scope: CancelScope,
        service: Callable[..., Coroutine[Any, Any, None]],
        *args: object,
        task_status: TaskStatus[None],
    ) -> None:
        with scope:
            await _guard(worker, service, *args, task_status=task_status)

    async def keep(service: Callable[..., Coroutine[Any, Any, None]], *args: object, name: str) -> None:
        scope = CancelScope()
        await tasks.start(run, scope, service, *args, name=name)
        scope.shield = True  # not before it has started: one that cannot must not hold up who waits for it
        scopes.append(scope)

    async with anyio.create_task_group() as tasks:
        try:
            yield keep
        finally:
            for scope in scopes:
                scope.cancel()


async def _guard(
    worker: Worker, service: Callable[..., Coroutine[Any, Any, None]], *args: object, **options: object
) -> None:
    """Run a service, and tell of an error of its own at once: the tasks around it may take long to end."""
    try:
        await service(*args, **options)
    except Exception as error:
        worker.service_failed(str(anyio.get_current_task().name), error)
        raise


async def _run_lookout(over: anyio.Event, on_cancelled: Callable[[], None]) -> None:
    """Tell if everything beside this task is cancelled before it is over."""
    try:
        await over.wait()
    except anyio.get_cancelled_exc_class():
        on_cancelled()
        raise


@asynccontextmanager
async def _open_process_pool(term: Term) -> AsyncIterator[ProcessPool | None]:
    """The pool of child processes, if an entrypoint or a schedule needs one."""
    registry = term.worker.registry
    if any(executor.kind is HandlerKind.PROCESS for executor in registry.executors()):
        async with ProcessPool() as pool:
            yield pool
    else:
        yield None


async def until(event: Callable[[], Awaitable[object]], function: Callable[[], Awaitable[object]]) -> bool:
    """Run ``function``, but no longer than until ``event`` has been waited for; whether it came to its end."""
    ended = False
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            await event()
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        await function()
        ended = True
        tasks.cancel_scope.cancel()
    return ended


async def _say_farewell(term: Term) -> None:
    """Store what is left and give up the registration, within bounds and whatever is being cancelled."""
    if not term.lines.heartbeat.opened:
        return  # it never reached the database
    with anyio.move_on_after(FAREWELL, shield=True) as scope:
        try:
            await term.worker.endings.wait_stored()
            await retrying(term.registration.leave, what="saying farewell", max_time=FAREWELL / 2)
        except Exception as error:  # the lease ends what cannot be said
            logger.error(
                "the worker could not say farewell to the database (%s); its lease will end by itself",
                in_a_line(error),
                exc_info=logger.isEnabledFor(logging.DEBUG),
            )
    if scope.cancelled_caught:
        logger.error(
            "the database did not answer the worker's farewell within %g s; its lease will end by itself", FAREWELL
        )
    term.lines.close()

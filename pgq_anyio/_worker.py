"""The task tree of a worker: the one file that opens these groups and scopes.

::

    run_worker
    ├─ signals          only if asked for
    ├─ watchdog         names what blocks the event loop
    ├─ completer        stores outcomes; ends when its queue is closed and flushed
    └─ lifespan         the user's resources
       └─ term          one registration (worker_id); a new one after a lost lease
          ├─ heartbeat, listener, overdue watch, last resort      until the last job has ended
          └─ lease scope                deadline moved by each heartbeat
             ├─ process pool            if an entrypoint uses it
             └─ stop scope              deadline set once, when the stop begins
                └─ jobs                 every running job and scheduled run, each in its own CancelScope
                   └─ intake            cancelled first: claimers, promoter, scheduler, rescuer, pruner, drain

Nesting order is stop order. Services meet here only: they are handed functions and values. Memory changes in
synchronous functions (``Term``'s), never across an ``await``.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import anyio
from anyio.abc import TaskGroup, TaskStatus

from ._db import retrying
from ._db.line import Line
from ._errors import leaves
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
from ._stop import Stop
from ._term import Term, Worker

logger = logging.getLogger("pgq_anyio.worker")

#: How long the last outcomes of a worker, and its farewell, may take (in seconds).
FAREWELL: Final = 5.0


async def run_worker(worker: Worker, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Run until the stop is requested, the queue is drained, or an error that no retry can mend."""
    completion = Line(worker.driver, "completion", COMPLETION_SETTINGS, cleanup_timeout=1.0)
    shield = CompleterShield()
    async with anyio.create_task_group() as outermost:
        if worker.settings.signals:
            await outermost.start(run_signals, worker.settings.signals, worker.stop, name="signals")
        if worker.settings.block_warning is not None:
            outermost.start_soon(run_watchdog, worker.settings.block_warning, name="watchdog")
        async with anyio.create_task_group() as services:
            services.start_soon(
                partial(
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
            try:
                async with worker.lifespan() as worker.resources:
                    await _run_terms(worker, completion, task_status)
            finally:
                shield.limit(FAREWELL)
                worker.endings.close()
        outermost.cancel_scope.cancel()


async def _run_terms(worker: Worker, completion: Line, task_status: TaskStatus[None]) -> None:
    """One term after the other: each loss of the lease begins a new one."""
    while not worker.stop.requested:
        term = worker.term = Term(worker)
        try:
            if await _until_stopped(worker.stop, term.register):
                await _run_term(term, task_status)
        finally:
            if term.lease_scope.cancel_called:
                completion.close()  # it may have gone silent with the heartbeat's; outcomes can be sent again
            await _say_farewell(term)  # noqa: ASYNC102  (shielded and bounded inside)
        if term.lease_scope.cancel_called and not worker.stop.requested:
            logger.warning("the lease was lost and its jobs have ended; registering anew")
            # What the old term still owes is stored, or given back, before anything is claimed again.
            if not await _until_stopped(worker.stop, term.wind_up):
                return


async def _run_term(term: Term, task_status: TaskStatus[None]) -> None:
    stop = term.worker.stop
    async with anyio.create_task_group() as upkeep:
        upkeep.start_soon(run_overdue_watch, term.overdue, name="overdue watch")
        if term.worker.settings.exit_process:
            upkeep.start_soon(run_last_resort, term.last_resort, name="last resort")
        with term.lease_scope:
            if await _until_stopped(stop, partial(_start_upkeep, term, upkeep)):
                async with _open_process_pool(term) as pool:
                    term.open_tools(pool)
                    with term.stop_scope:
                        stop.bind(term.stop_scope)
                        async with anyio.create_task_group() as jobs:
                            await _run_intake(term, jobs, task_status)
        upkeep.cancel_scope.cancel()


async def _start_upkeep(term: Term, upkeep: TaskGroup) -> None:
    """What has to work before anything is claimed, and goes on until the last job has ended."""
    await upkeep.start(run_heartbeat, term.heart, name="heartbeat")
    await upkeep.start(run_listener, term.ear, name="listener")


async def _run_intake(term: Term, jobs: TaskGroup, task_status: TaskStatus[None]) -> None:
    """Everything that brings in work, until the stop is requested."""
    term.jobs = jobs
    async with anyio.create_task_group() as intake:
        try:
            await intake.start(run_pruner, term.pruner, name="pruner")
            intake.start_soon(run_promoter, term.promoter, name="promoter")
            intake.start_soon(run_rescuer, term.rescuer, name="rescuer")
            if term.worker.settings.mode == "drain":
                intake.start_soon(run_drain, term.drain, name="drain")
            await intake.start(run_scheduler, term.scheduler, name="scheduler")
            await intake.start(run_limited, term.limited, name="limited claimer")
            await intake.start(run_claimer, term.claimer, name="claimer")
            if not term.worker.reported:
                term.worker.reported = True
                task_status.started()
            await term.worker.stop.wait_requested()
            term.begin_stop(anyio.current_time() + term.worker.settings.shutdown_grace)
        except anyio.get_cancelled_exc_class():
            term.interrupted()
            raise
        finally:
            term.hurry()
        intake.cancel_scope.cancel()


@asynccontextmanager
async def _open_process_pool(term: Term) -> AsyncIterator[ProcessPool | None]:
    """The pool of child processes, if an entrypoint or a schedule needs one."""
    registry = term.worker.registry
    if any(executor.kind is HandlerKind.PROCESS for executor in registry.executors()):
        async with ProcessPool() as pool:
            yield pool
    else:
        yield None


async def _until_stopped(stop: Stop, function: Callable[[], Awaitable[object]]) -> bool:
    """Run ``function``, but no longer than until the stop is requested; whether it came to its end."""
    ended = False
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            await stop.wait_requested()
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        await function()
        ended = True
        tasks.cancel_scope.cancel()
    return ended


async def _say_farewell(term: Term) -> None:
    """Store what is left and give up the registration, within bounds and whatever is being cancelled."""
    if not term.heartbeat_line.opened:
        return  # it never reached the database
    with anyio.move_on_after(FAREWELL, shield=True) as scope:
        try:
            await term.worker.endings.wait_stored()
            await retrying(term.leave_once, what="saying farewell", max_time=FAREWELL / 2)
        except Exception as error:  # the lease ends what cannot be said
            leaf = next(leaves(error))
            logger.error(
                "the worker could not say farewell to the database (%s: %s); its lease will end by itself",
                type(leaf).__name__,
                str(leaf).partition("\n")[0],
                exc_info=logger.isEnabledFor(logging.DEBUG),
            )
    if scope.cancelled_caught:
        logger.error(
            "the database did not answer the worker's farewell within %g s; its lease will end by itself", FAREWELL
        )
    term.close()

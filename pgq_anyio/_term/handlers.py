"""What starts and ends the handlers of a term: those of jobs, and those of scheduled runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC
from functools import partial
from typing import TYPE_CHECKING

import attrs
from anyio import CapacityLimiter
from anyio.abc import TaskGroup

from .._context import Context, ExecutionTools
from .._db.lone_task import end_alone
from .._executors import ProcessPool
from .._holdings import Run
from .._lifecycle import GIVEN_BACK, UNSTARTED_GIVEN_BACK, Outcome
from .._models import Held, Job, Schedule
from .._registry import HandlerKind, ScheduleEntry
from .._scheduled import ScheduledRun
from .._services.runner import run_job, run_schedule, unstarted_outcome
from .._services.slots import Slots
from .._timetable import HeldSchedule, Wanted

if TYPE_CHECKING:
    from .term import Term


@attrs.define(eq=False)
class Handlers:
    """Starts them in the group of the jobs, while that is open."""

    term: Term
    _tools: ExecutionTools | None = attrs.field(default=None, init=False)
    _tasks: TaskGroup | None = attrs.field(default=None, init=False)
    _slots: Slots | None = attrs.field(default=None, init=False)
    _schedule_threads: CapacityLimiter = attrs.field(factory=lambda: CapacityLimiter(math.inf), init=False)

    def open_tools(self, process_pool: ProcessPool | None) -> None:
        """Set what executors run handlers with."""
        settings = self.term.worker.settings
        self.term.processes.size = 0 if process_pool is None else process_pool.max_workers
        self._tools = ExecutionTools(CapacityLimiter(settings.max_concurrency), process_pool, settings.cancel_grace)

    def open(self, tasks: TaskGroup) -> None:
        """Set the group in which handlers run."""
        outer = self.term.outer
        self._tasks = tasks
        self._slots = Slots(
            tasks,
            self.term.holdings,
            partial(run_job, end=self._end_job),
            lambda: outer.reason() is not None,
            self.term.worker.stop,
            self._give_back,
        )

    def start_jobs(self, jobs: Sequence[Job], claim_no: int) -> None:
        """Start what a claim has brought, or end it unstarted if the worker stops."""
        assert self._tools is not None, "jobs are claimed while the tools are open"
        assert self._slots is not None, "jobs are claimed inside the jobs group"
        term, worker = self.term, self.term.worker
        runs: list[Run] = []
        limited = term.limited.names
        for job in jobs:
            entrypoint = worker.registry.entrypoints[job.entrypoint]
            context = Context(
                job=job,
                schedule=None,
                resources=worker.resources,
                tools=self._tools,
                outer=term.outer,
            )
            is_limited = job.entrypoint in limited and limited[job.entrypoint].is_limited
            run = Run(Held(job, term.worker_id, claim_no), entrypoint, context, is_limited)
            term.holdings.add(run)
            if entrypoint.executor.kind is HandlerKind.PROCESS:
                term.processes.take()
            if worker.stop.requested:
                self._end_job(run, unstarted_outcome(context))
            else:
                runs.append(run)
        if runs:
            worker.watch()
        self._slots.start(runs)

    def _end_job(self, run: Run, outcome: Outcome) -> None:
        self.term.holdings.handler_ended(run)
        if run.entrypoint.executor.kind is HandlerKind.PROCESS:
            self.term.processes.give_back(started=outcome is not UNSTARTED_GIVEN_BACK)
        self.term.worker.endings.put(run.held, outcome, urgent=run.is_limited)
        if self._slots is not None:
            self._slots.go_on()

    def _give_back(self, runs: Sequence[Run]) -> None:
        """Jobs that were claimed ahead found no slot in time."""
        self.term.claimer.claim_no_more_ahead()
        for run in runs:
            self._end_job(run, unstarted_outcome(run.context))

    def start_scheduled(self, entry: ScheduleEntry, held: HeldSchedule, wanted: Wanted) -> None:
        """Start the run of an occurrence that was taken, or give it back if the worker stops."""
        assert self._tools is not None, "occurrences are taken while the tools are open"
        assert self._tasks is not None, "occurrences are taken inside the jobs group"
        term, worker = self.term, self.term.worker
        schedule = Schedule(entry.name, entry.expression, entry.cron.timezone, wanted.due_at.astimezone(UTC))
        context = Context(
            job=None,
            schedule=schedule,
            resources=worker.resources,
            # Scheduled runs never wait behind jobs, nor do they take their threads.
            tools=attrs.evolve(self._tools, thread_limiter=self._schedule_threads),
            outer=term.outer,
        )
        run = ScheduledRun(held, entry, schedule, context)
        term.scheduler.add(run)
        if entry.executor.kind is HandlerKind.PROCESS:
            term.processes.take()
        if worker.stop.requested:
            self._end_scheduled(run, GIVEN_BACK)
        else:
            worker.watch()
            # As jobs are, by their slots: a run that somebody cancels by asyncio's own ``cancel()`` ends alone.
            self._tasks.start_soon(end_alone, run_schedule, run, self._end_scheduled, name=f"schedule:{entry.name}")

    def _end_scheduled(self, run: ScheduledRun, outcome: Outcome) -> None:
        self.term.scheduler.handler_ended(run)
        if run.entry.executor.kind is HandlerKind.PROCESS:
            self.term.processes.give_back(started=True)
        self.term.worker.endings.put(run.held, outcome)

    @property
    def are_running(self) -> bool:
        """Whether there is a job or a scheduled run whose handler has not ended."""
        return self.term.holdings.busy > 0 or self.term.scheduler.is_busy

    def running(self) -> list[Run | ScheduledRun]:
        """Jobs and scheduled runs whose handler has not ended."""
        return [*self.term.holdings.running(), *self.term.scheduler.running()]

    def begin_stop(self) -> None:
        """Give back what has not started yet."""
        if self._slots is not None:
            self._slots.give_back()
        for run in self.running():
            run.context.end_wait()

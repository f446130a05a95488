"""``PgQueuer``: the app that users write their handlers against, and the way to run it.

Building one opens nothing and needs no event loop, so that it can stand at the top of a module.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskStatus

from ._client._arguments import check_id
from ._context import Context, find_current_context
from ._cron import CronSchedule
from ._database import open_database
from ._db import PsycopgDriver
from ._durations import count, seconds
from ._errors import ConfigurationError, first_leaf, shown
from ._executors import AbstractEntrypointExecutor, EntrypointExecutor, ThreadExecutor
from ._lifespan import Lifespan, check_lifespan, open_lifespan
from ._limits import check_limits
from ._models import JobId
from ._registry import (
    MIN_LEASE,
    Entrypoint,
    Executor,
    ExecutorFactory,
    ExecutorParameters,
    Registry,
    ScheduleEntry,
    check_expression,
    check_name,
    is_async_callable,
    wants_context,
)
from ._retention import WEEK, RetentionLike
from ._retry import RetryPolicy
from ._run_settings import Mode, OnLeaseLost, RunSettings, check_run_settings
from ._stop import Stop
from ._store._sql import DEFAULT_SCHEMA, Store
from ._term import Worker
from ._timetable import Missed
from ._worker import run_worker, until

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])
Source = str | PsycopgDriver | None


class PgQueuer:
    """An app: its entrypoints, its schedules, and the worker that runs them.

    :param source: a DSN, a :class:`PsycopgDriver`, or ``None`` to look in the environment: ``PGQ_ANYIO_DSN``,
        ``DATABASE_URL``, libpq's ``PG*`` variables, and else an embedded database (extra ``embedded``). With a DSN from
        anywhere, ``PGQ_ANYIO_DIRECT_DSN`` names a way around its pooler, for notifications.
    :param schema: the PostgreSQL schema that holds the tables. Defaults to ``pgq_anyio``.
    :param lifespan: called without arguments when a worker starts; the async context manager that it gives is entered
        before the first job and left after the last one; its value is ``ctx.resources``
    :raises ConfigurationError: if the schema cannot be a name in PostgreSQL, or ``lifespan`` is none
    """

    def __init__(
        self,
        source: Source = None,
        *,
        schema: str = DEFAULT_SCHEMA,
        lifespan: Lifespan | None = None,
    ) -> None:
        if source is not None and not isinstance(source, str | PsycopgDriver):
            raise ConfigurationError(f"a PgQueuer takes a DSN or a PsycopgDriver, not {type(source).__name__}")
        if lifespan is not None:
            check_lifespan(lifespan)
        self._source = source
        self._direct_dsn: str | None = None
        self._store = Store(schema)
        self._lifespan = lifespan
        self._registry = Registry()
        #: while the app is being run; the worker is there once the database is open
        self._stop: Stop | None = None
        self._worker: Worker | None = None

    def __repr__(self) -> str:
        names = ", ".join(self._registry.entrypoints) or "nothing yet"
        return f"<PgQueuer schema={self.schema!r} serving {names}>"

    @property
    def schema(self) -> str:
        """The PostgreSQL schema that holds the tables."""
        return self._store.schema

    # -- registration ----------------------------------------------------------------------------------------------

    def entrypoint(
        self,
        name: str,
        *,
        requests_per_second: float = math.inf,
        concurrency_limit: int = 0,
        serialized_dispatch: bool = False,
        retry_timer: float | timedelta | None = None,
        timeout: float | timedelta | None = None,
        max_attempts: int = 1,
        max_crashes: int = 5,
        retry_policy: RetryPolicy | None = None,
        own_task: bool = False,
        executor_factory: ExecutorFactory | None = None,
    ) -> Callable[[HandlerT], HandlerT]:
        """Register a handler of jobs. Used as a decorator; the function is returned unchanged.

        A handler takes the job, or the job and its context (a second positional parameter without a default). Sync
        functions run in threads.

        The limits hold exactly, for all workers of the schema together. If workers register different limits for one
        name, those of the last one to start hold for all, and a warning names both.

        :param name: the name that jobs are enqueued under, unique in the app
        :param requests_per_second: how many jobs may start in a second, at an even pace: 0.5 is one every 2 s. Every
            attempt counts. Defaults to ``inf``, any number.
        :param concurrency_limit: how many jobs may run at once. A job that is being cancelled counts until its handler
            has ended. Defaults to 0, any number.
        :param serialized_dispatch: run one job at a time, strictly by priority and then in the order of enqueueing
        :param retry_timer: a sign of life of the worker is expected within this time (in seconds), or ``None`` for the
            worker's ``lease``; the shortest one of all entrypoints becomes the lease. At least 2.
        :param timeout: a run is cancelled and counts as failed after this time (in seconds); ``None`` never
        :param max_attempts: how many attempts may fail before the job does. Defaults to 1.
        :param max_crashes: how many workers may die while they run a job before it fails. Defaults to 5.
        :param retry_policy: when, and for which errors, another attempt is made. Defaults to ``RetryPolicy()``.
        :param own_task: whether each job gets a task of its own. By default async jobs share tasks, one after the
            other, each in a fresh scope and a fresh contextvars context; what a library keeps per task (such as the
            owner of a lock that is not released) would be seen by the next job.
        :param executor_factory: called with the :class:`ExecutorParameters`, gives the executor of this entrypoint
        :raises RuntimeError: if the name is registered already
        :raises ConfigurationError: if an option cannot be used; the message names it
        """
        check_name("an entrypoint", name)
        limits = check_limits(
            requests_per_second=requests_per_second,
            concurrency_limit=concurrency_limit,
            serialized_dispatch=serialized_dispatch,
        )
        checked_timer = None if retry_timer is None else seconds("retry_timer", retry_timer, at_least=MIN_LEASE)
        checked_timeout = None if timeout is None else seconds("timeout", timeout, above=0.0)
        attempts = count("max_attempts", max_attempts)
        crashes = count("max_crashes", max_crashes)
        policy = RetryPolicy() if retry_policy is None else retry_policy
        if not isinstance(policy, RetryPolicy):
            raise ConfigurationError(f"retry_policy must be a RetryPolicy, not {shown(policy)}")
        if not isinstance(own_task, bool):
            raise ConfigurationError(f"own_task must be True or False, not {shown(own_task)}")
        what = f"the handler of {name!r}"

        def register(function: HandlerT) -> HandlerT:
            parameters = ExecutorParameters(
                name=name,
                func=function,
                is_async=is_async_callable(function, what),
                wants_context=wants_context(function, what),
                timeout=checked_timeout,
                max_attempts=attempts,
                max_crashes=crashes,
                retry_timer=checked_timer,
                requests_per_second=limits.requests_per_second,
                concurrency_limit=limits.concurrency_limit,
                serialized_dispatch=limits.serialized,
            )
            self._registry.add_entrypoint(
                Entrypoint(
                    name=name,
                    executor=_make_executor(parameters, executor_factory),
                    timeout=checked_timeout,
                    max_attempts=attempts,
                    max_crashes=crashes,
                    retry_timer=checked_timer,
                    retry_policy=policy,
                    limits=limits,
                    own_task=own_task,
                )
            )
            return function

        return register

    def schedule(
        self,
        name: str,
        expression: str,
        *,
        timezone: str = "UTC",
        missed: str = "coalesce",
        executor_factory: ExecutorFactory | None = None,
    ) -> Callable[[HandlerT], HandlerT]:
        """Register a handler that runs at the times of a cron expression, once in the whole fleet. Used as a decorator.

        A handler takes the :class:`Schedule`, or the schedule and its context. A run that is longer than its period
        does not overlap the next one. An exception is recorded and the next occurrence runs; so does ``Retry`` or
        ``Snooze``, which an occurrence has no use for.

        :param name: a name; with another expression it can be used again
        :param expression: five cron fields, six with seconds last, or a form like ``@hourly``
        :param timezone: the IANA time zone that the fields are read in. Defaults to UTC.
        :param missed: what to do with occurrences that passed while no worker was there or the run before was still
            going: ``"coalesce"`` (one run, for the latest; the default), ``"skip"`` (none), ``"catch_up"`` (a run for
            each, one after the other)
        :param executor_factory: called with the :class:`ExecutorParameters`, gives the executor of this schedule
        :raises RuntimeError: if this name is registered with this expression already
        :raises ConfigurationError: if the expression, the time zone or another option cannot be used
        """
        check_name("a schedule", name)
        cron = CronSchedule.parse(expression, timezone)
        expression = check_expression(cron.expression)
        if missed not in [*Missed]:
            raise ConfigurationError(f"missed must be 'coalesce', 'skip' or 'catch_up', not {shown(missed)}")
        what = f"the handler of the schedule {name!r}"

        def register(function: HandlerT) -> HandlerT:
            parameters = ExecutorParameters(
                name=name,
                func=function,
                is_async=is_async_callable(function, what),
                wants_context=wants_context(function, what),
                expression=expression,
            )
            executor = _make_executor(parameters, executor_factory)
            self._registry.add_schedule(
                ScheduleEntry(name=name, expression=expression, cron=cron, missed=Missed(missed), executor=executor)
            )
            return function

        return register

    # -- running ---------------------------------------------------------------------------------------------------

    async def run(
        self,
        *,
        dequeue_timeout: float | timedelta = 30.0,
        batch_size: int = 500,
        max_concurrency: int = 100,
        mode: Mode = "continuous",
        lease: float | timedelta = 30.0,
        on_lease_lost: OnLeaseLost = "cancel",
        shutdown_grace: float | timedelta = 30.0,
        cancel_grace: float | timedelta = 5.0,
        signals: Sequence[signal.Signals] = (),
        block_warning: float | timedelta | None = 1.0,
        retention: RetentionLike = WEEK,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run a worker until it is stopped, on trio or asyncio. Never returns while a handler runs.

        ``await tg.start(app.run)`` returns once the worker is registered and listens. Cancelling the scope around
        this call cancels the jobs at once, gives them back, and re-raises the cancellation.

        :param dequeue_timeout: the longest pause between two looks at the queue (in seconds); notifications make it
            shorter
        :param batch_size: how many jobs are claimed at a time at most. Usually it is as many as can start at once. Of
            names without limits a worker claims more if its jobs are so short that they start before it could ask for
            more; what has not started a moment later is given back
        :param max_concurrency: how many handlers run at once in this worker. What it may hold of a short queue, while
            others idle, grows with it, and so do threads and memory; that is why it is no larger
        :param mode: ``"continuous"``, or ``"drain"`` to return when no job is left for the app's names
        :param lease: a worker without a sign of life for this long is declared dead by the others (in seconds, at
            least 2)
        :param on_lease_lost: ``"cancel"`` to cancel the jobs shortly before the lease is over, so that none is live
            twice; or ``"continue"`` to let them go on. The worker then keeps them if a heartbeat gets through before
            it is declared dead. If not, it claims nothing more until they have ended, and drops what they come to; the
            same jobs run elsewhere meanwhile, beside any limit
        :param shutdown_grace: how long running jobs may go on after a request to stop (in seconds)
        :param cancel_grace: how long a handler may take to end after it was cancelled (in seconds)
        :param block_warning: a handler that blocks the event loop for longer than this, or half as long again at most,
            is logged with its stack (in seconds), ``None`` never
        :param retention: how long records of jobs are kept after their end (in seconds, or a ``timedelta``); or a
            mapping of such times for ``successful``, ``failed`` and ``cancelled``, in which what is left out is seven
            days. Workers look for old records once an hour, and once a minute if that is needed. A whole day is dropped
            up to a day after its time. Of workers with different times the shortest holds. Defaults to seven days.
        :param signals: signals that stop the worker: the first gracefully, the second at once. None by default.
        :raises RuntimeError: if this app is being run already
        :raises ConfigurationError: if an option cannot be used; the message names it
        :raises SchemaError: if the schema in the database does not fit
        :raises psycopg.OperationalError: if the database cannot be reached
        """
        settings = check_run_settings(
            dequeue_timeout=dequeue_timeout,
            batch_size=batch_size,
            max_concurrency=max_concurrency,
            mode=mode,
            lease=lease,
            on_lease_lost=on_lease_lost,
            shutdown_grace=shutdown_grace,
            cancel_grace=cancel_grace,
            signals=signals,
            block_warning=block_warning,
            retention=retention,
            exit_process=False,
        )
        await self._run(settings, task_status=task_status)

    def _redirect(self, dsn: str | None, schema: str | None, direct_dsn: str | None = None) -> None:
        """Run on another database or schema than the app was built with (options of the CLI)."""
        self._direct_dsn = direct_dsn
        if dsn is not None:
            self._source = dsn
        if schema is not None:
            self._store = Store(schema)

    async def _run(
        self,
        settings: RunSettings,
        *,
        migrate_first: bool = False,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """``run`` with settings that were checked already; ``migrate_first`` brings the schema up to date."""
        if self._stop is not None:
            raise RuntimeError("this PgQueuer is being run already; an app runs one worker at a time")
        for executor in self._registry.executors():
            executor.check()
        stop = self._stop = Stop()
        try:
            async with AsyncExitStack() as stack:
                opening = partial(self._open_worker, stack, settings, stop, migrate_first=migrate_first)
                try:
                    if await until(stop.wait_requested, opening):
                        assert self._worker is not None, "it was opened"
                        await run_worker(self._worker, task_status=task_status)
                finally:
                    self._worker = None  # before its driver is closed
        except BaseExceptionGroup as group:
            leaf = first_leaf(group, cancelled=anyio.get_cancelled_exc_class())
            raise leaf from leaf.__cause__
        finally:
            self._stop = None

    async def _open_worker(
        self, stack: AsyncExitStack, settings: RunSettings, stop: Stop, *, migrate_first: bool
    ) -> None:
        database = open_database(self._source, self._store, direct_dsn=self._direct_dsn, migrate_first=migrate_first)
        self._worker = Worker(
            registry=self._registry,
            driver=await stack.enter_async_context(database),
            store=self._store,
            settings=settings,
            stop=stop,
            lifespan=partial(open_lifespan, self._lifespan),
        )

    def stop(self) -> None:
        """Ask the running worker to stop gracefully.

        Safe from any thread, from signal handlers and callbacks of the event loop, and any number of times. Never
        waits. Does nothing before ``run()``.
        """
        stop = self._stop
        if stop is not None:
            stop.request_from_anywhere()

    def get_context(self, job_id: JobId) -> Context:
        """The context of a job that this worker is running. A handler may ask for its own in any case, also where
        :func:`pgq_anyio.testing.run_job` calls it.

        :raises LookupError: if no such job runs here
        :raises ConfigurationError: if it is no whole number
        """
        check_id(job_id)
        own = find_current_context()
        if own is not None and own.job_id == job_id:
            return own
        worker = self._worker
        run = None if worker is None or worker.term is None else worker.term.holdings.find(job_id)
        if run is None:
            raise LookupError(f"no job {shown(job_id)} is running in this worker")
        return run.context


def _make_executor(parameters: ExecutorParameters, factory: ExecutorFactory | None) -> Executor:
    if factory is None:
        return EntrypointExecutor(parameters) if parameters.is_async else ThreadExecutor(parameters)
    if not callable(factory):
        raise ConfigurationError(
            f"executor_factory must be an executor class, or a function like one, not {shown(factory)}"
        )
    executor = factory(parameters)
    if not isinstance(executor, AbstractEntrypointExecutor):
        raise ConfigurationError(
            f"the executor_factory of {parameters.name!r} gave {executor!r}, which is no AbstractEntrypointExecutor"
        )
    return executor

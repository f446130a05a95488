"""``pgq-anyio run``: load an app and run its worker until a signal, or until nothing is left to do.

``--dsn``, ``--direct-dsn`` and ``--schema`` go before what the app was built with: the same module runs against another
database without a change. A driver or ``Queries`` that the user's code opened by itself keeps its own.

A signal that comes before the worker listens ends the start; nothing was running, so that is a clean stop like any.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import attrs
import typer
from anyio.abc import TaskStatus

from .._app import PgQueuer
from .._db import PsycopgDriver
from .._run_settings import OnLeaseLost, RunSettings, check_run_settings
from .._settings import DatabaseSource, find_database, read_dsn
from .backends import Backend, BackendName, choose_backend, python_version, run_on
from .draining import show_draining
from .interrupts import Interrupts, stop_signals
from .loading import Target, load_target, open_app
from .logs import LogFormat, LogLevel, set_up_logging
from .options import Dsn, Invocation, Traceback, describe, invocation_of, option_name, parse_duration, parse_retention
from .show import name_list, version

logger = logging.getLogger("pgq_anyio.run")

Duration = partial(typer.Option, parser=parse_duration, metavar="DURATION")


def run(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(metavar="MODULE:APP", help="The app, or a function or async context manager that gives one."),
    ],
    backend: Annotated[BackendName, typer.Option(help="The event loop.")] = BackendName.ASYNCIO,
    uvloop: Annotated[
        bool | None,
        typer.Option(
            "--uvloop/--no-uvloop", help="Use uvloop, or not. Default: if it is installed.", show_default=False
        ),
    ] = None,
    dsn: Dsn = None,
    direct_dsn: Annotated[
        str | None,
        typer.Option(
            "--direct-dsn",
            metavar="DSN",
            help="If the database is behind a transaction pooler: a way around it, for notifications. "
            "Else PGQ_ANYIO_DIRECT_DSN, or none: then work is found by polling.",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option("--schema", metavar="NAME", help="The PostgreSQL schema. Default: the app's.", show_default=False),
    ] = None,
    max_concurrency: Annotated[int, typer.Option(help="Handlers that run at once in this worker.")] = 100,
    dequeue_timeout: Annotated[Any, Duration(help="The longest pause between two looks at the queue.")] = "30s",
    lease: Annotated[Any, Duration(help="Without a sign of life for so long the worker counts as dead.")] = "30s",
    on_lease_lost: Annotated[OnLeaseLost, typer.Option(help="What becomes of running jobs then.")] = "cancel",
    shutdown_grace: Annotated[Any, Duration(help="How long jobs may go on after the first signal.")] = "30s",
    cancel_grace: Annotated[Any, Duration(help="How long handlers may take to end once cancelled.")] = "5s",
    block_warning: Annotated[Any, Duration(help="How long handlers may block the event loop unreported.")] = "1s",
    retention: Annotated[
        Any,
        typer.Option(
            parser=parse_retention,
            metavar="DURATION",
            help="How long finished jobs are kept: 7d, or successful=1h,failed=30d.",
        ),
    ] = "7d",
    drain: Annotated[bool, typer.Option("--drain", help="Exit when no job is left for the app's names.")] = False,
    migrate: Annotated[bool, typer.Option("--migrate", help="Bring the schema up to date first.")] = False,
    log_level: Annotated[LogLevel, typer.Option(help="The least that is logged.")] = LogLevel.INFO,
    log_format: Annotated[LogFormat, typer.Option(help="How it is logged.")] = LogFormat.TEXT,
    traceback: Traceback = False,
) -> None:
    """Run a worker: its jobs and its schedules, until Ctrl-C or SIGTERM."""
    set_up_logging(log_level, log_format)
    invocation = invocation_of(ctx)
    invocation.logs_errors = log_format is LogFormat.JSON
    chosen = choose_backend(backend, uvloop)
    settings = check_run_settings(
        dequeue_timeout=dequeue_timeout,
        batch_size=500,
        max_concurrency=max_concurrency,
        mode="drain" if drain else "continuous",
        lease=lease,
        on_lease_lost=on_lease_lost,
        shutdown_grace=shutdown_grace,
        cancel_grace=cancel_grace,
        signals=stop_signals(),
        block_warning=block_warning,
        retention=retention,
        exit_process=True,
        called=option_name,
    )
    if dsn is not None:
        find_database(dsn, os.environ)  # a bad one is told before anything is loaded
    if direct_dsn is not None:
        read_dsn(direct_dsn, "--direct-dsn")
    interrupts, ready = Interrupts(), _Ready()
    try:
        with interrupts.handled():
            service = _Service(
                target=load_target(target),  # which may import for long
                dsn=dsn,
                direct_dsn=direct_dsn,
                schema=schema,
                settings=settings,
                migrate=migrate,
                backend=chosen,
                invocation=invocation,
                announce=_print_line if log_format is LogFormat.TEXT else logger.info,
                show_progress=drain and log_format is LogFormat.TEXT and sys.stderr.isatty(),
                ready=ready,
            )
            run_on(chosen, service.serve, interrupts)
    except KeyboardInterrupt:
        logger.info("stopped" if ready.is_set else "stopped before the worker was running")


@attrs.define(eq=False)
class _Ready(TaskStatus[None]):
    """Hears that the worker is registered and listens."""

    is_set: bool = False

    def started(self, value: None = None) -> None:
        """Say so."""
        self.is_set = True
        logger.info("ready: registered and listening")


@attrs.frozen(kw_only=True)
class _Service:
    """All that was decided before the event loop began."""

    target: Target
    dsn: str | None
    direct_dsn: str | None
    schema: str | None
    settings: RunSettings
    migrate: bool
    backend: Backend
    invocation: Invocation
    announce: Callable[[str], None]
    show_progress: bool
    ready: _Ready

    async def serve(self) -> None:
        """Open the app and run its worker, in this task."""
        async with open_app(self.target) as app:
            app._redirect(self.dsn, self.schema, self.direct_dsn)
            source = _find_source(app, from_option=self.dsn is not None)
            self.invocation.database = describe(source)
            for line in _introduce(app, source, self.backend, self.settings):
                self.announce(line)
            run = partial(app._run, self.settings, migrate_first=self.migrate, task_status=self.ready)
            if self.show_progress:
                await show_draining(app, run)
            else:
                await run()
        logger.info("stopped")


def _find_source(app: PgQueuer, *, from_option: bool) -> DatabaseSource:
    source = app._source
    if isinstance(source, PsycopgDriver):
        return DatabaseSource(source.conninfo, "the app's driver")
    return find_database(source, os.environ, argument_name="--dsn" if from_option else "the app's DSN")


def _introduce(app: PgQueuer, source: DatabaseSource, backend: Backend, settings: RunSettings) -> list[str]:
    """What runs here, in a few lines."""
    jobs = list(app._registry.entrypoints)
    schedules = [f"{name} ({expression})" for name, expression in app._registry.schedules]
    lines = [
        f"pgq_anyio {version()} on {backend}, {python_version()}",
        f"database:  {describe(source)}, schema {app.schema}",
        f"jobs:      {name_list(jobs) or 'none'}",
    ]
    if schedules:
        lines.append(f"schedules: {name_list(schedules)}")
    if not jobs and not schedules:
        lines.append("warning:   nothing is registered: is the module imported that has the @app.entrypoint functions?")
    lines.append(
        f"to stop:   Ctrl-C or SIGTERM lets running jobs end within {settings.shutdown_grace:g} s; "
        "a second one cancels them"
    )
    return lines


def _print_line(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()

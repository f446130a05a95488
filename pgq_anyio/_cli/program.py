"""The program ``pgq-anyio``: its commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import logging
import sys
from typing import Any

import psycopg
import typer
from typer.core import TyperGroup

from . import demo, grants, jobs, operate, produce, run, schedules, schema
from .backends import python_version
from .messages import explain
from .options import Invocation, invocation_of
from .show import version

logger = logging.getLogger("pgq_anyio.run")

#: The command line cannot be read: ``UsageError``, which newer versions of typer have a copy of instead of click's.
_Unreadable: type[Exception] = typer.BadParameter.__mro__[1]


class _Program(TyperGroup):
    """Tells errors of all commands in one way."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, _Unreadable, BrokenPipeError):
            raise
        except Exception as error:
            invocation = invocation_of(ctx)
            told = explain(error, database=invocation.database, with_traceback=invocation.traceback)
            if invocation.logs_errors:
                logger.error("%s", told.message, exc_info=error if told.traceback is not None else None)
            else:
                sys.stderr.write(f"{told.traceback or ''}pgq-anyio: {told.message}\n")
            raise typer.Exit(told.exit_code) from None


app = typer.Typer(
    name="pgq-anyio",
    cls=_Program,
    help="A PostgreSQL job queue and cron scheduler whose design is structured concurrency.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"obj": None, "help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"pgq_anyio {version()} ({python_version()}, psycopg {psycopg.__version__})\n")
        raise typer.Exit


@app.callback()
def _program(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
    ),
) -> None:
    ctx.obj = Invocation()


app.command("run")(run.run)
app.command("enqueue")(produce.enqueue)
app.command("cancel")(operate.cancel)
jobs.app.command("requeue")(operate.requeue)
app.add_typer(jobs.app, name="jobs")
app.add_typer(schedules.app, name="schedules")
app.command("migrate")(schema.migrate)
app.command("uninstall")(schema.uninstall)
app.command("grants")(grants.grants)
app.command("demo")(demo.demo)


def main() -> None:
    """Run the command line, and exit."""
    app(prog_name="pgq-anyio")

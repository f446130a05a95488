"""The public names: what they are, that they are documented, and what they take."""

from __future__ import annotations

import inspect

import pytest

import pgq_anyio
import pgq_anyio.testing

NAMES = {
    "AbstractEntrypointExecutor",
    "AppLoadError",
    "Cancel",
    "CancelReason",
    "Cancellation",
    "ConfigurationError",
    "Context",
    "Discard",
    "EntrypointExecutor",
    "ErrorRecord",
    "ExecutorParameters",
    "Job",
    "JobId",
    "JobRecord",
    "JobStatus",
    "JobTimeout",
    "PgQueuer",
    "PgqError",
    "ProcessExecutor",
    "PsycopgDriver",
    "Queries",
    "Retry",
    "RetryPolicy",
    "RetryWithBackoffEntrypointExecutor",
    "Schedule",
    "ScheduleRecord",
    "SchemaError",
    "Snooze",
    "SyncQueries",
    "ThreadExecutor",
    "WorkerRecord",
    "current_context",
}


def test_the_names_are_these() -> None:
    """A name that comes or goes is a decision, with a line in the changelog."""
    assert sorted(NAMES) == pgq_anyio.__all__
    assert [
        "drain",
        "run_job",
        "running_worker",
        "temporary_database",
        "temporary_schema",
    ] == pgq_anyio.testing.__all__


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_is_documented(name: str) -> None:
    thing = getattr(pgq_anyio, name)
    if name == "JobId":
        return  # a NewType has no docstring at run time; its module says what it is
    assert inspect.getdoc(thing), name
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                assert inspect.getdoc(getattr(thing, member)), f"{name}.{member}"


def test_the_signatures_are_these() -> None:
    """The options of the design, by name."""

    def parameters(function: object) -> list[str]:
        return list(inspect.signature(function).parameters)[1:]  # type: ignore[arg-type]  # functions all

    assert ["source", "schema", "lifespan"] == parameters(pgq_anyio.PgQueuer.__init__)
    run = ["dequeue_timeout", "batch_size", "max_concurrency", "mode", "lease", "on_lease_lost", "shutdown_grace"]
    assert [*run, "cancel_grace", "signals", "block_warning", "retention", "task_status"] == parameters(
        pgq_anyio.PgQueuer.run
    )
    for option in ("retry_timer", "timeout", "max_attempts", "max_crashes", "retry_policy", "executor_factory"):
        assert option in parameters(pgq_anyio.PgQueuer.entrypoint)
    assert ["name", "expression", "timezone", "missed", "executor_factory"] == parameters(pgq_anyio.PgQueuer.schedule)
    assert ["entrypoint", "payload", "priority", "execute_after", "connection"] == parameters(pgq_anyio.Queries.enqueue)

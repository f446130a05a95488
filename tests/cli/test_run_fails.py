"""How a worker under the command line ends if something goes wrong that no retry can mend, or does not end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cli.processes import Command, Commands
from tests.worker.fleet import Fleet, wait_until

pytestmark = pytest.mark.heavy

OPTIONS = ["--dequeue-timeout=0.2", "--lease=2"]

#: Taking a table away breaks the service that needs it: the name of a job that makes it notice, if it has none.
PROVOKED_BY = {
    "queued": None,
    "worker": None,
    "running": "quick",
    "finished": "quick",
    "deferred": None,
    "schedule": None,
    "limiter": "limited",
}

on_both_backends = pytest.mark.parametrize("loop", ["asyncio", "trio"], indirect=True)


@contextmanager
def taken_away(fleet: Fleet, table: str) -> Iterator[None]:
    """Without this table, until the test has seen enough."""
    fleet.rows(f"alter table {{schema}}.{table} rename to gone")
    try:
        yield
    finally:
        fleet.rows(f"alter table {{schema}}.gone rename to {table}")


def start_with_a_deaf_job(commands: Commands, fleet: Fleet, *options: str) -> tuple[Command, int]:
    """A worker, and a job in a thread that ignores its cancellation."""
    worker = commands.start_worker(fleet.schema, *OPTIONS, *options, target="tests.cli.apps:one_of_each")
    (job,) = fleet.enqueue("deaf")
    wait_until(lambda: fleet.events(job), what="the handler runs")
    return worker, job


def provoke(fleet: Fleet, table: str) -> None:
    """Make the service that needs the table notice."""
    name = PROVOKED_BY[table]
    if name is not None:
        fleet.enqueue(name)


@pytest.mark.promise(37)
@on_both_backends
@pytest.mark.parametrize("table", PROVOKED_BY)
def test_an_error_that_no_retry_can_mend(commands: Commands, fleet: Fleet, loop: list[str], table: str) -> None:
    """A worker whose tables are taken away ends with its leaf error and 1; it is never half dead."""
    worker = commands.start_worker(fleet.schema, *loop, *OPTIONS, target="tests.cli.apps:one_of_each")
    with taken_away(fleet, table):
        provoke(fleet, table)
        assert worker.wait() == 1
    (said,) = [line for line in worker.output.splitlines() if line.startswith("pgq-anyio: ")]
    assert "does not exist" in said
    assert "TaskGroup" not in said
    assert "has failed, which ends the worker: UndefinedTable: " in worker.output
    assert "Traceback" not in worker.output
    if table == "queued":
        assert "could not say farewell to the database (UndefinedTable: " in worker.output


@pytest.mark.promise(35, 37)
@on_both_backends
@pytest.mark.parametrize("table", ["queued", "worker", "finished", "schedule"])
def test_a_stubborn_handler_does_not_keep_a_worker_that_failed(
    commands: Commands, fleet: Fleet, loop: list[str], table: str
) -> None:
    """It is left behind within the grace of its cancellation, as at a stop, and whatever service has failed; another
    worker may have its job at once if the database can be told so.
    """
    worker, job = start_with_a_deaf_job(commands, fleet, *loop, "--shutdown-grace=3600", "--cancel-grace=0.5")
    with taken_away(fleet, table):
        provoke(fleet, table)
        assert worker.wait() == 1
    assert f"job {job} of 'deaf' still runs and is left behind" in worker.output
    assert "in deaf" in worker.output
    assert "has failed, which ends the worker: UndefinedTable: " in worker.output
    if table == "worker":
        assert "could not be told that this worker leaves (UndefinedTable: " in worker.output
    else:
        assert fleet.value("select left_at is not null from {schema}.worker")


@pytest.mark.promise(35, 37)
@on_both_backends
def test_an_error_while_jobs_are_waited_for(commands: Commands, fleet: Fleet, loop: list[str]) -> None:
    """After a signal, with a long grace: the error ends the wait."""
    worker, job = start_with_a_deaf_job(commands, fleet, *loop, "--shutdown-grace=3600", "--cancel-grace=0.5")
    worker.signal(signal.SIGTERM)
    worker.wait_said("stopping; running jobs may end")
    with taken_away(fleet, "worker"):
        assert worker.wait() == 1
    # Which one needs the table first depends on when the signal came: the heartbeat, or a claim that was under way.
    assert "has failed, which ends the worker: UndefinedTable: " in worker.output
    assert f"job {job} of 'deaf' still runs and is left behind" in worker.output


@pytest.mark.promise(35, 37)
@on_both_backends
def test_signals_are_heard_after_an_error(commands: Commands, fleet: Fleet, loop: list[str]) -> None:
    """The third ends at once what an error has left, without the grace of the cancellation."""
    worker, job = start_with_a_deaf_job(commands, fleet, *loop, "--cancel-grace=3600")
    with taken_away(fleet, "worker"):
        worker.wait_said("which ends the worker")
        for said in ("stopping", "SIGTERM again", "third time"):
            worker.signal(signal.SIGTERM)
            worker.wait_said(said)
        assert worker.wait() == 1
    assert f"job {job} of 'deaf' still runs and is left behind" in worker.output


@pytest.mark.promise(35)
@on_both_backends
def test_signals_are_heard_while_a_lifespan_ends(commands: Commands, fleet: Fleet, loop: list[str]) -> None:
    """The third ends at once a worker whose lifespan does not end; nothing of it stays in the database."""
    worker = commands.start_worker(fleet.schema, *loop, "--cancel-grace=3600", target="tests.cli.apps:hanging")
    worker.signal(signal.SIGTERM)
    worker.wait_said("closing")
    for said in ("SIGTERM again", "third time"):
        worker.signal(signal.SIGTERM)
        worker.wait_said(said)
    assert worker.wait() == 1
    assert "does its lifespan hang while it closes?" in worker.output
    assert fleet.value("select count(*) from {schema}.worker") == 0


@pytest.mark.promise(34)
@on_both_backends
def test_a_lifespan_may_take_its_time(commands: Commands, fleet: Fleet, loop: list[str]) -> None:
    """The graces are for jobs: a stop that is not hurried waits for the exit of the lifespan."""
    worker = commands.start_worker(
        fleet.schema, *loop, "--shutdown-grace=0", "--cancel-grace=0", target="tests.cli.apps:slow_to_close"
    )
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


@pytest.mark.promise(37)
@on_both_backends
def test_a_lifespan_that_hangs_after_an_error(commands: Commands, fleet: Fleet, loop: list[str]) -> None:
    """It gets some time, but not for ever."""
    worker = commands.start_worker(fleet.schema, *loop, *OPTIONS, "--cancel-grace=0", target="tests.cli.apps:hanging")
    failed_at = time.monotonic()
    with taken_away(fleet, "worker"):
        worker.wait_said("closing")
        assert worker.wait(40) == 1
    assert time.monotonic() - failed_at > 2, "the farewell and the lifespan were given no time"
    assert "does its lifespan hang while it closes?" in worker.output

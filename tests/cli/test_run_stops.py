"""How a worker under the command line stops: signals, deadlines, exit codes."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pgq_anyio import JobId, SyncQueries
from tests.bounds import Within
from tests.cli.processes import Commands
from tests.executors.processes import is_gone
from tests.worker.fleet import Fleet, wait_until

pytestmark = pytest.mark.heavy

SIGNALS = [signal.SIGTERM, signal.SIGINT]
#: On a busy machine the end of a process alone takes seconds; the grace and the poll interval are 30 s (in seconds).
SLOW = 20.0


def started(fleet: Fleet, job_id: int) -> bool:
    """Whether the handler of a job has begun."""
    return any(event == "start" for event, _ in fleet.events(job_id))


def leftovers(fleet: Fleet) -> int:
    """Rows that only a worker that is running may have."""
    return int(fleet.value("select (select count(*) from {schema}.running) + (select count(*) from {schema}.worker)"))


@contextmanager
def inherited(number: signal.Signals, handled: Any) -> Iterator[None]:
    """Have processes that are started here ignore a signal or not, whatever these tests were started with. A handler is
    not inherited, but that there is none is.
    """
    before = signal.signal(number, handled)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.promise(17, 34)
@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGHUP])
def test_idle(commands: Commands, fleet: Fleet, loop: list[str], number: signal.Signals, within: Within) -> None:
    """An idle worker ends within a second of a signal, with 0, and nothing of it stays in the database."""
    with inherited(signal.SIGHUP, signal.SIG_DFL):
        worker = commands.start_worker(fleet.schema, *loop)
    sent_at = time.monotonic()
    worker.signal(number)
    assert worker.wait() == 0
    assert time.monotonic() - sent_at < within(1.0, SLOW)
    assert leftovers(fleet) == 0


@pytest.mark.promise(34)
@pytest.mark.parametrize("number", SIGNALS)
def test_a_job_may_end(commands: Commands, fleet: Fleet, loop: list[str], number: signal.Signals) -> None:
    """A running job ends and is recorded; what is enqueued meanwhile does not start; the worker exits with 0."""
    worker = commands.start_worker(fleet.schema, *loop)
    (job,) = fleet.enqueue("sleep", b"3")
    wait_until(lambda: started(fleet, job))
    worker.signal(number)
    worker.wait_said("stopping; running jobs may end")
    (late,) = fleet.enqueue("quick")
    assert worker.wait() == 0
    assert fleet.status(job) == "successful"
    assert ["start", "end"] == [event for event, _ in fleet.events(job)]
    assert fleet.events(late) == []
    assert fleet.value("select count(*) from {schema}.queued where job_id = %s", late) == 1
    assert leftovers(fleet) == 0


@pytest.mark.promise(25)
def test_a_cancel_reaches_jobs_that_are_waited_for(commands: Commands, fleet: Fleet, loop: list[str]) -> None:
    """After the signal, while the worker waits for its jobs: of every kind they are cancelled, and it ends at once."""
    worker = commands.start_worker(fleet.schema, *loop, "--shutdown-grace=3600", "--cancel-grace=3600")
    ids = [JobId(fleet.enqueue(name)[0]) for name in ("sleep", "thread", "process")]
    wait_until(lambda: all(started(fleet, job) for job in ids))
    worker.signal(signal.SIGTERM)
    worker.wait_said("stopping; running jobs may end")
    with SyncQueries(fleet.dsn, schema=fleet.schema) as queries:
        assert ids == queries.mark_job_as_cancelled(ids)
    assert worker.wait() == 0
    assert ["cancelled"] * 3 == [fleet.status(job) for job in ids]
    assert leftovers(fleet) == 0


@pytest.mark.promise(35)
@pytest.mark.parametrize(
    ("kind", "events"), [("sleep", ["start", "cancelled"]), ("thread", ["start", "cancelled"]), ("process", ["start"])]
)
def test_a_long_job_goes_back(
    commands: Commands, fleet: Fleet, loop: list[str], within: Within, kind: str, events: list[str]
) -> None:
    """After the grace the job is cancelled, whatever kind its handler is of; another worker starts it within 2 s, as
    the same attempt, and first.
    """
    worker = commands.start_worker(fleet.schema, *loop, "--shutdown-grace=1")
    (job,) = fleet.enqueue(kind)
    wait_until(lambda: started(fleet, job))
    sent_at = time.monotonic()
    worker.signal(signal.SIGTERM)
    worker.wait_said("stopping; running jobs may end")
    (late,) = fleet.enqueue("sleep", b"0")
    assert worker.wait() == 0
    assert 1.0 < time.monotonic() - sent_at < within(2.0, SLOW)
    assert events == [event for event, _ in fleet.events(job)]
    assert all(is_gone(pid) for _, pid in fleet.events(job))
    order = fleet.rows("select job_id, attempt from {schema}.queued order by seq")
    assert [job, late] == [job_id for job_id, _ in order]
    assert len({attempt for _, attempt in order}) == 1, "the interrupted attempt was counted"
    other = commands.start_worker(fleet.schema, *loop, "--max-concurrency=1", "--shutdown-grace=0")
    wait_until(lambda: len(fleet.events(job)) == len(events) + 1, timeout=within(2.0, SLOW))
    assert fleet.events(late) == []
    other.signal(signal.SIGTERM)
    assert other.wait() == 0


@pytest.mark.promise(35)
def test_a_waiting_worker_takes_over(commands: Commands, fleet: Fleet, loop: list[str], within: Within) -> None:
    """A job that is given back starts within 2 s on a worker that was idle all the time."""
    worker = commands.start_worker(fleet.schema, *loop, "--shutdown-grace=0")
    (job,) = fleet.enqueue("sleep")
    wait_until(lambda: started(fleet, job))
    other = commands.start_worker(fleet.schema, *loop, "--shutdown-grace=0")
    time.sleep(2)  # so long it looks again by itself after it fell asleep; from then on only a notification wakes it
    worker.signal(signal.SIGTERM)
    both = {other.popen.pid, worker.popen.pid}
    wait_until(lambda: both == {pid for _, pid in fleet.events(job)}, timeout=within(2.0, SLOW))
    assert worker.wait() == 0


@pytest.mark.promise(17, 35)
@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("stubborn", "await anyio.sleep(float(job.payload"),
        ("deaf_thread", "time.sleep(float(job.payload"),
        ("deaf", "its stack is in another process"),
    ],
)
def test_a_stubborn_handler_is_left_behind(
    commands: Commands, fleet: Fleet, loop: list[str], within: Within, kind: str, place: str
) -> None:
    """A handler that ignores its cancellation is left behind within both graces and a second, with exit code 1.

    The job and where it was is named, and another worker runs it. A process of its own does not outlive the worker.
    """
    worker = commands.start_worker(fleet.schema, *loop, "--shutdown-grace=0.5", "--cancel-grace=0.5")
    (job,) = fleet.enqueue(kind)
    wait_until(lambda: started(fleet, job))
    sent_at = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 1
    assert time.monotonic() - sent_at < within(2.0, SLOW)
    assert f"job {job} of {kind!r} still runs and is left behind" in worker.output
    assert place in worker.output
    ((_, pid),) = fleet.events(job)
    # Nobody else is there to rescue it: the worker has seen to it itself. Nothing is counted, and nothing left claimed.
    queued = "select attempt, crashes from {schema}.queued"
    wait_until(lambda: fleet.rows(queued) == [(1, 0)], timeout=within(1.0, SLOW), what="the job is back in the queue")
    assert leftovers(fleet) == 0
    wait_until(lambda: is_gone(pid), what="the process of the handler has ended")
    commands.start_worker(fleet.schema, *loop)
    wait_until(lambda: len(fleet.events(job)) == 2, what="another worker has the job")


@pytest.mark.promise(17, 35)
def test_a_job_that_was_left_behind_starts_elsewhere(
    commands: Commands, fleet: Fleet, loop: list[str], within: Within
) -> None:
    """A worker that waits has it at once, long before it would have looked for the rows of others."""
    worker = commands.start_worker(fleet.schema, *loop, "--shutdown-grace=0.5", "--cancel-grace=0.5")
    (job,) = fleet.enqueue("deaf_thread")
    wait_until(lambda: started(fleet, job))
    commands.start_worker(fleet.schema, *loop, "--lease=10m")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 1
    wait_until(lambda: len(fleet.events(job)) == 2, timeout=within(2.0, SLOW), what="another worker has the job")
    assert [(0,)] == fleet.rows("select crashes from {schema}.running")


@pytest.mark.promise(35)
def test_second_signal(commands: Commands, fleet: Fleet, loop: list[str], within: Within) -> None:
    """A second signal skips the grace: the job is cancelled at once, and the exit code is still 0."""
    worker = commands.start_worker(fleet.schema, *loop)
    (job,) = fleet.enqueue("sleep")
    wait_until(lambda: started(fleet, job))
    worker.signal(signal.SIGINT)
    worker.wait_said("stopping; running jobs may end")
    sent_at = time.monotonic()
    worker.signal(signal.SIGINT)
    assert worker.wait() == 0
    assert time.monotonic() - sent_at < within(1.0, SLOW)
    assert "SIGINT again" in worker.output
    assert ["start", "cancelled"] == [event for event, _ in fleet.events(job)]
    assert leftovers(fleet) == 0


@pytest.mark.promise(35)
def test_third_signal(commands: Commands, fleet: Fleet, loop: list[str], within: Within) -> None:
    """A third signal does not even wait for the grace of the cancellation."""
    worker = commands.start_worker(fleet.schema, *loop, "--cancel-grace=60")
    (job,) = fleet.enqueue("stubborn")
    wait_until(lambda: started(fleet, job))
    for said in ("stopping", "SIGTERM again", "third time"):
        worker.signal(signal.SIGTERM)
        worker.wait_said(said)
    sent_at = time.monotonic()
    assert worker.wait() == 1
    assert time.monotonic() - sent_at < within(1.5, SLOW)


@pytest.mark.promise(34)
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("interrupts", [signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def test_signal_before_the_start(
    commands: Commands, fleet: Fleet, loop: list[str], number: signal.Signals, interrupts: Any
) -> None:
    """A signal that comes before the worker runs closes what was opened, and is a clean stop; also if it was started in
    the background of a script, where shells let it ignore SIGINT.
    """
    environment = commands.environment(fleet.schema)
    with inherited(signal.SIGINT, interrupts):
        worker = commands.start("run", "tests.cli.apps:slow_to_open", *loop, environment=environment)
    worker.wait_said("opening")
    worker.signal(number)
    assert worker.wait() == 0
    assert "closed again" in worker.output
    assert "Traceback" not in worker.output


@pytest.mark.promise(34)
@pytest.mark.parametrize("number", SIGNALS)
def test_signal_while_the_app_is_imported(commands: Commands, fleet: Fleet, number: signal.Signals) -> None:
    """Modules may take long to import. A container's first process would not even be ended by a signal that it does not
    handle.
    """
    (commands.directory / "slow.py").write_text("print('importing', flush=True)\nimport time\ntime.sleep(60)\n")
    with inherited(signal.SIGINT, signal.default_int_handler):
        worker = commands.start("run", "slow:app", environment=commands.environment(fleet.schema))
    worker.wait_said("importing")
    worker.signal(number)
    assert worker.wait() == 0
    assert worker.output.splitlines()[-1].endswith("stopped before the worker was running")


@pytest.mark.promise(34)
@pytest.mark.parametrize("number", SIGNALS)
def test_signal_while_the_lifespan_opens(
    commands: Commands, fleet: Fleet, loop: list[str], number: signal.Signals, within: Within
) -> None:
    """Nothing runs yet: the first signal is enough."""
    options = [f"--dsn={commands.dsn}", f"--schema={fleet.schema}", *loop]
    environment = commands.environment(fleet.schema)
    with inherited(signal.SIGINT, signal.default_int_handler):
        worker = commands.start("run", "tests.cli.apps:never_open", *options, environment=environment)
    worker.wait_said("opening")
    sent_at = time.monotonic()
    worker.signal(number)
    assert worker.wait() == 0
    assert time.monotonic() - sent_at < within(1.0, SLOW)
    assert "given up" in worker.output
    assert leftovers(fleet) == 0


@pytest.mark.promise(35)
def test_what_was_printed_is_written_before_a_handler_is_left_behind(commands: Commands, fleet: Fleet) -> None:
    """Into a pipe Python writes in blocks; nothing that handlers have printed is lost."""
    options = ["--shutdown-grace=0", "--cancel-grace=0", f"--dsn={commands.dsn}", f"--schema={fleet.schema}"]
    environment = {**commands.environment(fleet.schema), "PYTHONUNBUFFERED": ""}
    worker = commands.start("run", "tests.cli.apps:printing", *options, environment=environment)
    worker.wait_said("ready: registered and listening")
    (job,) = fleet.enqueue("print")
    wait_until(lambda: started(fleet, job))
    assert "printed" not in worker.output
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 1
    assert f"printed {job}" in worker.output


@pytest.mark.promise(34)
def test_a_closed_terminal_is_one_signal(commands: Commands, fleet: Fleet, loop: list[str]) -> None:
    """Its shell tells of it, and then the kernel: the grace is not skipped."""
    with inherited(signal.SIGHUP, signal.SIG_DFL):
        worker = commands.start_worker(fleet.schema, *loop)
    (job,) = fleet.enqueue("sleep", b"3")
    wait_until(lambda: started(fleet, job))
    worker.signal(signal.SIGHUP)
    worker.wait_said("stopping; running jobs may end")
    worker.signal(signal.SIGHUP)
    assert worker.wait() == 0
    assert fleet.status(job) == "successful"


@pytest.mark.promise(17)
def test_under_nohup_a_terminal_may_be_closed(commands: Commands, fleet: Fleet, loop: list[str]) -> None:
    """The worker goes on."""
    with inherited(signal.SIGHUP, signal.SIG_IGN):
        worker = commands.start_worker(fleet.schema, *loop)
    worker.signal(signal.SIGHUP)
    (job,) = fleet.enqueue("quick")
    wait_until(lambda: fleet.status(job) == "successful")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert "SIGHUP" not in worker.output


@pytest.mark.promise(38)
def test_drain(commands: Commands, fleet: Fleet, loop: list[str], within: Within) -> None:
    """--drain ends with 0 when nothing is left, retries and deferred jobs included, within a second after the last."""
    ids = fleet.enqueue("again", times=20)
    ids += [row[0] for row in fleet.rows("select {schema}.enqueue('again', execute_after => '1.5 s')")]
    worker = commands.start_worker(fleet.schema, *loop, "--drain", target="tests.cli.apps:retrying")
    assert worker.wait() == 0
    stayed = fleet.value("select extract(epoch from clock_timestamp() - max(finished_at)) from {schema}.finished")
    assert stayed < within(1.0, SLOW)
    assert ["successful"] * 21 == [fleet.status(job_id) for job_id in ids]
    assert "nothing is left to do" in worker.output
    # One that is stopped by a signal does not say so.
    fleet.rows("select {schema}.enqueue('again', execute_after => '1 hour')")
    worker = commands.start_worker(fleet.schema, *loop, "--drain", target="tests.cli.apps:retrying")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert "stopped" in worker.output
    assert "nothing is left to do" not in worker.output
    fleet.rows("delete from {schema}.deferred")
    code, output = commands.run(
        "run",
        "tests.cli.apps:retrying",
        *loop,
        "--drain",
        f"--dsn={commands.dsn}",
        f"--schema={fleet.schema}",
        environment=commands.environment(fleet.schema),
    )
    assert code == 0, output

"""What does not end a worker under the command line."""

from __future__ import annotations

import signal

import pytest

from tests.cli.processes import Commands
from tests.worker.fleet import Fleet, wait_until

ENTRYPOINTS = ["itself", "thread", "process", "child", "grandchild", "from_thread"]
ON_ASYNCIO = ["native", "native_group"]


@pytest.mark.promise(29, 32)
def test_errors_stay_with_their_job(commands: Commands, fleet: Fleet, loop: list[str]) -> None:
    """SystemExit and KeyboardInterrupt of a handler, its child tasks, threads and process are that job's failure.

    The leaf is recorded, the worker goes on, and stops cleanly.
    """
    worker = commands.start_worker(fleet.schema, *loop, target="tests.cli.apps:throwing")
    names = ENTRYPOINTS + ([] if "--backend=trio" in loop else ON_ASYNCIO)
    leaf = {b"exit": "SystemExit: 3", b"interrupt": "KeyboardInterrupt", b"error": "ValueError: no"}
    jobs = {(name, payload): fleet.enqueue(name, payload)[0] for name in names for payload in leaf}
    (unstarted,) = fleet.enqueue("unstarted", b"exit")
    (after,) = fleet.enqueue("quick")
    wait_until(lambda: all(fleet.status(job) for job in [*jobs.values(), unstarted, after]), what="all jobs have ended")
    for (name, payload), job in jobs.items():
        assert fleet.status(job) == "failed", (name, payload)
        record = fleet.value("select row_to_json(f)::text from {schema}.finished f where job_id = %s", job)
        assert leaf[payload] in record, (name, payload)
    assert ["successful", "successful"] == [fleet.status(unstarted), fleet.status(after)]
    assert "never awaited" not in worker.output
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0

"""A program that is watched: hostile values go through handlers of each kind, and a hook writes down when one is
unpickled or compiled, in whatever process this is.

``python -m tests.security.audited WHAT BACKEND``. It is a program of its own because a hook cannot be taken away again.
Besides, while a hook looks at the trace function of one thread, CPython 3.11 refuses to start another one that has any.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import anyio

from pgq_anyio import Job, PgQueuer, ProcessExecutor, PsycopgDriver, Queries
from pgq_anyio.testing import drain

#: Where the hook writes; without it there is none.
AUDIT: Final = "PGQ_TEST_AUDIT"
#: What a value says that must never run; not in one piece, for this module is compiled too.
MARK = "eulav_elitsoh_qgp"[::-1]


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f": {MARK}",)


SOURCE = f"__import__('os').system(': {MARK}')"
PAYLOADS = [pickle.dumps(Bomb()), SOURCE.encode(), b"!!python/object/apply:os.system [': " + MARK.encode() + b"']"]


def note(event: str, arguments: tuple[Any, ...]) -> None:
    """Write down what must not happen."""
    if event == "pickle.find_class":
        is_hostile = arguments[0] in ("os", "posix", "nt")
    else:
        is_hostile = event in ("compile", "os.system") and MARK in str(arguments[0])
    if is_hostile:
        with Path(os.environ[AUDIT]).open("a", encoding="utf-8") as audit:
            audit.write(f"{event} {arguments!r}\n")


if AUDIT in os.environ:
    sys.addaudithook(note)


def in_a_process(job: Job) -> None:
    """Fail with what came from the database, so that it travels both ways."""
    raise ValueError(repr(job.payload), job.payload)


async def betray() -> None:
    """Do what must not be done."""
    pickle.loads(PAYLOADS[0])
    compile(SOURCE, "?", "eval")


async def keep_values() -> None:
    """Payloads, names, reasons and errors that are programs come through handlers of each kind as they are."""
    dsn, schema = os.environ["PGQ_TEST_WORKER_DSN"], os.environ["PGQ_TEST_SCHEMA"]
    app = PgQueuer(dsn, schema=schema)
    seen: list[bytes | None] = []

    @app.entrypoint(SOURCE)
    async def asynchronous(job: Job) -> None:
        seen.append(job.data)
        raise ValueError(SOURCE, job.data)

    @app.entrypoint("thread")
    def thread(job: Job) -> None:
        seen.append(job.data)
        raise ValueError(SOURCE, job.data)

    app.entrypoint("process", executor_factory=ProcessExecutor)(in_a_process)
    async with PsycopgDriver(dsn) as driver:
        queries = Queries(driver, schema=schema)
        names = [SOURCE, "thread", "process"]
        ids = await queries.enqueue([name for name in names for _ in PAYLOADS], PAYLOADS * 3)
        with anyio.fail_after(50):
            await drain(app)
        (cancelled,) = await queries.enqueue(SOURCE, PAYLOADS[0])
        await queries.mark_job_as_cancelled([cancelled], SOURCE)
        records = {record.id: record for record in await queries.list_jobs()}
        assert PAYLOADS * 3 == [records[job_id].payload for job_id in ids]
        assert SOURCE == records[cancelled].cancel_reason
        for job_id, payload in zip(ids[6:], PAYLOADS, strict=True):
            error = records[job_id].errors[-1]
            assert ("ValueError", str((repr(payload), payload))) == (error.type, error.message)
    assert sorted(PAYLOADS * 2) == sorted(data or b"" for data in seen)


def main(what: str, backend: str) -> None:
    """Do what is asked for."""
    tasks: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {"betray": betray, "keep_values": keep_values}
    anyio.run(tasks[what], backend=backend)


if __name__ == "__main__":
    # By its real name: children of the process handler import it.
    from tests.security.audited import main as run_main

    run_main(*sys.argv[1:])

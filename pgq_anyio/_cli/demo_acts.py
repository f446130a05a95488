"""What happens in the demonstration, act by act."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

import anyio
import attrs
from rich.console import Console
from rich.markup import escape

from .. import JobId, JobStatus, Queries
from .demo_app import make_app
from .show import progress

#: Jobs of the last act.
BURST: Final = 5_000
#: How long any act may wait for its fact (in seconds).
PATIENCE: Final = 15.0

_ENDED: Final = frozenset({JobStatus.SUCCESSFUL, JobStatus.FAILED, JobStatus.CANCELLED})


@attrs.define(eq=False)
class Stage:
    """Where things are told, with the time since the beginning."""

    console: Console
    queries: Queries
    began_at: float = attrs.field(factory=time.monotonic, init=False)
    _lines: list[str] = attrs.field(factory=list, init=False)

    def tell(self, line: str) -> None:
        """Print a line; called by handlers, from threads too."""
        self._lines.append(line)
        self.console.print(f"[dim]{time.monotonic() - self.began_at:7.2f} s[/]  {escape(line)}")

    def announce(self, act: str) -> None:
        """Say what comes next."""
        self.console.print(f"\n[bold]{escape(act)}[/]")

    async def wait_told(self, start: str, times: int = 1) -> None:
        """Wait until so many lines that begin like this were told."""
        with anyio.fail_after(PATIENCE):
            while sum(line.startswith(start) for line in self._lines) < times:  # noqa: ASYNC110  (told by threads too)
                await anyio.sleep(0.02)

    async def wait_status(self, ids: Iterable[JobId], *wanted: JobStatus) -> None:
        """Wait until the database says that all these jobs are in one of these states."""
        asked = list(ids)

        async def seen() -> bool:
            return all(status in wanted for status in (await self.queries.job_status(asked)).values())

        with anyio.fail_after(PATIENCE):
            while not await seen():  # noqa: ASYNC110  (the fact lies in the database)
                await anyio.sleep(0.02)


async def perform(console: Console, dsn: str, schema: str, queries: Queries) -> float:
    """Play all acts.

    :return: the jobs a second of the last one
    """
    stage = Stage(console, queries)
    app = make_app(dsn, schema, stage.tell)
    async with anyio.create_task_group() as tasks:
        await tasks.start(app.run)
        await _run_and_fail(stage)
        await _cancel_in_the_middle(stage)
        speed = await _burst(stage)
        stage.announce("The worker stops: nothing new starts, and what runs may end")
        app.stop()
    return speed


async def _run_and_fail(stage: Stage) -> None:
    stage.announce("Jobs of several kinds: one fails, one tries again, one is for later; and a schedule")
    queries = stage.queries
    ids = await queries.enqueue(["greet"] * 3, [b"trio", b"asyncio", b"PostgreSQL"])
    ids += await queries.enqueue("count_words", b"structured concurrency is the design")
    ids += await queries.enqueue("flaky")
    unlucky = await queries.enqueue("unlucky", b"42")
    later = await queries.enqueue("remind", b"enqueued for 1.5 s later", execute_after=timedelta(seconds=1.5))
    await stage.wait_status([*ids, *unlucky, *later], *_ENDED)
    await stage.wait_told("tick", 2)
    record = await queries.get_job(unlucky[0])
    assert record is not None
    stage.announce(f"What the database recorded of job {record.id}")
    stage.console.print(escape((record.errors[0].traceback or "").rstrip()), style="red", soft_wrap=True)


async def _cancel_in_the_middle(stage: Stage) -> None:
    stage.announce("Cancelled in the middle: an async handler, one in a thread, and one in a process")
    queries = stage.queries
    ids = await queries.enqueue(["download", "watch", "crunch"], None)
    await stage.wait_status(ids, JobStatus.RUNNING)
    await stage.wait_told("download", 2)
    stage.tell(f"producer: cancel jobs {', '.join(map(str, ids))}")
    asked_at = time.monotonic()
    await queries.mark_job_as_cancelled(ids, "no longer needed")
    await stage.wait_status(ids, JobStatus.CANCELLED)
    stage.tell(f"producer: all three have ended, {1000 * (time.monotonic() - asked_at):.0f} ms later")


async def _burst(stage: Stage) -> float:
    stage.announce(f"{BURST:,} jobs at once")
    queries = stage.queries
    began_at = time.monotonic()
    ids = await queries.enqueue(["nothing"] * BURST, None)
    enqueued_at = time.monotonic()
    stage.tell(f"producer: enqueued in {1000 * (enqueued_at - began_at):.0f} ms")
    left = set(ids)
    with progress("running", BURST, stage.console) as done, anyio.fail_after(PATIENCE):
        while left:
            statuses = await queries.job_status(sorted(left))
            ended = {job_id for job_id, status in statuses.items() if status in _ENDED}
            left -= ended
            done(len(ended))
            await anyio.sleep(0.02)
    took = time.monotonic() - enqueued_at
    stage.tell(f"producer: all have ended, {1000 * took:.0f} ms later")
    return BURST / took

"""The progress bar of ``run --drain`` on a terminal.

The figures come from the database: the jobs of the app's names that have not ended (queued, deferred, running
anywhere), which are those that a draining worker waits for, and the most that was ever seen. The longer the queue, the
longer it takes to count them, and the more rarely that is done.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import psycopg
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .._app import PgQueuer
from .._store.worker import count_pending
from .show import make_console

#: The shortest time between two questions (in seconds).
INTERVAL: Final = 0.5
#: So many times as long as an answer took, nothing is asked.
REST: Final = 20


async def show_draining(app: PgQueuer, run: Callable[[], Awaitable[None]]) -> None:
    """Run a worker to its end and show how far it is.

    :param run: runs the worker
    """
    columns = (TextColumn("draining"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # What handlers print goes above the bar, word for word, if both are on the terminal.
    console, redirect = make_console(stderr=True, markup=False), sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=redirect) as bar:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_follow, app, bar, bar.add_task("draining", total=None))
            await run()
            tasks.cancel_scope.cancel()


async def _follow(app: PgQueuer, bar: Progress, task: TaskID) -> None:
    most = 0
    took = 0.0
    while True:
        await anyio.sleep(max(INTERVAL, took * REST))
        worker = app._worker
        if worker is None:
            continue
        asked_at = anyio.current_time()
        try:
            async with worker.driver.connection() as conn:
                left = await count_pending(conn, worker.store, list(worker.registry.entrypoints))
        except psycopg.OperationalError:
            continue  # the worker says what there is to say about it
        took = anyio.current_time() - asked_at
        most = max(most, left)
        bar.update(task, total=most, completed=most - left)

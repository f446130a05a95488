"""Statements of the scheduler that fail before they are carried out, or after it, or are never answered."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import anyio
import pytest
from psycopg import OperationalError, sql

from pgq_anyio import CancelReason, Context, PgQueuer, Schedule
from pgq_anyio._db import Connection
from pgq_anyio._run_settings import OnLeaseLost
from pgq_anyio._services import completer, scheduler
from pgq_anyio._store import schedule as statements
from pgq_anyio.testing import running_worker
from tests.bounds import BUSY

pytestmark = pytest.mark.anyio

YEARLY = "0 0 1 1 *"
#: How long a fact may take (in seconds).
SOON = 20.0

NEW_YEAR = datetime(datetime.now(UTC).year, 1, 1, tzinfo=UTC)
TIMES = pytest.mark.parametrize("when", ["before", "after"])


async def lose(function: Callable[..., Awaitable[Any]], failures: list[str], *args: Any, **kwargs: Any) -> Any:
    """Carry out a statement unless it is to fail before, and lose its answer if it is to fail after."""
    when = failures.pop() if failures else None
    if when == "before":
        raise OperationalError("the connection was lost on the way there")
    result = await function(*args, **kwargs)
    if when == "after":
        raise OperationalError("the connection was lost on the way back")
    return result


class Scene:
    """An app with one schedule that has missed the last New Year, and the row of it."""

    def __init__(self, app: PgQueuer, conn: Connection) -> None:
        self.app, self.conn, self.runs = app, conn, list[datetime]()
        app.schedule("report", YEARLY)(self.report)

    async def report(self, schedule: Schedule) -> None:
        self.runs.append(schedule.due_at)

    async def execute(self, text: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement; ``{s}`` stands for the schema."""
        cursor = await self.conn.execute(sql.SQL(text).format(s=sql.Identifier(self.app.schema)), parameters)
        return await cursor.fetchall() if cursor.description is not None else []

    async def prepare(self) -> None:
        """Let the schedule be known since long ago."""
        await self.execute(
            "insert into {s}.schedule (name, expression, timezone, last_due_at) values ('report', %s, 'UTC', %s)",
            YEARLY,
            NEW_YEAR - timedelta(days=1),
        )

    async def prepare_again(self) -> None:
        """Let it have been known since long ago after all, and say so."""
        await self.execute("update {s}.schedule set last_due_at = %s", NEW_YEAR - timedelta(days=1))
        await self.execute("select pg_notify('pgq_anyio.' || %s, 'schedule')", self.app.schema)

    async def wait(self, condition: str) -> None:
        """Wait for a condition on the row."""
        with anyio.fail_after(SOON):
            while not await self.execute("select 1 from {s}.schedule where " + condition):  # noqa: ASYNC110
                await anyio.sleep(0.01)


@pytest.fixture
async def scene(app: PgQueuer, conn: Connection) -> Scene:
    """One schedule that is due as soon as a worker starts."""
    scene = Scene(app, conn)
    await scene.prepare()
    return scene


@TIMES
@pytest.mark.parametrize("statement", ["register_schedules", "read_schedules", "fire_schedules"])
async def test_a_lost_answer_makes_no_run_too_many_and_none_too_few(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, statement: str, when: str
) -> None:
    """Whatever statement of the scheduler it is, and on which way it was lost."""
    failures = [when]
    monkeypatch.setattr(scheduler, statement, partial(lose, getattr(statements, statement), failures))
    async with running_worker(scene.app):
        await scene.wait("last_status = 'successful' and worker_id is null")
    assert [] == failures
    assert [NEW_YEAR] == scene.runs


@TIMES
async def test_the_end_of_a_run_is_stored_whatever_is_lost(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Sent again until it is answered; the second time it changes nothing if the first has."""
    failures = [when, when]
    monkeypatch.setattr(completer, "release_schedules", partial(lose, statements.release_schedules, failures))
    async with running_worker(scene.app):
        await scene.wait("last_status = 'successful' and worker_id is null")
    assert [] == failures
    assert [NEW_YEAR] == scene.runs
    assert [(None, NEW_YEAR)] == await scene.execute("select given_back_due_at, last_due_at from {s}.schedule")


@TIMES
async def test_what_cannot_be_given_back_at_once_is_given_back_later(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The answer to the claim is lost, and then the request or the answer that was to mend it."""
    failures, more_failures = ["after"], [when]
    monkeypatch.setattr(scheduler, "fire_schedules", partial(lose, statements.fire_schedules, failures))
    monkeypatch.setattr(scheduler, "release_schedules", partial(lose, statements.release_schedules, more_failures))
    async with running_worker(scene.app):
        await scene.wait("last_status = 'successful' and worker_id is null")
    assert ([], []) == (failures, more_failures)
    assert [NEW_YEAR] == scene.runs


@pytest.mark.parametrize("by_others", [False, True])
async def test_only_what_was_given_back_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, by_others: bool
) -> None:
    """The answer to the claim is lost; before it is given back, somebody else may have released it."""
    release = statements.release_schedules

    async def release_late(*args: Any, **kwargs: Any) -> Any:
        if by_others:
            await release(*args, **kwargs)
        return await release(*args, **kwargs)

    monkeypatch.setattr(scheduler, "fire_schedules", partial(lose, statements.fire_schedules, ["after"]))
    monkeypatch.setattr(scheduler, "release_schedules", release_late)
    async with running_worker(scene.app):
        await scene.wait("last_status = 'successful' and worker_id is null")
    told = "gave back scheduled runs that were taken without an answer: ['report']"
    assert ([] if by_others else [told]) == [one.message for one in caplog.records if "gave back" in one.message]
    assert [NEW_YEAR] == scene.runs


class Remover:
    """Removes rows as soon as they are registered, so many times."""

    def __init__(self, scene: Scene, times: float) -> None:
        self._scene, self._times = scene, times
        self.registered = 0

    async def __call__(self, *args: Any, **kwargs: Any) -> int:
        self.registered += 1
        count = await statements.register_schedules(*args, **kwargs)
        if self.registered <= self._times:
            await self._scene.execute("delete from {s}.schedule")
        return count


async def test_a_row_that_vanishes_at_the_start_is_made_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed between its registration and the first look at it: nobody would ask for it any more."""
    remover = Remover(scene, 1)
    monkeypatch.setattr(scheduler, "register_schedules", remover)
    async with running_worker(scene.app):
        await scene.wait("true")
        await scene.prepare_again()
        await scene.wait("last_status = 'successful' and worker_id is null")
    assert 2 == remover.registered
    assert [NEW_YEAR] == scene.runs


async def test_a_row_that_cannot_be_kept_is_made_once_a_look(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody removes it whenever it is made: no loop, and the worker starts."""
    remover = Remover(scene, math.inf)
    monkeypatch.setattr(scheduler, "register_schedules", remover)
    async with running_worker(scene.app):
        pass
    assert 2 == remover.registered
    assert [] == scene.runs


async def test_a_stop_does_not_wait_for_a_claim_that_is_not_answered(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is carried out and its answer does not come: the worker leaves soon and gives back what it never started."""
    taken = anyio.Event()
    fire = statements.fire_schedules

    async def hang(*args: Any, **kwargs: Any) -> None:
        await fire(*args, **kwargs)
        taken.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(scheduler, "fire_schedules", hang)
    with anyio.fail_after(BUSY):
        async with running_worker(scene.app):
            await taken.wait()
    assert [] == scene.runs
    assert [(None, NEW_YEAR)] == await scene.execute("select worker_id, given_back_due_at from {s}.schedule")


async def test_a_claim_that_commits_late_is_given_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement on a connection that was given up is carried out after the rows were read again.

    No notification is needed to run it then.
    """
    monkeypatch.setattr(scheduler.Scheduler, "look", lambda _: None)
    fire, read = statements.fire_schedules, statements.read_schedules
    late: list[Callable[[], Awaitable[Any]]] = []
    given_up = False

    async def give_up(conn: Connection, *args: Any, **kwargs: Any) -> Any:
        nonlocal given_up
        if given_up:
            return await fire(conn, *args, **kwargs)
        given_up = True
        late.append(partial(fire, scene.conn, *args, **kwargs))
        raise OperationalError("nobody knows what became of it")

    async def read_and_then_commit(*args: Any, **kwargs: Any) -> Any:
        rows = await read(*args, **kwargs)
        if late:
            await late.pop()()
        return rows

    monkeypatch.setattr(scheduler, "fire_schedules", give_up)
    monkeypatch.setattr(scheduler, "read_schedules", read_and_then_commit)
    async with running_worker(scene.app):
        await scene.wait("last_status = 'successful' and worker_id is null")
    assert given_up
    assert [NEW_YEAR] == scene.runs


async def test_a_read_that_is_never_answered_is_repeated(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection has gone silent: it is given up, and what is due runs."""
    await scene.execute("update {s}.schedule set last_due_at = clock_timestamp()")
    silent: list[bool] = []
    read = statements.read_schedules

    async def read_or_hang(*args: Any, **kwargs: Any) -> Any:
        if silent and silent.pop():
            await anyio.sleep_forever()
        return await read(*args, **kwargs)

    monkeypatch.setattr(scheduler, "read_schedules", read_or_hang)
    monkeypatch.setattr(scheduler, "PATIENCE", 0.3)
    async with running_worker(scene.app):
        silent.append(True)
        await scene.execute("update {s}.schedule set given_back_due_at = %s", NEW_YEAR)
        await scene.execute("select pg_notify('pgq_anyio.' || %s, 'schedule')", scene.app.schema)
        await scene.wait("last_status = 'successful' and worker_id is null")
    assert [] == silent
    assert [NEW_YEAR] == scene.runs


@TIMES
async def test_a_change_that_could_not_be_read_is_read_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The notification is heard once; its read fails."""
    await scene.execute("update {s}.schedule set last_due_at = clock_timestamp()")
    failures: list[str] = []
    monkeypatch.setattr(scheduler, "read_schedules", partial(lose, statements.read_schedules, failures))
    async with running_worker(scene.app):
        failures.append(when)
        await scene.execute("update {s}.schedule set given_back_due_at = %s", NEW_YEAR)
        await scene.execute("select pg_notify('pgq_anyio.' || %s, 'schedule')", scene.app.schema)
        await scene.wait("last_status = 'successful' and worker_id is null")
    assert [] == failures
    assert [NEW_YEAR] == scene.runs


@pytest.mark.promise(44, 48)
async def test_after_a_lost_claim_the_rows_are_read_with_each_heartbeat_and_no_more(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the first claim never came: whatever became of it is found, without looking all the time."""
    failures, read, looks = ["before"], statements.read_schedules, list[float]()

    async def count(*args: Any, **kwargs: Any) -> Any:
        looks.append(anyio.current_time())
        return await read(*args, **kwargs)

    monkeypatch.setattr(scheduler, "fire_schedules", partial(lose, statements.fire_schedules, failures))
    monkeypatch.setattr(scheduler, "read_schedules", count)
    async with running_worker(scene.app, lease=2.0):
        await scene.wait("last_status = 'successful' and worker_id is null")
        since = anyio.current_time()
        await anyio.sleep(2.5)  # how often it looks meanwhile is the fact: there are three heartbeats in two seconds
    assert 1 <= sum(at > since for at in looks) <= 6


@pytest.mark.promise(42)
async def test_a_server_that_answers_late_is_waited_for_longer(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim of an occurrence has a second with this lease; the one after it two."""
    fire, began = statements.fire_schedules, list[float]()

    async def take_long(*args: Any, **kwargs: Any) -> Any:
        began.append(anyio.current_time())
        await anyio.sleep(1.2)
        return await fire(*args, **kwargs)

    monkeypatch.setattr(scheduler, "fire_schedules", take_long)
    async with running_worker(scene.app, lease=6.0):
        await scene.wait("last_status = 'successful' and worker_id is null")
    assert 2 == len(began)
    assert [NEW_YEAR] == scene.runs


@pytest.mark.promise(43)
@pytest.mark.parametrize("on_lease_lost", ["cancel", "continue"])
@pytest.mark.parametrize(
    "how", ["update {s}.schedule set worker_id = null, claim_no = null", "delete from {s}.schedule"]
)
async def test_a_run_whose_row_is_not_ours_any_more_is_cancelled(
    app: PgQueuer, conn: Connection, how: str, on_lease_lost: OnLeaseLost
) -> None:
    """A failover has lost its claim, or its schedule was removed by force: the next run may start beside it. If jobs
    are to go on whatever becomes of the lease, so is the run.
    """
    started, cancelled, reasons = anyio.Event(), anyio.Event(), list[CancelReason | None]()
    scene = Scene(app, conn)

    @app.schedule("long", YEARLY)
    async def long(schedule: Schedule, context: Context) -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            reasons.append(context.cancel_reason)
            cancelled.set()

    await scene.execute(
        "insert into {s}.schedule (name, expression, timezone, last_due_at) values ('long', %s, 'UTC', %s)",
        YEARLY,
        NEW_YEAR - timedelta(days=1),
    )
    async with running_worker(app, on_lease_lost=on_lease_lost, shutdown_grace=0):
        with anyio.fail_after(SOON):
            await started.wait()
        await scene.execute(how + " where name = 'long'")
        registered = "select registered_at from {s}.schedule where name = 'report'"
        before = await scene.execute(registered)
        await scene.execute("delete from {s}.schedule where name = 'report'")
        await scene.execute("select pg_notify('pgq_anyio.' || %s, 'schedule')", app.schema)
        if on_lease_lost == "cancel":
            with anyio.fail_after(SOON):
                await cancelled.wait()
        else:
            with anyio.fail_after(SOON):  # it is made again by the same reading
                while await scene.execute(registered) in ([], before):  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            await anyio.wait_all_tasks_blocked()
            assert [] == reasons
    assert [CancelReason.LEASE_LOST if on_lease_lost == "cancel" else CancelReason.SHUTDOWN] == reasons[:1]


async def test_a_claim_that_commits_when_nothing_is_due_is_found_by_a_heartbeat(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would ask for this schedule before the next New Year, and nobody is notified."""
    read = statements.read_schedules
    lost: list[dict[str, Any]] = []
    committed = False

    async def give_up(*args: Any, **kwargs: Any) -> Any:
        lost.append(kwargs)
        await scene.execute("update {s}.schedule set last_due_at = clock_timestamp()")
        raise OperationalError("nobody knows what became of it")

    async def read_and_then_commit(*args: Any, **kwargs: Any) -> Any:
        nonlocal committed
        rows = await read(*args, **kwargs)
        if lost and not committed:
            committed = True
            await scene.execute(
                "update {s}.schedule set worker_id = %s, claim_no = %s, due_at = %s",
                lost[0]["worker_id"],
                lost[0]["claim_no"],
                NEW_YEAR,
            )
            monkeypatch.setattr(scheduler, "fire_schedules", fire)
        return rows

    fire = statements.fire_schedules
    monkeypatch.setattr(scheduler, "fire_schedules", give_up)
    monkeypatch.setattr(scheduler, "read_schedules", read_and_then_commit)
    async with running_worker(scene.app, lease=2.0):
        await scene.wait("last_status = 'successful' and worker_id is null")
    assert [NEW_YEAR] == scene.runs

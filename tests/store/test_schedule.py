"""The statements on ``schedule``: taking an occurrence, its end, and what becomes of it when its worker is gone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import attrs
import pytest
from psycopg import sql

from pgq_anyio._db import Connection
from pgq_anyio._lifecycle import GIVEN_BACK, SUCCEEDED, Cancelled, ErrorText, Failed
from pgq_anyio._store._sql import Store
from pgq_anyio._store._steps import run_steps
from pgq_anyio._store.operating import list_schedules, run_schedules, set_paused
from pgq_anyio._store.schedule import (
    Taken,
    fire_schedules,
    read_schedules,
    register_schedules,
    release_schedules,
)
from pgq_anyio._store.worker import beat_worker, leave, mark_left, register_worker, rescue_jobs
from pgq_anyio._timetable import HeldSchedule, ScheduleKey, ScheduleState, Wanted

pytestmark = pytest.mark.anyio

KEY: ScheduleKey = ("report", "* * * * *")
FIRST, SECOND = 11, 22
#: How long a statement may take that must not wait (in seconds).
SOON = 5.0


@attrs.frozen
class Bench:
    """A connection and the statements of one schema, with the two workers and the schedule that a test plays with."""

    conn: Connection
    store: Store

    async def execute(self, text: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement of the test's own; ``{s}`` stands for the schema."""
        bound = sql.SQL(text).format(s=sql.Identifier(self.store.schema))
        cursor = await self.conn.execute(bound, parameters)
        return await cursor.fetchall() if cursor.description is not None else []

    async def state(self, key: ScheduleKey = KEY) -> ScheduleState:
        """What the row says."""
        (state,) = (await read_schedules(self.conn, self.store, [key])).states
        return state

    async def pause(self, name: str, expression: str | None = None, *, paused: bool = True) -> list[ScheduleKey]:
        """Pause or resume schedules; which were changed."""
        return await run_steps(self.conn, set_paused(self.store, name, expression, paused=paused))

    async def age(self, key: ScheduleKey = KEY, seconds: float = 120.0) -> ScheduleState:
        """Make the last occurrence lie in the past; the row."""
        await self.execute(
            "update {s}.schedule set last_due_at = clock_timestamp() - make_interval(secs => %s)"
            " where name = %s and expression = %s",
            seconds,
            *key,
        )
        return await self.state(key)

    async def fire(self, *wanted: Wanted, worker_id: int = FIRST, claim_no: int = 1) -> Taken:
        """Ask for occurrences."""
        return await fire_schedules(self.conn, self.store, wanted, worker_id=worker_id, claim_no=claim_no)

    async def register_worker(self, worker_id: int) -> None:
        """Make a worker known."""
        await register_worker(
            self.conn, self.store, worker_id=worker_id, name="w", entrypoints=[], max_crashes=[], lease=30.0
        )


@pytest.fixture
async def bench(conn: Connection, schema: str) -> Bench:
    """Two workers and one schedule."""
    bench = Bench(conn, Store(schema))
    for worker_id in (FIRST, SECOND):
        await bench.register_worker(worker_id)
    await register_schedules(conn, bench.store, [(*KEY, "UTC")])
    return bench


def wanted(state: ScheduleState, due_at: datetime | None = None) -> Wanted:
    """The occurrence a minute after the last one."""
    return Wanted(state, due_at or state.last_due_at + timedelta(minutes=1))


def held(worker_id: int = FIRST, claim_no: int = 1, key: ScheduleKey = KEY) -> HeldSchedule:
    return HeldSchedule(*key, worker_id, claim_no)


async def test_a_new_schedule_starts_from_now(bench: Bench) -> None:
    """By the database's clock: nothing in the past is missed."""
    ((age,),) = await bench.execute(
        "select extract(epoch from clock_timestamp() - last_due_at)::float8 from {s}.schedule"
    )
    assert 0.0 <= age < SOON
    clock = (await read_schedules(bench.conn, bench.store, [KEY])).clock
    assert abs(datetime.now(UTC).timestamp() - clock) < 60.0


async def test_registering_again_changes_nothing(bench: Bench) -> None:
    """The worker that starts later does not move the occurrences of the others."""
    before = await bench.age()
    assert 0 == await register_schedules(bench.conn, bench.store, [(*KEY, "UTC")])
    assert before == await bench.state()


async def test_a_changed_time_zone_is_taken_over_from_now_on(bench: Bench) -> None:
    """What the old zone had not run yet is not missed in the new one."""
    before = await bench.age()
    assert 1 == await register_schedules(bench.conn, bench.store, [(*KEY, "Europe/Berlin")])
    assert timedelta(seconds=100) < (await bench.state()).last_due_at - before.last_due_at
    assert [("Europe/Berlin",)] == await bench.execute("select timezone from {s}.schedule")


async def test_one_name_with_two_expressions_is_two_rows(bench: Bench) -> None:
    other = ("report", "@hourly")
    await register_schedules(bench.conn, bench.store, [(*other, "UTC")])
    read = await read_schedules(bench.conn, bench.store, [KEY, other, ("unknown", "* * * * *")])
    assert {KEY, other} == {state.key for state in read.states}


async def test_no_rows_still_tell_the_time(bench: Bench) -> None:
    read = await read_schedules(bench.conn, bench.store, [("unknown", "* * * * *")])
    assert [] == read.states
    assert read.clock > 1e9
    gone = ScheduleState(
        "unknown", "* * * * *", datetime.now(UTC), None, None, None, paused=False, last_finished_at=None
    )
    taken = await bench.fire(wanted(gone, datetime.now(UTC)))
    assert ([], []) == (taken.states, taken.fired)
    assert taken.clock > 1e9


@pytest.mark.promise(41)
async def test_times_are_in_utc_whatever_the_connection_counts_in(bench: Bench, server_dsn: str) -> None:
    """Two times of Berlin, in the hour that comes twice, would be one; all that is told of a row is in UTC."""
    berlin = await Connection.connect(server_dsn, options="-c TimeZone=Europe/Berlin")
    told: list[datetime | None] = []
    try:
        for number in range(2):
            moment = datetime(2024, 10, 27, number, 30, tzinfo=UTC)
            await bench.execute(
                "update {s}.schedule set last_due_at = %s, given_back_due_at = %s, registered_at = %s,"
                " last_finished_at = %s, worker_id = null, claim_no = null",
                *[moment] * 4,
            )
            (state,) = (await read_schedules(berlin, bench.store, [KEY])).states
            taken = await fire_schedules(berlin, bench.store, [wanted(state, moment)], worker_id=FIRST, claim_no=1)
            assert [KEY] == taken.fired
            (record,) = await run_steps(berlin, list_schedules(bench.store))
            told += [state.last_due_at, state.given_back_due_at, state.last_finished_at, taken.states[0].last_due_at]
            told += [record.last_due_at, record.registered_at, record.due_at, record.last_finished_at]
    finally:
        berlin.abort()
    assert [f"2024-10-27T0{number}:30:00+00:00" for number in range(2) for _ in range(8)] == [
        moment and moment.isoformat() for moment in told
    ]


async def test_an_occurrence_is_taken_once(bench: Bench) -> None:
    """Who asks with the same knowledge a moment later learns who has it."""
    state = await bench.age()
    due_at = wanted(state).due_at
    first = await bench.fire(wanted(state), worker_id=FIRST, claim_no=5)
    second = await bench.fire(wanted(state), worker_id=SECOND, claim_no=5)
    assert ([KEY], []) == (first.fired, second.fired)
    expected = attrs.evolve(state, last_due_at=due_at, worker_id=FIRST, claim_no=5)
    assert [expected] == first.states == second.states
    assert [(due_at, True)] == await bench.execute("select due_at, started_at is not null from {s}.schedule")


async def test_an_occurrence_that_has_ended_is_not_taken_again(bench: Bench) -> None:
    """A worker that is slow by a whole run must not repeat it: what it believes of the row is no longer true."""
    state = await bench.age()
    await bench.fire(wanted(state))
    await release_schedules(bench.conn, bench.store, [(held(), SUCCEEDED)])
    late = await bench.fire(wanted(state), worker_id=SECOND)
    assert [] == late.fired
    assert wanted(state).due_at == late.states[0].last_due_at
    assert late.states[0].worker_id is None


async def test_who_waits_for_the_row_sees_what_the_other_did(bench: Bench, server_dsn: str) -> None:
    """The snapshot of the second statement is older than the first one's commit; its answer is not."""
    state = await bench.age()
    answers: list[Taken] = []
    other = await Connection.connect(server_dsn)

    async def ask() -> None:
        answers.append(await fire_schedules(other, bench.store, [wanted(state)], worker_id=SECOND, claim_no=2))

    try:
        await bench.execute("begin")
        first = await bench.fire(wanted(state), worker_id=FIRST)
        with anyio.fail_after(SOON):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                waiting = "select from pg_locks where pid = %s and not granted"
                while not await bench.execute(waiting, other.info.backend_pid):  # noqa: ASYNC110  (a fact of the server)
                    await anyio.sleep(0.005)
                await bench.execute("commit")
    finally:
        other.abort()
    assert [KEY] == first.fired
    assert [] == answers[0].fired
    assert FIRST == answers[0].states[0].worker_id


@pytest.mark.promise(43)
async def test_the_next_occurrence_is_not_taken_while_one_runs(bench: Bench) -> None:
    """Not even by who knows the row as it is: a run does not overlap itself."""
    state = await bench.age()
    running = (await bench.fire(wanted(state))).states[0]
    for worker_id in (FIRST, SECOND):
        taken = await bench.fire(wanted(running), worker_id=worker_id, claim_no=2)
        assert ([], [running]) == (taken.fired, taken.states)


async def test_nothing_is_taken_before_its_time(bench: Bench) -> None:
    """The database's clock decides; the answer carries it, and it is behind the occurrence."""
    state = await bench.state()
    early = wanted(state, datetime.now(UTC) + timedelta(seconds=60))
    taken = await bench.fire(early)
    assert [] == taken.fired
    assert [state] == taken.states
    assert taken.clock < early.due_at.timestamp()


async def test_a_paused_schedule_is_not_taken(bench: Bench) -> None:
    state = await bench.age()
    assert [KEY] == await bench.pause(KEY[0])
    assert [] == await bench.pause(KEY[0])
    taken = await bench.fire(wanted(state))
    assert [] == taken.fired
    assert taken.states[0].paused


async def test_what_comes_due_during_a_pause_is_passed_over(bench: Bench) -> None:
    """Resuming after a month is no reason to catch up."""
    await bench.pause(*KEY)
    before = await bench.age()
    assert [KEY] == await bench.pause(*KEY, paused=False)
    state = await bench.state()
    assert not state.paused
    assert timedelta(seconds=100) < state.last_due_at - before.last_due_at


@pytest.mark.parametrize("asked", [True, False])
async def test_a_run_that_waits_outlasts_a_pause(bench: Bench, asked: bool) -> None:
    """Whether it was asked for or interrupted, it is made when the schedule is resumed."""
    if asked:
        await run_steps(bench.conn, run_schedules(bench.store, *KEY))
    else:
        await bench.execute("update {s}.schedule set given_back_due_at = last_due_at")
    before = await bench.state()
    assert before.given_back_due_at is not None
    await bench.pause(*KEY)
    await bench.pause(*KEY, paused=False)
    assert before.given_back_due_at == (await bench.state()).given_back_due_at


async def test_a_worker_that_was_declared_dead_takes_nothing(bench: Bench) -> None:
    state = await bench.age()
    assert [] == (await bench.fire(wanted(state), worker_id=99)).fired
    await mark_left(bench.conn, bench.store, worker_id=FIRST)
    assert [] == (await bench.fire(wanted(state), worker_id=FIRST)).fired


ERROR = ErrorText("ValueError", "no such report", "Traceback …")


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        pytest.param(SUCCEEDED, ("successful", None, None, None), id="successful"),
        pytest.param(Failed(ERROR), ("failed", *attrs.astuple(ERROR)), id="failed"),
        pytest.param(Cancelled("not today"), ("cancelled", None, "not today", None), id="cancelled"),
        pytest.param(GIVEN_BACK, ("given_back", None, None, None), id="given-back"),
    ],
)
async def test_the_end_of_a_run_is_recorded(bench: Bench, outcome: Any, expected: tuple[object, ...]) -> None:
    state = await bench.age()
    await bench.fire(wanted(state))
    assert [(*KEY, 1)] == await release_schedules(bench.conn, bench.store, [(held(), outcome)])
    rows = await bench.execute(
        "select last_status, last_error_type, last_error_message, last_error_traceback, worker_id, claim_no,"
        " last_finished_at >= started_at from {s}.schedule"
    )
    assert [(*expected, None, None, True)] == rows


async def test_the_end_of_a_run_is_fenced(bench: Bench) -> None:
    """A release that is sent again, or by a worker that lost the row, does not end the next run."""
    state = await bench.age()
    await bench.fire(wanted(state), claim_no=1)
    await release_schedules(bench.conn, bench.store, [(held(claim_no=1), SUCCEEDED)])
    next_state = await bench.state()
    await bench.fire(wanted(next_state), claim_no=2)
    for stale in (held(claim_no=1), held(worker_id=SECOND, claim_no=2)):
        assert [] == await release_schedules(bench.conn, bench.store, [(stale, GIVEN_BACK)])
    state = await bench.state()
    assert (FIRST, 2, None) == (state.worker_id, state.claim_no, state.given_back_due_at)


async def test_a_run_that_was_given_back_is_taken_again_before_any_other(bench: Bench) -> None:
    """The occurrence itself, although its time is not later than the last one's."""
    state = await bench.age()
    due_at = wanted(state).due_at
    await bench.fire(wanted(state))
    await release_schedules(bench.conn, bench.store, [(held(), GIVEN_BACK)])
    back = await bench.state()
    assert (due_at, due_at) == (back.given_back_due_at, back.last_due_at)
    # Whoever does not know of it yet is refused, and learns of it.
    ignorant = await bench.fire(Wanted(attrs.evolve(back, given_back_due_at=None), due_at), worker_id=SECOND)
    assert ([], [back]) == (ignorant.fired, ignorant.states)
    # What has come since then is not run a second time because of it.
    later = await bench.age(seconds=1.0)
    again = await bench.fire(wanted(later, due_at), worker_id=SECOND, claim_no=3)
    assert [KEY] == again.fired
    assert [attrs.evolve(later, given_back_due_at=None, worker_id=SECOND, claim_no=3)] == again.states
    assert again.states == [await bench.state()]


@pytest.mark.promise(44)
async def test_the_schedule_of_a_dead_worker_is_released_and_its_run_not_repeated(bench: Bench) -> None:
    """Nobody knows how far it came; the next occurrence runs."""
    state = await bench.age()
    await bench.fire(wanted(state))
    await rescue_jobs(bench.conn, bench.store, [(FIRST, 0)], max_crashes=5)
    after = await bench.state()
    assert (None, None, None) == (after.worker_id, after.claim_no, after.given_back_due_at)
    rows = await bench.execute("select last_status, last_error_type, last_error_message from {s}.schedule")
    assert [("failed", "WorkerDied", "worker died")] == rows
    assert [KEY] == (await bench.fire(wanted(after), worker_id=SECOND)).fired


async def test_a_worker_that_beats_is_not_judged_by_an_old_beat(bench: Bench) -> None:
    state = await bench.age()
    await bench.fire(wanted(state))
    await beat_worker(bench.conn, bench.store, worker_id=FIRST)
    await rescue_jobs(bench.conn, bench.store, [(FIRST, 0)], max_crashes=5)
    assert FIRST == (await bench.state()).worker_id


@pytest.mark.parametrize("by_rescue", [True, False], ids=["marked-as-left", "leave"])
async def test_the_run_of_a_worker_that_left_is_given_back(bench: Bench, by_rescue: bool) -> None:
    state = await bench.age()
    await bench.fire(wanted(state))
    if by_rescue:
        await mark_left(bench.conn, bench.store, worker_id=FIRST)
        await rescue_jobs(bench.conn, bench.store, [(FIRST, 0)], max_crashes=5)
    else:
        await leave(bench.conn, bench.store, worker_id=FIRST)
    after = await bench.state()
    assert (None, wanted(state).due_at) == (after.worker_id, after.given_back_due_at)
    assert [("given_back", None)] == await bench.execute("select last_status, last_error_type from {s}.schedule")


async def test_a_claim_that_was_committed_after_the_death_of_its_worker_is_found(bench: Bench) -> None:
    """A row that names a worker which does not exist: every heartbeat of the others sees it."""
    state = await bench.age()
    await bench.fire(wanted(state))
    await bench.execute("delete from {s}.worker where worker_id = %s", FIRST)
    pulse = await beat_worker(bench.conn, bench.store, worker_id=SECOND)
    assert pulse is not None
    assert pulse.orphans
    await rescue_jobs(bench.conn, bench.store, [], max_crashes=5)
    assert (await bench.state()).worker_id is None
    pulse = await beat_worker(bench.conn, bench.store, worker_id=SECOND)
    assert pulse is not None
    assert not pulse.orphans


@pytest.mark.parametrize(
    ("what", "notified"),
    [
        ("success", False),
        ("success of a leaving worker", True),
        ("given back", True),
        ("pause", True),
        ("rescue", True),
        ("leave", True),
        ("leave without a run", False),
    ],
)
async def test_others_are_told_when_they_may_have_something_to_do(
    bench: Bench, server_dsn: str, what: str, notified: bool
) -> None:
    """And are left alone otherwise: a schedule of every second must not wake the whole fleet twice."""
    state = await bench.age()
    listener = await Connection.connect(server_dsn)
    try:
        await listener.execute(sql.SQL("listen {}").format(sql.Identifier(bench.store.channel)))
        if what != "leave without a run":
            await bench.fire(wanted(state))
        match what:
            case "success":
                await release_schedules(bench.conn, bench.store, [(held(), SUCCEEDED)])
            case "success of a leaving worker":
                await release_schedules(bench.conn, bench.store, [(held(), SUCCEEDED)], leaving=True)
            case "given back":
                await release_schedules(bench.conn, bench.store, [(held(), GIVEN_BACK)])
            case "pause":
                await bench.pause(*KEY)
            case "rescue":
                await rescue_jobs(bench.conn, bench.store, [(FIRST, 0)], max_crashes=5)
            case _:
                await leave(bench.conn, bench.store, worker_id=FIRST)
        # The end of what can be heard of it.
        await bench.conn.execute("select pg_notify(%s, 'the end')", [bench.store.channel])
        heard: list[str] = []
        with anyio.fail_after(SOON):
            while "the end" not in heard:
                heard += [one.payload for one in await listener.wait_notifies(SOON)]
    finally:
        listener.abort()
    assert (["schedule"] if notified else []) == heard[:-1]


async def test_rows_are_locked_in_the_order_of_their_key(bench: Bench, server_dsn: str) -> None:
    """Workers that ask for the same rows in opposite orders: no deadlock, and each row has one owner.

    A row in the middle is locked until all of them wait: whoever locked in its own order holds what others need.
    """
    keys = [(f"s{number:02}", "* * * * *") for number in range(9)]
    await register_schedules(bench.conn, bench.store, [(*key, "UTC") for key in keys])
    await bench.execute("update {s}.schedule set last_due_at = clock_timestamp() - interval '2 minutes'")
    states = sorted((await read_schedules(bench.conn, bench.store, keys)).states, key=lambda state: state.key)
    fired: list[ScheduleKey] = []
    # A plan that would lock in the order of the question, which the planner may choose for a larger table.
    options = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off"
    connections = {worker_id: await Connection.connect(server_dsn, options=options) for worker_id in (FIRST, SECOND)}

    async def ask(worker_id: int) -> None:
        asked = [wanted(state) for state in (states if worker_id == FIRST else reversed(states))]
        connection = connections[worker_id]
        fired.extend((await fire_schedules(connection, bench.store, asked, worker_id=worker_id, claim_no=1)).fired)

    try:
        await bench.execute("begin")
        await bench.execute("select from {s}.schedule where name = %s for update", keys[4][0])
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for worker_id in connections:
                    tasks.start_soon(ask, worker_id)
                pids = [connection.info.backend_pid for connection in connections.values()]
                waiting = "select count(distinct pid) from pg_locks where pid = any (%s) and not granted"
                while [(2,)] != await bench.execute(waiting, pids):  # noqa: ASYNC110  (a fact of the server)
                    await anyio.sleep(0.005)
                await bench.execute("commit")
    finally:
        for connection in connections.values():
            connection.abort()
    assert sorted(keys) == sorted(fired)

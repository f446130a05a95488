"""What the claimer of limited names does when its names need processes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import anyio
import pytest

from pgq_anyio import Job, JobId
from pgq_anyio._services.limited import LimitedClaimer, run_limited
from pgq_anyio._services.limited import claiming as claiming_module
from pgq_anyio._services.limited import service as service_module
from pgq_anyio._services.limited.claiming import claim_limited_once
from pgq_anyio._store.limiter import LimitedClaim, NameAnswer
from tests.values.limited_claimer import POLL, due, make_claimer

pytestmark = pytest.mark.anyio


def job(number: int, name: str) -> Job:
    return Job(JobId(number), name, None, 0, 1, 0, datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.promise(5)
async def test_nothing_is_held_ahead_while_a_limited_name_waits_for_a_process() -> None:
    """Its job may be the first one, and the next process would be another's for ever."""
    claimer = make_claimer(["plain", "limited"], in_process=["plain", "limited"], unlimited=["plain"], processes=2)
    claimer.processes._ahead = 3
    plain, limited = claimer.names.values()
    plain.wake()
    limited.ready_at = anyio.current_time() + 3600
    for _ in range(4):
        claimer.processes.take()
    assert (["plain"], 1) == (due(claimer), claimer.seats_for([plain]))
    limited.wake()
    assert [] == due(claimer)
    for _ in range(3):
        claimer.processes.give_back(started=True)
    assert ["plain", "limited"] == due(claimer)
    assert 1 == claimer.seats_for([plain, limited])


@pytest.mark.promise(5)
async def test_a_name_that_lacks_a_process_when_its_token_comes_is_not_forgotten() -> None:
    """It is asked for when there is one; the time of its token was not yet come when the process was taken."""
    claimer = make_claimer(["rated"], in_process=["rated"], processes=1)
    (rated,) = claimer.names.values()
    rated.resting, rated.ready_at = False, anyio.current_time() + 0.05
    claimer.processes.take()
    with anyio.fail_after(20):
        await claimer.wait_news()  # the ring of the definitions
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(free_a_process, claimer.processes)
            while not due(claimer):
                await claimer.wait_news()
    assert ["rated"] == due(claimer)


async def free_a_process(processes: Any) -> None:
    """Before the token comes: nobody is due then, and nobody is rung."""
    processes.give_back(started=True)


@pytest.mark.promise(5)
async def test_processes_that_were_taken_are_no_contention(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that becomes free while the claim is under way was not there for it: nobody has locked what is left."""
    names = ["one", "two"]
    claimer = make_claimer(names, in_process=names, unlimited=names, processes=2)
    claimer.processes.take()
    asked: list[int] = []

    async def claim_limited(*_: object, processes: int, **options: object) -> LimitedClaim:
        asked.append(processes)
        claimer.processes.give_back(started=True)
        answers = [NameAnswer(name, True, None, 1, None) for name in names]
        return LimitedClaim([(job(1, "one"), 1)], answers, 0)

    monkeypatch.setattr(claiming_module, "claim_limited", claim_limited)
    assert 1 == await claim_limited_once(claimer, claimer.due())
    assert [1] == asked
    assert 1 == claimer.reach
    assert names == due(claimer)


@pytest.mark.promise(18)
@pytest.mark.parametrize("is_full", [True, False], ids=["no slot is free", "there are slots"])
async def test_a_slot_without_a_process_is_told_beside_other_names(
    monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    """Although there is always something to do for another name, or no room for it."""
    claimer = make_claimer(["needy", "busy"], in_process=["needy"], processes=1, max_concurrency=1)
    claimer.processes.take()
    for one in claimer.names.values():
        one.wake()
    number = claimer.holdings.open_claim(1) if is_full else None
    claimer.freed({"needy": 1})
    told: list[list[str]] = []

    async def notify_slots(conn: object, store: object, names: list[str]) -> None:
        told.append(names)
        scope.cancel()

    monkeypatch.setattr(service_module, "notify_slots", notify_slots)
    monkeypatch.setattr(service_module, "claim_limited_once", claim_nothing)
    with anyio.fail_after(20), anyio.CancelScope() as scope:
        await run_limited(claimer)
    assert [["needy"]] == told
    if number is not None:
        claimer.holdings.resolve_claim(number)


async def claim_nothing(*_: object) -> int:
    """A claim that leaves everything due."""
    await anyio.lowlevel.checkpoint()
    return 0


@pytest.mark.promise(5)
async def test_an_empty_name_is_marked_beside_a_busy_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enqueuers are to notify this worker for it, though the worker never idles."""
    claimer = make_claimer(["empty", "busy"])
    empty, busy = claimer.names.values()
    busy.wake()
    empty.look_again(anyio.current_time(), POLL)
    marked: list[list[str]] = []

    async def set_dozing(conn: object, store: object, *, worker_id: int, entrypoints: list[str]) -> None:
        marked.append(entrypoints)
        scope.cancel()

    monkeypatch.setattr(service_module, "set_dozing", set_dozing)
    monkeypatch.setattr(service_module, "claim_limited_once", claim_nothing)
    with anyio.fail_after(20), anyio.CancelScope() as scope:
        await run_limited(claimer)
    assert [["empty"]] == marked


@pytest.mark.promise(48)
async def test_a_poll_by_somebody_else_keeps_the_next_one() -> None:
    """A name whose poll has passed without a process is asked for again in time: it was only put off."""
    claimer = make_claimer(["needy"], in_process=["needy"], processes=1)
    claimer.poll_interval = 0.05
    claimer.processes.take()
    await claimer.wait_news()  # the ring of the definitions
    assert [] == due(claimer)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look_for_all, claimer)
            await claimer.wait_news()
        while not due(claimer):
            await claimer.wait_news()


async def look_for_all(claimer: LimitedClaimer) -> None:
    """Then the process becomes free, before the name is due."""
    claimer.looked(frozenset())
    claimer.processes.give_back(started=True)
    claimer.process_freed()


@pytest.mark.promise(19)
async def test_a_claimer_that_was_late_has_its_turn_again_when_it_gets_on() -> None:
    """Although it finds no room then: what becomes free is not all for the other one."""
    claimer = make_claimer(["one"], max_concurrency=1)
    number = claimer.holdings.open_claim(1)
    claimer.holdings.take_turn()
    claimer.holdings.break_turn()
    async with anyio.create_task_group() as tasks:
        await tasks.start(run_limited, claimer)
        await anyio.wait_all_tasks_blocked()
        claimer.holdings.resolve_claim(number)
        assert (0, 1) == (claimer.holdings.room, claimer.holdings.free)
        tasks.cancel_scope.cancel()

"""Batches that are worth their round trip: who waits for what, and who does not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import anyio
import pytest

from pgq_anyio import Job, JobId
from pgq_anyio import _endings as endings_module
from pgq_anyio._claim_shield import ClaimShield
from pgq_anyio._doorbell import Doorbell
from pgq_anyio._endings import BUSY, WORTHWHILE, Endings
from pgq_anyio._hints import Hints
from pgq_anyio._holdings import Holdings
from pgq_anyio._lifecycle import SUCCEEDED
from pgq_anyio._models import Held
from pgq_anyio._services import claimer as claimer_module
from pgq_anyio._services.claimer import Claimer, run_claimer
from pgq_anyio._stop import Stop

pytestmark = pytest.mark.anyio

SLOTS = 40


def nothing(*_: object) -> None:
    """Be a callback that nobody needs here."""


def put(endings: Endings, count: int, *, urgent: bool = False) -> None:
    for number in range(count):
        held = Held(Job(JobId(number), "fetch", None, 0, 1, 0, datetime.now(UTC)), 1, 1)
        endings.put(held, SUCCEEDED, urgent=urgent)


def make_claimer(room: int) -> tuple[Claimer, int]:
    """A claimer, and the number of a claim that reserves all but ``room`` slots."""
    holdings = Holdings(
        worker_id=1,
        max_concurrency=SLOTS,
        cancel_grace=1.0,
        unstored=lambda: 0,
        on_room=lambda: None,
        on_lost_claim=lambda: None,
        on_cancelled=nothing,
    )
    absent: Any = None  # nothing is asked of the database
    claimer = Claimer(
        line=absent,
        store=absent,
        worker_id=1,
        holdings=holdings,
        hints=Hints(("fetch",)),
        shield=ClaimShield(),
        start_jobs=nothing,
        keeps_back=lambda: False,
        bell=Doorbell(),
        room=Doorbell(),
        batch_size=100,
        poll_interval=30.0,
        on_idle=lambda: None,
        limit_changes=lambda: 0,
        others=list,
        on_looked=nothing,
        on_look_dropped=lambda: None,
        stop=Stop(),
    )
    return claimer, holdings.open_claim(SLOTS - room)


@pytest.mark.parametrize(
    ("behind", "room", "claimed"),
    [
        pytest.param(True, 1, SLOTS, id="jobs wait and there is little room"),
        pytest.param(False, 1, 1, id="no job is known to wait"),
        pytest.param(True, SLOTS // 4, SLOTS // 4, id="there is room enough"),
    ],
)
async def test_a_claimer_that_is_behind_lets_slots_become_free(
    monkeypatch: pytest.MonkeyPatch, behind: bool, room: int, claimed: int
) -> None:
    """For a few milliseconds, however long its last claim took, and only if that is worth it."""
    claimer, number = make_claimer(room)
    claimer.behind, claimer.took = behind, 1000.0
    rooms = []

    async def claim_once(claimer: Claimer) -> bool:
        rooms.append(claimer.holdings.room)
        scope.cancel()
        return True

    async def become_free() -> None:
        claimer.holdings.resolve_claim(number)

    monkeypatch.setattr(claimer_module, "claim_once", claim_once)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(become_free)
            with anyio.CancelScope() as scope:
                await run_claimer(claimer)
    assert [claimed] == rooms


@pytest.mark.promise(19)
async def test_a_claimer_that_hangs_in_its_turn_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one goes on, with all slots that are free, and is not held up again by mere news."""
    claimer, number = make_claimer(3)
    monkeypatch.setattr(claimer_module, "LONGEST_TURN", 0.01)
    rooms = []

    async def claim_once(claimer: Claimer) -> bool:
        rooms.append(claimer.holdings.room)
        claimer.holdings.take_turn()
        if len(rooms) == 2:
            scope.cancel()
        return True

    monkeypatch.setattr(claimer_module, "claim_once", claim_once)
    claimer.holdings.take_turn()
    with anyio.fail_after(20), anyio.CancelScope() as scope:
        await run_claimer(claimer)
    assert [3, 3] == rooms
    claimer.holdings.lose_claim(number)


#: That is fast, if it was within the patience.
MANY = 2 * BUSY


def make_endings(ago: float) -> Endings:
    """So long ago (in seconds) somebody looked how many had come: none."""
    endings = Endings()
    endings._looked_at = anyio.current_time() - ago
    return endings


@pytest.mark.parametrize("end", ["enough", "urgent", "closed"])
async def test_outcomes_that_come_fast_are_gathered(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Until they are worth a batch, somebody waits for one of them, or the worker leaves."""
    monkeypatch.setattr(endings_module, "PATIENCE", 1000.0)
    endings = make_endings(1000.0)
    put(endings, MANY)
    has_gone_on = False

    async def go_on() -> None:
        nonlocal has_gone_on
        has_gone_on = True
        match end:
            case "enough":
                put(endings, WORTHWHILE - MANY)
            case "urgent":
                put(endings, 1, urgent=True)
            case _:
                endings.close()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(go_on)
            await endings.wait_worthwhile()
            assert has_gone_on
    expected = {"enough": WORTHWHILE, "urgent": MANY + 1, "closed": MANY}
    assert expected[end] == len(await endings.take(1000))


async def test_outcomes_are_gathered_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else has to happen. The moment is long here: a busy machine stops programs for some milliseconds."""
    monkeypatch.setattr(endings_module, "PATIENCE", 1.0)
    endings = make_endings(1.0)
    put(endings, MANY)
    began_at = anyio.current_time()
    with anyio.fail_after(20):
        await endings.wait_worthwhile()
    assert anyio.current_time() - began_at > 0.5


@pytest.mark.parametrize("case", ["few", "slow", "many", "urgent", "closed"])
async def test_outcomes_are_stored_at_once_if_waiting_is_not_worth_it(
    monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """At low load nothing ever waits; what was urgent in an earlier batch says nothing of this one."""
    monkeypatch.setattr(endings_module, "PATIENCE", 1000.0)
    endings = make_endings(3000.0 if case == "slow" else 1000.0)
    put(endings, {"few": BUSY - 1, "many": WORTHWHILE}.get(case, MANY), urgent=case == "urgent")
    if case == "closed":
        endings.close()
    with anyio.fail_after(20):
        await endings.wait_worthwhile()
        await endings.take(1000)
    if case == "urgent":
        put(endings, 1)
        with anyio.move_on_after(0.05) as scope:
            await endings.wait_worthwhile()
        assert scope.cancelled_caught

"""One look for the jobs of all names is enough: the claimer of limited names leaves it to the other one."""

from __future__ import annotations

import math
from typing import Any

import anyio
import pytest

from pgq_anyio._hints import Hints
from pgq_anyio._services import claimer as claimer_module
from pgq_anyio._services.claimer import run_claimer
from pgq_anyio._services.limited import LimitedClaimer
from tests.values.limited_claimer import POLL, Line, Plan, due, make_claimer
from tests.values.test_gathering import make_claimer as make_other_claimer

pytestmark = [pytest.mark.anyio, pytest.mark.promise(48)]

NAMES = ("one", "two")


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        pytest.param(-math.inf, ["one", "two"], id="nobody else looks"),
        pytest.param(0.1, [], id="somebody is about to"),
        pytest.param(5, ["one", "two"], id="not for a while"),
        pytest.param(5 - POLL, [], id="somebody is late"),
        pytest.param(-POLL, ["one", "two"], id="a whole poll late"),
    ],
)
async def test_a_look_for_all_is_waited_for(look: float, expected: list[str]) -> None:
    plan = Plan()
    claimer = make_claimer(NAMES, plan)
    plan.at = anyio.current_time() + look
    assert expected == due(claimer)


async def test_news_of_a_name_is_no_poll() -> None:
    """Nor is the other name asked for then."""
    plan = Plan()
    claimer = make_claimer(NAMES, plan)
    plan.at = anyio.current_time()
    claimer.wake("one")
    assert ["one"] == due(claimer)


async def test_a_look_that_has_come_tells_what_there_is() -> None:
    plan = Plan()
    claimer = make_claimer(NAMES, plan)
    plan.at = anyio.current_time()
    claimer.looked({"two"})
    plan.at = -math.inf
    assert ["two"] == due(claimer)


@pytest.mark.parametrize("ends", ["dropped", "overdue"])
async def test_a_look_that_does_not_come_is_made(ends: str) -> None:
    """At once if the other claimer has other work; and else when it is a whole poll late."""
    plan = Plan()
    claimer = make_claimer(NAMES, plan)
    plan.at = anyio.current_time() + (0.05 - POLL if ends == "overdue" else 0.0)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            if ends == "dropped":
                await claimer.wait_news()  # the ring of the definitions
                tasks.start_soon(drop, claimer, plan)
            while not due(claimer):
                await claimer.wait_news()
    assert ["one", "two"] == due(claimer)


async def drop(claimer: LimitedClaimer, plan: Plan) -> None:
    plan.at = -math.inf
    claimer.look_dropped()


@pytest.mark.promise(13)
async def test_a_look_that_is_not_answered_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is told at once, and the look is made again."""
    claimer, _ = make_other_claimer(1)
    line: Any = Line()
    claimer.line, claimer.hints, claimer.poll_interval = line, Hints(()), 0.0
    claimer.others = lambda: NAMES
    plans: list[float] = []
    claimer.on_look_dropped = lambda: plans.append(claimer.next_look_at)
    looks = 0

    async def look_queued(*_: object) -> frozenset[str]:
        nonlocal looks
        looks += 1
        if looks == 1:
            await anyio.sleep_forever()
        return frozenset({"two"})

    found = []

    def learn(names: frozenset[str]) -> None:
        found.append(names)
        scope.cancel()

    claimer.on_looked = learn
    monkeypatch.setattr(claimer_module, "PATIENCE", 0.05)
    monkeypatch.setattr(claimer_module, "look_queued", look_queued)
    with anyio.fail_after(20), anyio.CancelScope() as scope:
        await run_claimer(claimer)
    assert [{"two"}] == found
    assert (2, [-math.inf]) == (looks, plans)

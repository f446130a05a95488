"""One look for the jobs of all names is enough: the claimer of limited names leaves it to the other one."""

from __future__ import annotations

import math
from typing import Any

import anyio
import pytest

from pgq_anyio._doorbell import Doorbell
from pgq_anyio._holdings import Holdings
from pgq_anyio._limits import Limits
from pgq_anyio._process_room import ProcessRoom
from pgq_anyio._services.limited import LimitedClaimer
from pgq_anyio._stop import Stop
from pgq_anyio._store.limiter import Definition

pytestmark = [pytest.mark.anyio, pytest.mark.promise(48)]

POLL = 30.0


def nothing(*_: object) -> None:
    """Be a callback that nobody needs here."""


class Plan:
    """When the other claimer looks."""

    at = -math.inf


def make_claimer(plan: Plan) -> LimitedClaimer:
    """A claimer of two names, which rest since their poll interval."""
    absent: Any = None  # nothing is asked of the database
    limits = Limits(concurrency_limit=1)
    claimer = LimitedClaimer(
        line=absent,
        store=absent,
        worker_id=1,
        registered={"one": limits, "two": limits},
        in_process=frozenset(),
        processes=ProcessRoom(nothing),
        holdings=Holdings(
            worker_id=1,
            max_concurrency=10,
            cancel_grace=1.0,
            unstored=lambda: 0,
            on_room=nothing,
            on_lost_claim=nothing,
            on_cancelled=nothing,
        ),
        shield=anyio.CancelScope,
        on_answer=nothing,
        front=lambda: None,
        on_connection=nothing,
        start_jobs=nothing,
        on_names=nothing,
        next_look=lambda: plan.at,
        on_idle=nothing,
        stop=Stop(),
        room=Doorbell(),
        batch_size=100,
        poll_interval=POLL,
    )
    claimer.define([Definition(name, limits, "worker") for name in claimer.registered])
    for name in claimer.names.values():
        name.resting, name.ready_at = True, anyio.current_time()
    return claimer


def due(claimer: LimitedClaimer) -> list[str]:
    return [one.name for one in claimer.due()]


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
    claimer = make_claimer(plan)
    plan.at = anyio.current_time() + look
    assert expected == due(claimer)


async def test_news_of_a_name_is_no_poll() -> None:
    """Nor is the other name asked for then."""
    plan = Plan()
    claimer = make_claimer(plan)
    plan.at = anyio.current_time()
    claimer.wake("one")
    assert ["one"] == due(claimer)


async def test_a_look_that_has_come_tells_what_there_is() -> None:
    plan = Plan()
    claimer = make_claimer(plan)
    plan.at = anyio.current_time()
    claimer.looked({"two"})
    plan.at = -math.inf
    assert ["two"] == due(claimer)


@pytest.mark.parametrize("ends", ["dropped", "overdue"])
async def test_a_look_that_does_not_come_is_made(ends: str) -> None:
    """At once if the other claimer has other work; and else when it is a whole poll late."""
    plan = Plan()
    claimer = make_claimer(plan)
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

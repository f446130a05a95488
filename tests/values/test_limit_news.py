"""What the claimer of limited names must not forget while a statement is under way."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from pgq_anyio._hints import MAX_LANES
from pgq_anyio._limits import Limits
from pgq_anyio._services.limited import run_limited
from pgq_anyio._services.limited import service as service_module
from pgq_anyio._services.limited.service import refresh_once
from pgq_anyio._store.limiter import Definition, KnownLimits
from pgq_anyio._strict_hints import StrictHints
from tests.values.limited_claimer import LIMITS, make_claimer

pytestmark = [pytest.mark.anyio, pytest.mark.promise(18)]


async def test_a_change_that_is_heard_of_while_the_limits_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read again. What a heartbeat says that is known already is no change."""
    claimer = make_claimer(["limited"])

    async def list_limits(*_: object, **__: object) -> KnownLimits:
        claimer.hear_of_changes(2)
        return KnownLimits([Definition("limited", LIMITS, "worker")], changes=1)

    monkeypatch.setattr(service_module, "list_limits", list_limits)
    claimer.outdate()
    await refresh_once(claimer)
    assert (1, True) == (claimer.limit_changes, claimer.outdated)
    claimer.outdated = False
    claimer.hear_of_changes(1)
    assert not claimer.outdated
    claimer.hear_of_changes(0)  # a failover has lost the change
    assert claimer.outdated


async def test_limits_that_cannot_be_read_are_still_to_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async def list_limits(*_: object, **__: object) -> KnownLimits:
        raise ConnectionError("test")

    claimer = make_claimer(["limited"])
    monkeypatch.setattr(service_module, "list_limits", list_limits)
    claimer.outdate()
    with pytest.raises(ConnectionError):
        await refresh_once(claimer)
    assert claimer.outdated


@pytest.mark.promise(35)
async def test_a_stop_while_a_free_slot_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last words tell of it, as nobody knows whether the first ones were heard."""
    claimer = make_claimer(["limited"], max_concurrency=1)
    (limited,) = claimer.names.values()
    claimer.holdings.open_claim(1)  # so that the slot is not for this worker
    told: list[Any] = []

    async def notify_slots(conn: object, store: object, names: list[str]) -> None:
        told.append(names)
        if len(told) == 1:
            tasks.cancel_scope.cancel()
            await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(service_module, "notify_slots", notify_slots)
    # What is asked is whether they are said; half a second may pass between two steps of a busy machine.
    monkeypatch.setattr(service_module, "LAST_WORDS", 20)
    claimer.freed({"limited": 2})
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_limited, claimer)
    assert [["limited"], ["limited"]] == told
    assert 2 == limited.freed


@pytest.mark.promise(20)
async def test_a_definition_that_was_missed_makes_a_serialized_name_look_everywhere() -> None:
    """In between others may have taken jobs by it, and have left some behind that none of ours has seen."""
    claimer = make_claimer(["one"])
    definition = Definition("one", Limits(1, serialized=True), "another worker")
    claimer.define(KnownLimits([definition], changes=1))
    hints = claimer.names["one"].hints
    assert isinstance(hints, StrictHints)
    hints._safe[0] = 7
    claimer.define(KnownLimits([definition], changes=1))
    assert hints.lanes() is not None
    claimer.define(KnownLimits([definition], changes=3))
    assert hints.lanes() is None


async def test_lanes_of_a_serialized_name_that_were_in_use_are_forgotten() -> None:
    """With priorities that change all the time, each claim would look everywhere, for ever."""
    hints = StrictHints("one")
    hints._safe.update({priority: priority for priority in range(MAX_LANES + 1)})
    assert hints.lanes() is None
    hints._safe[3] = 9
    lanes = hints.lanes()
    assert lanes is not None
    assert [3] == lanes.priorities

"""What the claimer of limited names must not forget while a statement is under way."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from pgq_anyio._services.limited import run_limited
from pgq_anyio._services.limited import service as service_module
from pgq_anyio._services.limited.service import refresh_once
from pgq_anyio._store.limiter import Definition, KnownLimits
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

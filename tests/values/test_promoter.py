"""From where on deferred jobs are looked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgq_anyio import JobId
from pgq_anyio._services import promoter as promoter_module
from pgq_anyio._services.promoter import Promoter, promote_once
from pgq_anyio._store.deferred import START, Place, Promotion
from tests.values.limited_claimer import Line, nothing

pytestmark = [pytest.mark.anyio, pytest.mark.promise(9)]

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(seconds: float) -> Place:
    return NOON + timedelta(seconds=seconds), JobId(7)


@pytest.mark.parametrize(
    ("behind", "told", "expected"),
    [
        pytest.param(at(0), None, START, id="nobody knows when"),
        pytest.param(START, None, START, id="nor from the start"),
        pytest.param(at(0), 5.0, at(5)[0] - timedelta(seconds=0.001), id="between the last looks"),
        pytest.param(at(0), -5.0, at(-5)[0] - timedelta(seconds=0.001), id="before both"),
        pytest.param(at(0), 50.0, at(9), id="later than both"),
    ],
)
async def test_what_comes_during_a_look_is_found_by_the_next(
    monkeypatch: pytest.MonkeyPatch, behind: Place, told: float | None, expected: Place | datetime
) -> None:
    """A job that was committed too late for a look may be due before the last one that it has moved."""
    absent: Any = None  # nothing is asked of the database
    line: Any = Line()
    promoter = Promoter(line=line, store=absent, on_promoted=nothing)
    promoter._connection_no, promoter._behind = Line.opened, behind

    async def promote_due(*_: object, behind: Place) -> Promotion:
        seen.append(behind)
        if len(seen) == 1:
            promoter.look(None if told is None else NOON.timestamp() + told)
        return Promotion(is_ours=True, moved=0, entrypoints=[], has_more=False, next_due=None, last=at(9))

    seen: list[Place] = []
    monkeypatch.setattr(promoter_module, "promote_due", promote_due)
    for _ in range(3):
        await promote_once(promoter)
    assert behind == seen[0]
    assert expected == (seen[1][0] if isinstance(expected, datetime) else seen[1])
    assert at(9) == seen[2]

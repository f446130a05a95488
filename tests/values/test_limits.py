"""Options of limits, when a name is asked for again, and how two claimers share a worker."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from pgq_anyio import AbstractEntrypointExecutor, PgQueuer
from pgq_anyio._errors import ConfigurationError
from pgq_anyio._hints import Hints
from pgq_anyio._holdings import Holdings, Run
from pgq_anyio._limited_name import LOCKED_PAUSE, LONGEST_PAUSE, LOOK_AGAIN, LimitedName
from pgq_anyio._limits import UNLIMITED, Limits
from pgq_anyio._models import Held, Job, JobId
from pgq_anyio._registry import ExecutorParameters

POLL = 30.0


async def handler(job: Job) -> None:
    """Do nothing."""


@pytest.mark.promise(21, 22)
@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("requests_per_second", v) for v in (0, 0.0, -1, -math.inf, math.nan, True, "10", None, 1e-300)],
        *[("concurrency_limit", v) for v in (-1, 1.0, True, "5", None, math.inf, 2**31)],
        *[("serialized_dispatch", v) for v in (1, "yes", None)],
    ],
)
def test_bad_limits_are_refused(option: str, value: Any) -> None:
    """At registration, with the name of the option; nothing is registered."""
    app = PgQueuer("")
    with pytest.raises(ConfigurationError, match=option):
        app.entrypoint("fetch", **{option: value})
    app.entrypoint("fetch")(handler)


@pytest.mark.promise(22)
def test_serialized_excludes_a_larger_limit() -> None:
    """One of the two must be wrong."""
    with pytest.raises(ConfigurationError, match=r"serialized_dispatch .* concurrency_limit=2"):
        PgQueuer("").entrypoint("fetch", serialized_dispatch=True, concurrency_limit=2)


@pytest.mark.promise(21, 22)
@pytest.mark.parametrize(
    ("options", "limits", "text"),
    [
        ({}, UNLIMITED, "no limits"),
        ({"requests_per_second": math.inf, "concurrency_limit": 0}, UNLIMITED, "no limits"),
        ({"requests_per_second": 0.5}, Limits(0, 0.5), "requests_per_second=0.5"),
        ({"requests_per_second": 10}, Limits(0, 10.0), "requests_per_second=10"),
        ({"concurrency_limit": 4}, Limits(4), "concurrency_limit=4"),
        ({"serialized_dispatch": True}, Limits(1, math.inf, True), "serialized_dispatch"),
        ({"serialized_dispatch": True, "concurrency_limit": 1}, Limits(1, math.inf, True), "serialized_dispatch"),
        (
            {"requests_per_second": 3, "concurrency_limit": 2},
            Limits(2, 3.0),
            "concurrency_limit=2, requests_per_second=3",
        ),
    ],
)
def test_good_limits_are_registered(options: dict[str, Any], limits: Limits, text: str) -> None:
    """Executors hear of them too."""
    seen: list[ExecutorParameters] = []

    class Executor(AbstractEntrypointExecutor):
        async def execute(self, job: Any, context: Any) -> None:
            """Do nothing."""

    def factory(parameters: ExecutorParameters) -> Executor:
        seen.append(parameters)
        return Executor(parameters)

    app = PgQueuer("")
    app.entrypoint("fetch", executor_factory=factory, **options)(handler)
    assert limits == app._registry.entrypoints["fetch"].limits
    assert text == str(limits)
    assert limits == Limits(seen[0].concurrency_limit, seen[0].requests_per_second, seen[0].serialized_dispatch)


def answer(one: LimitedName, now: float = 100.0, **changes: Any) -> bool:
    """Tell a name how its claim went: by default, it brought nothing and nothing is queued."""
    said = {
        "locked": True,
        "slots_left": None,
        "candidates": 0,
        "pause": None,
        "got": 0,
        "swept": True,
        "has_room": True,
        "poll_interval": POLL,
    }
    return one.answered(now, **{**said, **changes})


@pytest.mark.promise(19)
def test_a_full_name_rests() -> None:
    """It is asked for at the poll, or when there is news."""
    one = LimitedName("fetch")
    assert not answer(one, slots_left=0, candidates=1)
    assert (100.0 + POLL, True, False) == (one.ready_at, one.resting, one.empty)
    one.wake()
    assert -math.inf == one.ready_at


@pytest.mark.promise(19)
def test_news_during_a_claim_is_not_lost() -> None:
    """The claim may have looked before the news."""
    one = LimitedName("fetch")
    one.wake()
    answer(one, slots_left=0)
    assert -math.inf == one.ready_at
    one.woken = False
    answer(one)
    assert one.ready_at > 100.0


@pytest.mark.promise(48)
def test_an_empty_name_is_looked_at_ever_more_rarely() -> None:
    """After the last of the quick looks it rests until the poll."""
    one = LimitedName("fetch")
    pauses = []
    for _ in range(6):
        answer(one)
        pauses.append(one.ready_at - 100.0)
    assert pytest.approx([*LOOK_AGAIN, POLL, POLL]) == pauses
    assert (one.empty, one.resting) == (True, True)
    one.look_again(100.0, POLL, first=True)
    assert pytest.approx(LOOK_AGAIN[0]) == one.ready_at - 100.0


def test_what_lies_left_of_the_hints_is_looked_at_before_the_rest() -> None:
    """A hinted claim that finds nothing says nothing about all of the name."""
    hints = Hints(("fetch",))
    hints.learn([(Job(JobId(1), "fetch", None, 0, 1, 0, datetime.now(UTC)), 5)])
    hints.swept(0.0, 100.0)
    one = LimitedName("fetch", hints)
    assert hints.lanes(100.0) is not None
    answer(one, swept=False)
    assert 100.0 == one.ready_at
    assert hints.lanes(100.0) is None


@pytest.mark.promise(18)
def test_a_lock_is_tried_again_after_a_moment() -> None:
    """Not at once, and not always after the same time."""
    pauses = set()
    for _ in range(20):
        one = LimitedName("fetch")
        answer(one, locked=False)
        pauses.add(one.ready_at - 100.0)
    assert LOCKED_PAUSE[0] <= min(pauses) < max(pauses) <= LOCKED_PAUSE[1] + 1e-9


@pytest.mark.promise(21)
def test_the_next_token_is_waited_for() -> None:
    """For as long as the database says, whether the claim brought anything or not."""
    for got in (0, 1):
        one = LimitedName("fetch")
        answer(one, candidates=1, got=got, pause=0.7)
        assert pytest.approx(100.7) == one.ready_at


def test_rows_that_others_have_locked_are_tried_ever_more_rarely() -> None:
    """A transaction that cancels jobs may stay open for long."""
    one = LimitedName("fetch")
    for _ in range(12):
        assert answer(one, candidates=2)
    assert LONGEST_PAUSE / 2 <= one.ready_at - 100.0 <= LONGEST_PAUSE
    assert not answer(one, candidates=2, got=2)
    assert 100.0 == one.ready_at


def holdings(room: int) -> Holdings:
    """An empty worker."""

    def nothing(*_: object) -> None:
        """Nobody listens."""

    return Holdings(
        worker_id=1,
        max_concurrency=room,
        cancel_grace=1.0,
        unstored=lambda: 0,
        on_room=nothing,
        on_lost_claim=nothing,
        on_cancelled=nothing,
    )


def claim(held: Holdings, *, limited: bool, number: int | None = None, hungry: bool = True) -> list[Run]:
    """Claim all there is room for, or ``number``; start it."""
    size = held.limited_room if limited else held.room
    claim_no = held.open_claim(size, limited=limited)
    runs: list[Run] = []
    nobody: Any = None  # nothing here runs them
    for job_id in range(size if number is None else number):
        job = Job(JobId(claim_no * 1000 + job_id), "fetch", None, 0, 1, 0, datetime.now(UTC))
        run = Run(Held(job, 1, claim_no), nobody, nobody, limited)
        held.add(run)
        runs.append(run)
    held.resolve_claim(claim_no, hungry=hungry)
    return runs


@pytest.mark.promise(16, 19)
def test_claims_under_way_reserve_their_room() -> None:
    """Two claimers at the same moment never bring in more than the worker can hold; a lost claim frees what it held."""
    held = holdings(10)
    number = held.open_claim(7)
    assert (3, 3) == (held.room, held.limited_room)
    other = held.open_claim(3, limited=True)
    assert (0, 0) == (held.room, held.limited_room)
    held.lose_claim(number)
    held.resolve_claim(other, hungry=False)
    assert (10, 10) == (held.room, held.limited_room)


@pytest.mark.promise(19)
@pytest.mark.parametrize("room", [1, 2, 3, 10])
def test_hungry_claimers_share(room: int) -> None:
    """Whoever begins: after a while each has half of the starts, and someone always has room when a slot is free."""
    held = holdings(room)
    running = claim(held, limited=False)
    held.wait_hungry(limited=True)
    starts = {False: 0, True: 0}
    for _ in range(200):
        held.handler_ended(running.pop(0))
        assert held.room > 0 or held.limited_room > 0
        for limited in (False, True):
            if (held.limited_room if limited else held.room) > 0:
                fresh = claim(held, limited=limited)
                starts[limited] += len(fresh)
                running += fresh
        assert room == held.busy
    assert abs(starts[True] - starts[False]) <= room + 2


@pytest.mark.promise(19)
def test_a_claimer_that_wants_no_more_leaves_the_rest() -> None:
    """A full limit does not keep room free that it cannot use."""
    held = holdings(10)
    claim(held, limited=True, number=2, hungry=False)
    assert 8 == len(claim(held, limited=False))
    assert 10 == held.busy

"""Options of limits, when a name is asked for again, and how two claimers share a worker."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from pgq_anyio import AbstractEntrypointExecutor, PgQueuer
from pgq_anyio._errors import ConfigurationError
from pgq_anyio._hints import Hints
from pgq_anyio._holdings import MAX_UNSTORED_PER_SLOT, Holdings
from pgq_anyio._limited_name import LOCKED_PAUSE, LONGEST_PAUSE, LOOK_AGAIN, LimitedName
from pgq_anyio._limits import UNLIMITED, Limits
from pgq_anyio._models import Job, JobId
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
        ({"requests_per_second": 1_000_000}, Limits(0, 1e6), "requests_per_second=1e+06"),
        ({"requests_per_second": 1_000_001}, UNLIMITED, "no limits"),
        ({"requests_per_second": 10**400}, UNLIMITED, "no limits"),
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


@pytest.mark.promise(18)
@pytest.mark.parametrize(
    ("said", "is_taken"),
    [
        pytest.param({"slots_left": 0, "candidates": 1}, True, id="a job took it"),
        pytest.param({"slots_left": 1}, True, id="nobody waits for it"),
        pytest.param({"slots_left": 1, "candidates": 1}, False, id="it went to nobody"),
        pytest.param({"slots_left": 1, "candidates": 2, "got": 1, "pause": 9.0}, False, id="there is no token for it"),
        pytest.param({"slots_left": 1, "candidates": 1, "got": 1, "pause": 9.0}, False, id="cut to its token"),
        pytest.param({"slots_left": 1, "candidates": 1, "got": 1, "has_room": False}, False, id="the claim was cut"),
        pytest.param({"slots_left": 1, "candidates": 2, "got": 2, "has_room": False}, True, id="as many as were freed"),
        pytest.param({"locked": False}, False, id="others are counting"),
        pytest.param(None, False, id="no answer"),
    ],
)
@pytest.mark.parametrize("when", ["before the claim", "during the claim"])
def test_a_freed_slot_is_remembered_until_it_is_taken(said: dict[str, Any] | None, is_taken: bool, when: str) -> None:
    """If it is not, other workers have to be told of it. The claim may have counted before it was free."""
    one = LimitedName("fetch", freed=2 if when == "before the claim" else 0)
    one.asked()
    one.freed += 2 if when == "during the claim" else 0
    if said is None:
        one.unanswered()
    else:
        answer(one, **said)
    assert one.freed == (0 if is_taken and when == "before the claim" else 2)
    one.freed = 0
    one.asked()
    answer(one)
    assert 0 == one.freed


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
    one = LimitedName("fetch", hints=hints)
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


@pytest.mark.promise(21)
def test_a_distant_token_is_waited_for_no_longer_than_a_poll() -> None:
    """The token of a job that never started is given back, and who hears of it may be another worker."""
    one = LimitedName("fetch")
    answer(one, candidates=1, pause=1000.0)
    assert 100.0 + POLL == one.ready_at


def test_rows_that_others_have_locked_are_tried_ever_more_rarely() -> None:
    """A transaction that cancels jobs may stay open for long."""
    one = LimitedName("fetch")
    for _ in range(12):
        assert answer(one, candidates=2)
    assert LONGEST_PAUSE / 2 <= one.ready_at - 100.0 <= LONGEST_PAUSE
    assert not answer(one, candidates=2, got=2)
    assert 100.0 == one.ready_at


def holdings(room: int, *, unstored: int = 0) -> Holdings:
    """A worker without jobs, whose outcomes wait for the database."""

    def nothing(*_: object) -> None:
        """Nobody listens."""

    return Holdings(
        worker_id=1,
        max_concurrency=room,
        cancel_grace=1.0,
        unstored=lambda: unstored,
        on_room=nothing,
        on_lost_claim=nothing,
        on_cancelled=nothing,
    )


@pytest.mark.promise(16, 19)
def test_claims_under_way_reserve_their_room() -> None:
    """Two claimers at the same moment never bring in more than the worker can hold; a lost claim frees what it held."""
    held = holdings(10)
    number = held.open_claim(7)
    assert (3, 3) == (held.room, held.free)
    other = held.open_claim(3)
    assert (0, 0) == (held.room, held.free)
    held.lose_claim(number)
    held.resolve_claim(other)
    assert (10, 10) == (held.room, held.free)


@pytest.mark.promise(16)
def test_a_worker_whose_outcomes_are_not_stored_takes_no_more() -> None:
    """Their rows are its own: it is bounded by slots how many of them it may have."""
    most = 3 * MAX_UNSTORED_PER_SLOT
    held = holdings(3, unstored=most)
    held.ahead = 100
    assert (103, 3) == (held.room, held.free)
    held = holdings(3, unstored=most + 1)
    held.ahead = 100
    assert (0, 0) == (held.room, held.free)


@pytest.mark.promise(5)
def test_one_claimer_has_the_turn() -> None:
    """While the claimer of limited names may have something, it claims for both, and the other one has no room."""
    held = holdings(10)
    assert 10 == held.room
    held.take_turn()
    assert (0, 10) == (held.room, held.free)
    held.end_turn(next_one=True)
    assert (0, 10) == (held.room, held.free)
    held.end_turn()
    assert 10 == held.room


@pytest.mark.promise(19)
def test_a_claimer_that_does_not_get_on_has_no_turn() -> None:
    """Whatever news there are for it, until it has moved; each time that it has, the other one may wait anew."""
    held = holdings(10)
    held.take_turn()
    turn = held.turn
    held.break_turn()
    held.take_turn()
    assert (10, turn) == (held.room, held.turn)
    held.end_turn()
    held.take_turn()
    assert 0 == held.room
    assert turn < held.turn

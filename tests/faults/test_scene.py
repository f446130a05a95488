"""The harness itself: each of its checks fails when there is something to find."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults import scene as scene_module
from tests.faults.app import LIMIT
from tests.faults.scene import Loss, Scene, open_scene


@pytest.fixture(params=["", "it may"], ids=["strict", "lenient"])
def scene(request: pytest.FixtureRequest, server_dsn: str, schema: str) -> Iterator[Scene]:
    """A scene without workers, in which doubles are allowed or not."""
    with open_scene(server_dsn, schema, server_dsn, number=0, title="t", bound=1, allowed=request.param) as scene:
        yield scene


def record(scene: Scene, job_id: int, entrypoint: str = "work", status: str = "successful", **columns: Any) -> None:
    """A record of a job, as a worker would leave it."""
    scene.fleet.rows(
        "insert into {schema}.finished (job_id, entrypoint, status, priority, attempt, crashes, created_at, error_type)"
        " values (%s, %s, %s, 0, 1, 0, now(), %s)",
        job_id,
        entrypoint,
        status,
        columns.get("error_type"),
    )


def run(scene: Scene, name: str, job_id: int, *events: str, entrypoint: str = "work") -> None:
    """The entries of a handler, by this process."""
    for event in events:
        scene.log.write(name, job_id, entrypoint, event)


def test_all_is_well(scene: Scene) -> None:
    """What nothing has happened to passes, and the row counts it."""
    scene.ids = [1, 2]
    run(scene, "a", 1, "start", "end")
    run(scene, "b", 2, "start", "cancelled:shutdown")
    run(scene, "c", 2, "start", "failed", entrypoint="fail")
    record(scene, 1)
    record(scene, 2, "fail", "failed", error_type="IntendedError")
    row = scene.judge()
    assert (2, 0, 0, 1) == (row.jobs, row.lost, row.doubled, row.interrupted)


def test_a_lost_job_is_found(scene: Scene) -> None:
    """Without a record."""
    scene.ids = [1]
    with pytest.raises(AssertionError, match=r"lost: \[1\]"):
        scene.judge()


@pytest.mark.parametrize("status", ["successful", "failed", "cancelled"])
def test_an_unfounded_record_is_found(scene: Scene, status: str) -> None:
    """The handler has not logged that end."""
    scene.ids = [1]
    run(scene, "a", 1, "start")
    record(scene, 1, status=status)
    with pytest.raises(AssertionError, match="otherwise than logged"):
        scene.judge()


def test_two_records_are_found(scene: Scene) -> None:
    """Of one job."""
    scene.ids = [1]
    run(scene, "a", 1, "start", "end")
    record(scene, 1)
    record(scene, 1)
    with pytest.raises(AssertionError, match="two records"):
        scene.judge()


def test_a_job_that_nobody_enqueued_is_found(scene: Scene) -> None:
    """But there may be some whose producer had no answer."""
    run(scene, "a", 1, "start", "end")
    record(scene, 1)
    with pytest.raises(AssertionError, match="nobody has enqueued"):
        scene.judge()
    scene.uncertain = 1
    assert 1 == scene.judge().jobs


@pytest.mark.parametrize("first", [("start",), ("start", "end")], ids=["half", "through"])
def test_a_second_run_needs_a_reason(scene: Scene, first: tuple[str, ...]) -> None:
    """A worker that was hit is one; and coming to the end twice has to be allowed besides."""
    scene.ids = [1]
    run(scene, "a", 1, *first)
    run(scene, "b", 1, "start", "end")
    record(scene, 1)
    with pytest.raises(AssertionError, match="without a reason"):
        scene.judge()
    scene._hit |= {run.pid for run in scene.log.runs()}
    if len(first) == 1 or scene.allowed:
        assert len(first) - 1 == scene.judge().doubled
    else:
        with pytest.raises(AssertionError, match="does not allow"):
            scene.judge()


def exceed(scene: Scene) -> None:
    """Let more run at once than the limit allows."""
    scene.ids = list(range(LIMIT + 1))
    for event in ("start", "end"):
        for number in scene.ids:
            run(scene, str(number), number, event, entrypoint="limited")
    for number in scene.ids:
        record(scene, number, "limited")


@pytest.mark.parametrize("loses", [None, "claims", "outcomes"])
def test_a_limit_that_is_exceeded_is_found(scene: Scene, loses: Loss | None) -> None:
    """More than the fleet's limit ran at once: also if the server crashed meanwhile."""
    if loses is not None:
        scene.hit_server(loses=loses)
    exceed(scene)
    with pytest.raises(AssertionError, match=f"limit of {LIMIT}"):
        scene.judge()


def test_a_limit_may_go_with_what_was_committed(scene: Scene) -> None:
    """A standby that had not received a claim gives the slot away again."""
    scene.hit_server(loses="commits")
    exceed(scene)
    assert LIMIT + 1 == scene.judge().jobs


def test_a_crash_of_the_server_explains_what_it_met(scene: Scene) -> None:
    """A run that was under way may be followed by another one; so may one that began before all was well again."""
    scene.ids = [1]
    run(scene, "a", 1, "start")
    scene.hit_server()
    run(scene, "b", 1, "start")
    scene._server_hits[0].over_at = scene.log.now()
    run(scene, "c", 1, "start", "end")
    record(scene, 1)
    assert 2 == scene.judge().interrupted


@pytest.mark.parametrize("loses", ["claims", "outcomes", "commits"])
def test_a_crash_of_the_server_explains_no_claim_that_was_waited_for(scene: Scene, loses: Loss) -> None:
    """A job of a limited name runs again only if more is lost than the claims of others."""
    scene.ids = [1]
    run(scene, "a", 1, "start", entrypoint="limited")
    scene.hit_server(loses=loses)
    run(scene, "b", 1, "start", "end", entrypoint="limited")
    record(scene, 1, "limited")
    if loses == "claims":
        with pytest.raises(AssertionError, match="without a reason"):
            scene.judge()
    else:
        assert 1 == scene.judge().jobs


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_of_the_server_explains_nothing_else(scene: Scene, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what had ended long ago, nor what came when all was well again."""
    monkeypatch.setattr(scene_module, "STORING", timedelta(0))
    scene.ids = [1]
    if when == "before":
        run(scene, "a", 1, "start", "end")
    scene.hit_server()
    scene._server_hits[0].over_at = scene.log.now()
    if when == "after":
        run(scene, "a", 1, "start", "end")
    run(scene, "b", 1, "start", "end")
    record(scene, 1)
    with pytest.raises(AssertionError, match="without a reason"):
        scene.judge()


def test_what_is_left_behind_is_found(scene: Scene) -> None:
    """A worker that did not say farewell."""
    scene.fleet.rows(
        "insert into {schema}.worker (worker_id, name, entrypoints, max_crashes, lease)"
        " values (1, 'x', '{{}}', '{{}}', 2)"
    )
    with pytest.raises(AssertionError):
        scene.stop()


def test_an_idle_slot_is_found(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes what would fill it."""
    worker = SimpleNamespace(pid=1)
    monkeypatch.setattr(Scene, "workers", [worker])
    scene._slots[1] = 1
    with pytest.raises(AssertionError, match="every slot of every worker"):
        scene._call_roll(spared=0)

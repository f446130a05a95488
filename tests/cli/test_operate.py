"""Cancelling and requeueing from the command line, by id and by filter."""

from __future__ import annotations

import pytest

from pgq_anyio._cli import operate
from tests.cli.test_commands import Invoke, invoke, printed_ids
from tests.worker.fleet import Fleet

__all__ = ["invoke"]

pytestmark = pytest.mark.usefixtures("fleet")


def fail_all(fleet: Fleet, error: str = "ValueError") -> None:
    """Let all queued jobs have failed."""
    fleet.rows(
        "with gone as (delete from {schema}.queued returning *) "
        "insert into {schema}.finished (job_id, entrypoint, status, priority, attempt, crashes, created_at, "
        "claimed_at, error_type, error_message, payload) "
        "select job_id, entrypoint, 'failed', priority, 1, 0, created_at, created_at, %s, 'no', payload from gone",
        error,
    )


@pytest.mark.promise(33)
def test_requeue_by_id(invoke: Invoke, fleet: Fleet) -> None:
    """The ids that came back are printed; what was left alone is told on standard error."""
    ids = printed_ids(invoke("enqueue", "fetch", "--times", "3"))
    fail_all(fleet)
    (queued,) = printed_ids(invoke("enqueue", "fetch"))
    done = invoke("jobs", "requeue", *map(str, [*ids, queued, 999]))
    assert ids == printed_ids(done)
    assert "2 jobs had not failed, or are unknown" in done.stderr
    assert 4 == fleet.value("select count(*) from {schema}.queued")


@pytest.mark.promise(33)
def test_requeue_by_filter(invoke: Invoke, fleet: Fleet) -> None:
    """Only with --yes, as nobody is there to ask; each option narrows it."""
    (first,) = printed_ids(invoke("enqueue", "fetch"))
    fail_all(fleet, "KeyError")
    second, third = printed_ids(invoke("enqueue", "fetch", "--times", "2"))
    fail_all(fleet)
    refused = invoke("jobs", "requeue", "--entrypoint", "fetch", "--error", "ValueError")
    assert (2, "") == (refused.exit_code, refused.stdout)
    assert "this would requeue all failed jobs of 'fetch' with error 'ValueError'" in refused.stderr
    assert "--yes" in refused.stderr
    assert 0 == fleet.value("select count(*) from {schema}.queued")
    requeue = ("jobs", "requeue", "--yes")
    assert "no job matches" in invoke(*requeue, "--entrypoint", "other").stderr
    assert [] == printed_ids(invoke(*requeue, "--status", "cancelled"))
    assert [] == printed_ids(invoke(*requeue, "--before", "2000-01-01"))
    assert [first] == printed_ids(invoke(*requeue, "--error", "KeyError", "--after", "2000-01-01T12:00+01:00"))
    assert [second] == printed_ids(invoke(*requeue, "--status", "failed", "--limit", "1"))
    assert [third] == printed_ids(invoke(*requeue, "--entrypoint", "fetch"))


def test_cancel_by_filter(invoke: Invoke, fleet: Fleet) -> None:
    """Only with --yes; older and queued ones of a name, and the record says who did it and why."""
    (old,) = printed_ids(invoke("enqueue", "fetch"))
    fleet.rows("update {schema}.queued set created_at = created_at - interval '2 hours'")
    (young,) = printed_ids(invoke("enqueue", "fetch"))
    (later,) = printed_ids(invoke("enqueue", "fetch", "--delay", "1h"))
    filters = ("--entrypoint", "fetch", "--older-than", "1h30m")
    refused = invoke("cancel", *filters)
    assert (2, "") == (refused.exit_code, refused.stdout)
    assert "this would cancel all unfinished jobs of 'fetch' that are older than 1:30:00" in refused.stderr
    assert [old] == printed_ids(invoke("cancel", *filters, "--yes", "--reason", "too late"))
    shown = invoke("jobs", "show", str(old)).stdout
    assert "too late" in shown
    assert "pgq-anyio, " in shown
    assert [later] == printed_ids(invoke("cancel", "--status", "deferred", "--yes"))
    assert [(young,)] == fleet.rows("select job_id from {schema}.queued")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["cancel"], "say which jobs: give their ids, or at least one of --entrypoint, --status, --older-than"),
        (["cancel", "--yes"], "say which jobs"),
        (["cancel", "1", "--status", "queued"], "give ids or filters, not both: there are ids and --status"),
        (["cancel", "--status", "failed", "--yes"], "--status must be one of deferred, queued, running"),
        (["jobs", "requeue", "--yes"], "at least one of --entrypoint, --status, --error, --after, --before"),
        (["jobs", "requeue", "1", "--error", "ValueError"], "there are ids and --error"),
        (["jobs", "requeue", "1", "--limit", "3"], "--limit goes with a filter"),
        (["jobs", "requeue", "--status", "successful", "--yes"], "--status must be one of failed, cancelled"),
        (["jobs", "requeue", "--after", "yesterday", "--yes"], "--after 'yesterday' is no time"),
        (["jobs", "requeue", "--entrypoint", "fetch", "--limit", "0", "--yes"], "--limit"),
        (["run", "shop:app", "--retention", "week"], "'week' is no duration"),
        (["run", "shop:app", "--retention", "succesful=1h"], "retention is for successful, failed, cancelled, not for"),
    ],
)
@pytest.mark.promise(39)
def test_misuse(invoke: Invoke, fleet: Fleet, arguments: list[str], told: str) -> None:
    """A call that names no jobs, or in two ways, or no time, changes nothing and says what to write."""
    printed_ids(invoke("enqueue", "fetch"))
    refused = invoke(*arguments)
    assert (2, "") == (refused.exit_code, refused.stdout)
    assert told in refused.stderr
    assert 1 == fleet.value("select count(*) from {schema}.queued")


def test_ids_are_printed_as_far_as_it_came(invoke: Invoke, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many go into several calls. What the first has cancelled is cancelled, whatever becomes of the second."""
    monkeypatch.setattr(operate, "CHUNK", 2)
    ids = [str(job_id) for job_id in fleet.enqueue("fetch", times=3)]
    fleet.rows(
        "create function {schema}.refuse() returns trigger language plpgsql as 'begin raise exception ''no more''; end'"
    )
    fleet.rows(
        "create trigger refuse before delete on {schema}.queued for each row when (old.job_id = "
        + ids[2]
        + ") execute function {schema}.refuse()"
    )
    cancelled = invoke("cancel", *ids)
    assert 1 == cancelled.exit_code
    assert ids[:2] == cancelled.stdout.split()
    assert "no more" in cancelled.stderr

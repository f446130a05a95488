"""The judge of the soak test can tell right from wrong."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from tests.faults.report import PAGE
from tests.soak import report
from tests.soak.gauges import Gauges
from tests.soak.journal import Event, Journal, has_started_since, read
from tests.soak.verdict import (
    Fault,
    Run,
    Runs,
    count_doubled,
    find_unexplained,
    find_unfounded,
    most_at_once,
    percentiles,
)

pytestmark = pytest.mark.heavy

KILLED = Fault(name="killed", began_at=100, ended_at=110, pids=frozenset([1]))
CRASH = Fault(name="crash", began_at=100, ended_at=110, is_crash=True)


def write(path: Path, job_id: int, kind: str, *events: Event) -> None:
    """Write one run."""
    journal = Journal(path)
    run = journal.next_run()
    for event in events:
        journal.write(job_id, run, kind, event, 0.5 if event is Event.START else -1)


def test_journals_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Entry by entry, also while the file is written."""
    path = tmp_path / "7"
    assert not has_started_since(path, 0)
    write(path, 2**40, "serial", Event.START)
    (entry,) = read(path)
    assert (2**40, 0.5, "serial", Event.START) == (entry.job_id, entry.latency, entry.kind, entry.event)
    assert has_started_since(path, entry.at - 1)
    assert not has_started_since(path, entry.at)


def test_runs_of_jobs_that_ran_again_are_kept_whole(tmp_path: Path) -> None:
    """Over the files of all workers; of the others only what they came to."""
    write(tmp_path / "7", 1, "work", Event.START, Event.END)
    write(tmp_path / "7", 2, "work", Event.START)
    write(tmp_path / "8", 2, "work", Event.START, Event.END)
    write(tmp_path / "8", 3, "limited", Event.START, Event.END)
    runs = Runs([tmp_path / "7", tmp_path / "8"])
    repeated, capped = runs.whole()
    assert (4, [3]) == (runs.starts_in_all, [run.job_id for run in capped])
    assert {2: [(7, Event.START), (8, Event.END)]} == {
        job_id: [(run.pid, run.event) for run in job_runs] for job_id, job_runs in repeated.items()
    }


def test_records_need_a_run_that_came_to_this_end(tmp_path: Path) -> None:
    """Each kind has the end that it is to have, and no other."""
    write(tmp_path / "7", 1, "work", Event.START, Event.END)
    write(tmp_path / "7", 2, "work", Event.START, Event.CANCELLED)
    write(tmp_path / "7", 3, "fail", Event.START, Event.FAILED)
    runs = Runs([tmp_path / "7"])
    kinds = {3: "fail", 4: "held"}
    good: list[tuple[int, str | None]] = [(1, "successful"), (3, "failed"), (4, "cancelled")]
    assert [] == find_unfounded(good, kinds, runs)
    bad: list[tuple[int, str | None]] = [(1, "failed"), (2, "successful"), (3, "successful"), (4, "failed"), (5, None)]
    assert [job_id for job_id, _ in bad] == [job_id for job_id, _ in find_unfounded(bad, kinds, runs)]


@pytest.mark.parametrize(
    ("first", "faults", "is_explained"),
    [
        (Run(1, "work", 1, 101, 102, Event.END), [], False),
        (Run(1, "work", 1, 101), [], False),
        (Run(1, "retry", 1, 101, 102, Event.AGAIN), [], True),
        (Run(1, "work", 1, 101, 102, Event.CANCELLED), [], True),
        (Run(1, "work", 1, 101), [KILLED], True),
        (Run(1, "work", 2, 101), [KILLED], False),
        (Run(1, "work", 1, 50, 51, Event.END), [KILLED], False),
        (Run(1, "work", 2, 101, 102, Event.END), [CRASH], True),
        (Run(1, "work", 2, 50, 51, Event.END), [CRASH], False),
    ],
)
def test_a_run_again_needs_a_reason(first: Run, faults: list[Fault], is_explained: bool) -> None:
    """It was asked for, or a fault hit its worker, or the server, in its time."""
    again = Run(1, "work", 3, 200, 201, Event.END)
    assert is_explained == (find_unexplained({1: [first, again]}, faults) == [])
    assert first.is_through == (count_doubled({1: [first, again]}) == 1)


def test_runs_at_once_are_counted() -> None:
    """Of one kind, if their end is known, unless a fault may have touched them."""
    capped = [Run(1, "serial", 1, 5, 7, Event.END), Run(2, "serial", 2, 6, 8, Event.END), Run(3, "limited", 1, 5)]
    assert 2 == most_at_once(capped, "serial", [])
    assert 0 == most_at_once(capped, "limited", [])
    assert 1 == most_at_once(capped, "serial", [attrs.evolve(KILLED, began_at=4)])


def test_growth_is_seen_after_the_warm_up() -> None:
    """What fills up first may do so; what goes on growing may not."""
    gauges = Gauges()
    for step in range(100):
        gauges.add("leaking", "connections", 20 + step)
        gauges.add("filled", "memory (MB)", min(40 + 10 * step, 90))
    assert ["leaking: connections went from 69.5 to 109.5, allowed 81.5"] == gauges.grown()


def test_percentiles() -> None:
    """In milliseconds."""
    assert (500.0, 990.0) == percentiles(number / 1000 for number in range(1000))


def test_the_page_has_a_place_for_the_tables() -> None:
    """The tables replace what is between the markers."""
    page = PAGE.read_text("utf-8")
    assert 1 == page.count(report.BEGIN) == page.count(report.END)

"""What the benchmarks say about what they have measured."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from benchmarks import drain, wal
from benchmarks._children import MeasurementError
from benchmarks._figure import Bench, Verdict, at_least, at_most
from benchmarks._figures import FIGURES
from benchmarks._page import FILES, PAGE, chart_name, render
from benchmarks._run import Record, is_full, read_records
from benchmarks._tried import TRIED, explain
from benchmarks.contenders._contender import graphile_worker, ours


def test_a_goal_is_met_or_not_or_not_judged() -> None:
    """Exactly the goal is enough; what was not measured, or is no number, is neither met nor missed."""
    assert [True, True, False, None, None] == [
        at_least(1, "", value, 2.5).met for value in (2.6, 2.5, 2.49, None, float("nan"))
    ]
    assert [False, True, True, None] == [at_most(1, "", value, 0.5).met for value in (0.51, 0.5, 0.1, None)]
    assert Verdict(3, "what", "≤ 0.5 ms", "0.25 ms", met=True) == at_most(3, "what", 0.25, 0.5, unit="ms")


def drained(rate: float, cpu: float) -> dict[str, float]:
    return {"jobs_per_second": rate, "worker_cpu_us": cpu, "server_cpu_us": 10.0}


def test_a_drain_is_compared_with_the_best_of_a_peer() -> None:
    """Medians of the rounds, the fastest settings of PgQueuer, and its cheapest for CPU."""
    results: dict[str, Any] = {
        "drained": {
            "pgq_anyio uvloop": [drained(rate, 10.0) for rate in (10.0, 60_000.0, 90_000.0)],
            "pgq_anyio trio": [drained(30_000.0, 10.0)],
            "PgQueuer uvloop, batch 100": [drained(10_000.0, 30.0)],
            "PgQueuer uvloop, batch 500": [drained(20_000.0, 40.0)],
        }
    }
    first, node, second, cpu = drain.judge(results)
    assert ("3.00 ×", True) == (first.measured, first.met)
    assert ("not judged", None) == (node.measured, node.met)
    assert ("1.50 ×", False) == (second.measured, second.met)
    assert ("0.50 ×", True) == (cpu.measured, cpu.met)


def test_the_page_is_made_from_the_results_that_it_links_to() -> None:
    """No number of it was written by hand, and none is older than the results or the wording."""
    records = read_records(FILES)
    assert PAGE.read_text("utf-8") == render(records)
    for record in records:
        for number in range(1, len(record.figure.charts(record.results)) + 1):
            assert (FILES / chart_name(record, number)).exists()


def test_a_missing_peer_is_reported_and_the_others_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """On the terminal, in the results and on the page."""

    def no_node() -> str:
        raise MeasurementError("there is no node on this machine")

    there, missing = ours("trio"), attrs.evolve(graphile_worker(), version=no_node)
    bench = Bench("", {})
    assert [there] == bench.present([there, missing])
    assert {"graphile-worker": "there is no node on this machine"} == bench.missing
    assert "graphile-worker: no figures: there is no node on this machine" in capsys.readouterr().out
    record = Record("wal", "2026-01-01", 1.0, {}, True, {}, {}, bench.missing, {"wal_bytes": {}})
    assert "Missing: graphile-worker: there is no node on this machine" in render([record])


def test_small_sizes_are_not_judged_on_the_page() -> None:
    """Three rounds are enough where five are asked for, but everything else counts."""
    full = {"jobs": 200_000, "rounds": 5}
    assert [True, True, False, False] == [
        is_full({"jobs": jobs, "rounds": rounds}, full)
        for jobs, rounds in ((200_000, 5), (300_000, 3), (200_000, 2), (199_999, 5))
    ]
    results = {"wal_bytes": {"pgq_anyio uvloop": {wal.WITHIN: [1000.0], wal.BETWEEN: [1300.0]}}}
    large = Record("wal", "2026-01-01", 1.0, {}, True, {}, {}, {}, results)
    assert "| 1,000 bytes | yes |" in render([large])
    small = render([attrs.evolve(large, full=False)])
    assert "| 1,000 bytes | not judged |" in small
    assert "not judged: all figures" in small


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_the_same_sizes_in_both_forms(name: str) -> None:
    """A size given on the command line works in both, and the quick one is no larger."""
    quick, full = FIGURES[name].QUICK, FIGURES[name].FULL
    assert list(quick) == list(full)
    assert all(quick[key] <= full[key] for key in quick)


def test_of_each_goal_that_is_not_met_it_is_told_what_was_tried() -> None:
    """On the page and on the terminal, with what stands in the way."""
    told = explain(verdict for record in read_records(FILES) if record.full for verdict in record.verdicts())
    assert told.items() <= {number: str(one) for number, one in TRIED.items()}.items()
    assert all(text in PAGE.read_text("utf-8") for text in told.values())
    assert {99: "Nothing was tried yet."} == explain([at_least(99, "", 1.0, 2.0)])

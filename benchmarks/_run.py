"""Measuring figures one after the other. Each writes its results when it has them: a run can be continued."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import psycopg

from ._children import MeasurementError
from ._figure import Bench, Figure, Verdict
from ._figures import FIGURES
from ._report import print_table
from ._server import bench_server, describe
from ._tried import explain


@attrs.frozen
class Record:
    """What the file of a figure holds."""

    name: str
    measured_at: str
    seconds: float
    size: dict[str, int]
    #: whether it is large enough to be judged
    full: bool
    #: versions and settings of everything involved
    facts: dict[str, str]
    peers: dict[str, str]
    missing: dict[str, str]
    results: dict[str, Any]

    @property
    def figure(self) -> Figure:
        """The module that measured it."""
        return FIGURES[self.name]

    def verdicts(self) -> list[Verdict]:
        """Compare it with the goals."""
        return self.figure.judge(self.results)


def read_records(place: Path) -> list[Record]:
    """All that was measured, in the order of the figures."""
    files = {name: place / f"{name}.json" for name in FIGURES}
    return [Record(**json.loads(file.read_text("utf-8"))) for file in files.values() if file.exists()]


def run_figures(
    names: Sequence[str],
    place: Path,
    *,
    quick: bool,
    sizes: Mapping[str, int],
    only_left: bool,
    dsn: str | None,
) -> int:
    """Measure, print, and judge; 1 if a figure gave no results, or in full size did not meet its goal."""
    place.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    failed: dict[str, str] = {}
    with bench_server(dsn) as server:
        facts = describe(server)
        print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
        for name in names:
            file = place / f"{name}.json"
            if only_left and file.exists():
                continue
            try:
                record = _measure(name, server, facts, quick=quick, sizes=sizes)
            except (MeasurementError, psycopg.Error) as error:  # the others are measured all the same
                failed[name] = str(error)
                print(f"{name}: no figures: {error}", flush=True)
                continue
            file.write_text(json.dumps(attrs.asdict(record), indent=1) + "\n", "utf-8")
            for table in record.figure.tables(record.results):
                print_table(table.title, table.header, table.rows)
    code = print_goals(place, names)
    print(f"measured in {time.monotonic() - started:.0f} s")
    for name, reason in failed.items():
        print(f"no figures: {name}: {reason}")
    return 1 if failed else code


def _measure(name: str, dsn: str, facts: dict[str, str], *, quick: bool, sizes: Mapping[str, int]) -> Record:
    figure = FIGURES[name]
    size = dict(figure.QUICK if quick else figure.FULL)
    size.update({key: value for key, value in sizes.items() if key in size})
    bench = Bench(dsn, size)
    print(f"\n{name}: {figure.TITLE} ({', '.join(f'{key} {value:,}' for key, value in size.items())})", flush=True)
    started = time.perf_counter()
    results = figure.measure(bench)
    return Record(
        name=name,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - started, 1),
        size=size,
        full=is_full(size, figure.FULL),
        facts=facts,
        peers=bench.versions,
        missing=bench.missing,
        results=results,
    )


def is_full(size: Mapping[str, int], full: Mapping[str, int]) -> bool:
    """Whether a measurement was large enough to be judged: three rounds are, where more are asked for."""
    return all(size[name] >= (min(number, 3) if name == "rounds" else number) for name, number in full.items())


def print_goals(place: Path, names: Sequence[str] = ()) -> int:
    """Print goal and measurement of everything there is.

    :return: 1 if something of full size did not meet its goal, or missed a peer
    """
    records = [one for one in read_records(place) if not names or one.name in names]
    verdicts = sorted((v for one in records for v in one.verdicts()), key=lambda verdict: verdict.number)
    answers = {True: "met", False: "NOT MET", None: "-"}
    rows = [(f"{v.number:>2}  {v.what}", v.goal, v.measured, answers[v.met]) for v in verdicts]
    print_table("Goals", ("figure", "goal", "measured", ""), rows)
    for one in records:
        if not one.full:
            print(f"{one.name}: a small size, for a first look: {one.size}")
        for name, reason in one.missing.items():
            print(f"missing: {one.name}: {name}: {reason}")
    for number, text in explain(verdict for one in records if one.full for verdict in one.verdicts()).items():
        print(f"\nfigure {number} is not met. {text}")
    for peer in sorted({peer for one in records for peer in one.peers.values()}):
        print(peer)
    complete = [one for one in records if one.full]
    missing = any(one.missing for one in complete)
    return 1 if missing or any(verdict.met is False for one in complete for verdict in one.verdicts()) else 0

"""``python -m tests.faults.report DIRECTORY [--whole]``: print the rows of a directory, and put them into the
documentation. Scenarios that did not run keep the rows that they had, unless the run was a whole one.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from tests.faults.rows import Row

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
#: The rows that the page shows.
KEPT = PAGE.with_suffix(".json")
BEGIN, END = "<!-- faults: begin -->\n", "<!-- faults: end -->\n"
HEAD = ("Fault", "Times", "Jobs", "Lost", "Run twice", "Interrupted", "At work again", "Allowed")
ALIGNMENT = ("---", *("--:",) * 7)


def read(directory: Path) -> list[Row]:
    """All rows, in order."""
    return merge([], [Row(**json.loads(path.read_text("utf-8"))) for path in directory.glob("*.json")])


def merge(kept: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The newest row of each scenario, in order."""
    rows = {row.title: row for row in (*kept, *new)}
    return sorted(rows.values(), key=lambda row: (row.number, row.title))


def read_kept() -> list[Row]:
    """The rows that the page shows now."""
    return [Row(**row) for row in json.loads(KEPT.read_text("utf-8"))]


def cells(row: Row) -> tuple[str, ...]:
    """What the table says of a row."""
    return (
        row.title,
        f"{row.times:,}",
        f"{row.jobs:,}",
        f"{row.lost:,}",
        f"{row.doubled:,}" + (f": {row.allowed}" if row.allowed and row.doubled else ""),
        f"{row.interrupted:,}",
        f"{row.recovered:.1f} s" if row.recovered else "-",
        f"{row.bound:g} s" if row.recovered else "-",
    )


def table(rows: Sequence[Row]) -> str:
    """The table in Markdown, with the sums."""
    lines = [HEAD, ALIGNMENT, *map(cells, rows)]
    times, jobs, lost, doubled = (
        sum(getattr(row, name) for row in rows) for name in ("times", "jobs", "lost", "doubled")
    )
    lines.append(("all", f"{times:,}", f"{jobs:,}", f"{lost:,}", f"{doubled:,}", "", "", ""))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def describe_machine() -> str:
    """One line about where this was measured."""
    return f"Python {platform.python_version()}, {platform.system()}, {platform.machine()}.\n"


def put_in(page: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """Replace what is between the markers."""
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{text}\n{end}{after}"


def main(directory: str, *options: str) -> None:
    """Print the table and write it into the page."""
    new = read(Path(directory))
    if not new:
        sys.exit(f"no scenario has left a row in {directory}: did the tests run with PGQ_ANYIO_TEST_FAULT_ROWS set?")
    rows = merge([] if "--whole" in options else read_kept(), new)
    text = table(rows)
    print(text)
    KEPT.write_text(json.dumps([attrs.asdict(row) for row in rows], indent=1) + "\n", "utf-8")
    PAGE.write_text(put_in(PAGE.read_text("utf-8"), f"{text}\n{describe_machine()}"), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What a soak test has to say in the end; ``python -m tests.soak.report DIRECTORY`` puts it into the documentation."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import attrs

from tests.faults.report import PAGE, describe_machine, put_in
from tests.soak.gauges import Gauges

BEGIN, END = "<!-- soak: begin -->\n", "<!-- soak: end -->\n"
#: Where the result is left (a directory).
ROWS = os.environ.get("PGQ_ANYIO_TEST_SOAK_ROWS")
NAME = "soak.json"


@attrs.frozen(kw_only=True)
class Result:
    """What was seen."""

    minutes: float
    #: jobs that were enqueued in a second, outages included
    rate: float
    jobs: int
    #: calls of handlers
    runs: int
    lost: int
    doubled: int
    faults: int
    #: from the end of a fault until all was well (in seconds), the longest
    recovered: float
    #: 50th and 99th percentile from enqueueing to start (in milliseconds), outside faults with their recovery, and all
    calm: tuple[float, float]
    overall: tuple[float, float]
    #: who, what, level after the warm-up, level at the end, allowed
    levels: list[tuple[str, str, float, float, float]]

    def save(self) -> None:
        """Leave it for the report."""
        if ROWS is not None:
            Path(ROWS, NAME).write_text(json.dumps(attrs.asdict(self)), "utf-8")

    def table(self) -> str:
        """Two tables in Markdown."""
        seen = [
            ("", "Seen"),
            ("---", "--:"),
            ("time under load, and jobs enqueued in a second", f"{self.minutes:.0f} min, {self.rate:,.0f}"),
            ("jobs enqueued and ended", f"{self.jobs:,}"),
            ("runs of handlers", f"{self.runs:,}"),
            ("lost", f"{self.lost:,}"),
            ("run twice, each because of a fault that allows it", f"{self.doubled:,}"),
            ("faults", f"{self.faults:,}"),
            ("all is well after a fault, at the latest", f"{self.recovered:.1f} s"),
            ("enqueueing to start, p50 and p99, outside faults", f"{self.calm[0]:.1f} ms, {self.calm[1]:.1f} ms"),
            ("the same, always", f"{self.overall[0]:.1f} ms, {self.overall[1]:,.1f} ms"),
        ]
        levels = [
            ("Of", "Level of", "After the warm-up", "At the end", "Allowed"),
            ("---", "---", "--:", "--:", "--:"),
            *(
                (who, what, f"{begin:,.0f}", f"{end:,.0f}", f"{most:,.0f}")
                for who, what, begin, end, most in self.levels
            ),
        ]
        return "\n".join("".join(f"| {' | '.join(line)} |\n" for line in lines) for lines in (seen, levels))


def levels(gauges: Gauges) -> list[tuple[str, str, float, float, float]]:
    """The figures that must not grow."""
    return [(one.who, one.what, one.begin, one.end, one.allowed) for one in gauges.series.values()]


def main(directory: str) -> None:
    """Print the tables and write them into the page."""
    path = Path(directory, NAME)
    if not path.exists():
        sys.exit(f"no soak test has left its result in {directory}: did it pass, with PGQ_ANYIO_TEST_SOAK_ROWS set?")
    text = Result(**json.loads(path.read_text("utf-8"))).table()
    print(text)
    PAGE.write_text(put_in(PAGE.read_text("utf-8"), f"{text}\n{describe_machine()}", BEGIN, END), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

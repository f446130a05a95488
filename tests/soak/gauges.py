"""What must not grow, measured from outside: workers, their children, the server, and its tables."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Final

import attrs

from tests.soak.stage import SLOTS
from tests.worker.fleet import Fleet

MB: Final = 1_000_000
#: As many children there may be, each with some pipes; the first jobs for them may come late.
PROCESSORS: Final = os.cpu_count() or 1
_TABLES = """
select coalesce(sum(pg_total_relation_size(c.oid)), 0), coalesce(sum(pg_indexes_size(c.oid)), 0),
    coalesce(sum(s.n_dead_tup), 0)
from pg_class c join pg_namespace n on n.oid = c.relnamespace left join pg_stat_all_tables s on s.relid = c.oid
where n.nspname = %s and c.relkind = 'r'
"""
_CONNECTIONS = "select count(*) from pg_stat_activity where application_name like 'pgq_anyio %%'"


@attrs.frozen
class Bound:
    """How much a figure may grow: by a share, and by an amount."""

    share: float
    amount: float


#: What is under way changes from look to look: threads by as many as there are slots, connections by a worker that is
#: being replaced, memory and sizes by a backlog. A leak of some bytes for each job, of one descriptor for each fault,
#: or of records that are not deleted goes far beyond these in half an hour.
BOUNDS: Final = {
    "memory (MB)": Bound(0.10, 20),
    "descriptors": Bound(0.0, 12 + 4 * PROCESSORS),
    "threads": Bound(0.0, SLOTS + 10),
    "children": Bound(0.0, PROCESSORS),
    "memory of the largest child (MB)": Bound(0.25, 60),
    "connections": Bound(0.0, 12),
    "server's private memory (MB)": Bound(0.25, 80),
    "tables and indexes (MB)": Bound(0.30, 30),
    "indexes (MB)": Bound(0.30, 20),
    "dead rows": Bound(0.50, 60_000),
}


@attrs.define(eq=False)
class Series:
    """One figure over time."""

    who: str
    what: str
    values: list[float] = attrs.field(factory=list)

    @property
    def begin(self) -> float:
        """Its level after the warm-up: in the third fifth of the time."""
        fifth = len(self.values) // 5
        return median(self.values[2 * fifth : 3 * fifth] or self.values)

    @property
    def end(self) -> float:
        """Its level in the last fifth."""
        return median(self.values[-max(1, len(self.values) // 5) :])

    @property
    def allowed(self) -> float:
        """What it may be in the end."""
        bound = BOUNDS[self.what]
        return self.begin * (1 + bound.share) + bound.amount


@attrs.define(eq=False)
class Gauges:
    """All figures of one run."""

    series: dict[tuple[str, str], Series] = attrs.field(factory=dict)

    def add(self, who: str, what: str, value: float) -> None:
        """Write one figure down."""
        self.series.setdefault((who, what), Series(who, what)).values.append(value)

    def read_worker(self, who: str, pid: int) -> None:
        """Look at a worker and its children."""
        status = _status(pid)
        children = _children(pid)
        self.add(who, "memory (MB)", status["VmRSS"] / 1000)
        self.add(who, "threads", status["Threads"])
        self.add(who, "descriptors", len(list(Path(f"/proc/{pid}/fd").iterdir())))
        self.add(who, "children", len(children))
        largest = max((_status(child)["VmRSS"] for child in children), default=0)
        self.add(who, "memory of the largest child (MB)", largest / 1000)

    def read_server(self, fleet: Fleet, postmaster: int) -> None:
        """Look at the server and at the tables of the queue."""
        ((total, indexes, dead),) = fleet.rows(_TABLES, fleet.schema)
        self.add("the queue", "tables and indexes (MB)", float(total) / MB)
        self.add("the queue", "indexes (MB)", float(indexes) / MB)
        self.add("the queue", "dead rows", float(dead))
        self.add("the server", "connections", fleet.value(_CONNECTIONS))
        private = sum(_status(pid)["RssAnon"] for pid in [postmaster, *_children(postmaster)])
        self.add("the server", "server's private memory (MB)", private / 1000)

    def grown(self) -> list[str]:
        """What has grown by more than its bound."""
        return [
            f"{one.who}: {one.what} went from {one.begin:.1f} to {one.end:.1f}, allowed {one.allowed:.1f}"
            for one in self.series.values()
            if one.end > one.allowed
        ]

    def __str__(self) -> str:
        latest: dict[str, list[str]] = {}
        for one in self.series.values():
            latest.setdefault(one.who, []).append(f"{one.what} {one.values[-1]:,.0f}")
        return "; ".join(f"{who}: {', '.join(figures)}" for who, figures in latest.items())


def _status(pid: int) -> Counter[str]:
    """The numbers of ``/proc/PID/status``; none if the process has ended."""
    figures: Counter[str] = Counter()
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return figures
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if (first := value.split()[:1]) and first[0].isdigit():
            figures[name] = int(first[0])
    return figures


def _children(pid: int) -> list[int]:
    """The child processes, whichever thread has started them."""
    everybody = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [one for one in everybody if _status(one)["PPid"] == pid]

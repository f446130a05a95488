"""Goals that were not met: what was tried, and what stands in the way. Shown wherever such a goal is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs

from ._figure import Verdict


@attrs.frozen
class Tried:
    """What is said of a figure whose goal is not met. Numbers are of runs in which what is compared took turns."""

    tried: str
    #: what stands in the way
    obstacle: str

    def __str__(self) -> str:
        return f"{self.tried} {self.obstacle}"


#: By the number of the figure.
TRIED: Final = {
    5: Tried(
        tried=(
            "Tried for one job: a statement of its own in place of that for many (267 → 145 µs without the disk; "
            "with it 1.17 to 1.43 times a bare INSERT before, 1.15 to 1.20 after)."
        ),
        obstacle=(
            "In the way: the look for a worker that sleeps, without which workers would have to poll, and the check "
            "of the arguments. From run to run the ratio moves by more than is missing (trio: 1.20, 0.99, 1.21, "
            "1.21)."
        ),
    ),
    6: Tried(
        tried=(
            "Tried: the enqueue's own statement (0.1 ms less); a smaller claim for a worker that wakes for one name "
            "(a tenth of a claim by itself; p50 3.5, 4.0, 3.7 ms with it and 2.9, 3.9, 3.6 without, so it was taken "
            "out again); a CPython that was optimised by its profile (p50 3.1 to 3.3 → 2.2, p99 5.8 to 7.2 → 4.3 to "
            "5.1)."
        ),
        obstacle=(
            "In the way: an INSERT with NOTIFY and the DELETE that hears of it, without queue, loop or record, takes "
            "p50 1.6 to 1.8 and p99 3.0 to 4.3 ms on this machine in the same rounds. Each step finds a process that "
            'has slept for 20 ms; "select 1" takes 0.6 ms then, and 0.1 when it follows at once.'
        ),
    ),
    9: Tried(
        tried=(
            "Tried, with the rates of 4 workers against 2 and of 8 against 4 (0.92 and 0.90 as it is): outcomes "
            "gathered up to 20 ms and 300 at a time (0.93, 0.90), claims that wait for half a claim's room as well "
            "(0.96, 0.92), no sweep after a claim that met others (0.91, 0.87), reaching further while others are "
            "met (0.85, 0.95). All within the noise or worse; none was kept."
        ),
        obstacle=(
            "In the way: two workers and the server use both cores. What more workers add is smaller batches: 5.0, "
            "7.2, 9.7 and 13.5 transactions for 1,000 jobs with 1, 2, 4 and 8 workers."
        ),
    ),
    10: Tried(
        tried=(
            "Tried: slots that learn how many of them take jobs (22.9 → 29.7 k/s on uvloop, 8.3 → 10.3 on trio), "
            "slots that idle instead of ending, a scope that serves the next job if nobody has cancelled it, "
            "claiming later while there is a stock (no difference), a CPython that was optimised by its profile "
            "(slots in use on trio 55 → 93 to 95 %)."
        ),
        obstacle=(
            "In the way: a job that waits needs a timer of its own, and its task wakes for it. On trio `trio.sleep` "
            "itself takes a quarter of the time, and the expiry of its deadline a sixth. The bound is that of jobs "
            "that need neither."
        ),
    ),
    12: Tried(
        tried=(
            "Tried: the watchdog wakes when there is something to watch (8 wakes in a second → none); two wakes in "
            "ten seconds are left, for a heartbeat and its answer. Memory that is locked makes no difference, and no "
            "line of code is hot."
        ),
        obstacle=(
            "In the way: this machine runs code some fifty times slower after a sleep, and charges it to the "
            "process: a heartbeat takes 109 to 199 ms of CPU after ten seconds of sleep and 24 ms after one. A "
            "process that does nothing but send a statement every ten seconds takes 0.7 to 1.0 % with its session on "
            "the server, two to three times the goal."
        ),
    ),
}


def explain(verdicts: Iterable[Verdict]) -> dict[int, str]:
    """What is to be said of the goals that are not met, by the number of their figure."""
    missed = sorted({verdict.number for verdict in verdicts if verdict.met is False})
    return {number: str(TRIED.get(number, "Nothing was tried yet.")) for number in missed}

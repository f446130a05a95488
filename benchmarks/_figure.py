"""What a figure is: a module that measures, judges what it has measured, and says how to draw it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import attrs

from ._children import MeasurementError, measure_module
from .contenders._contender import Contender

Results = dict[str, Any]
Size = dict[str, int]


@attrs.frozen
class Verdict:
    """One goal, and what was measured."""

    #: the number of the figure in the list of goals
    number: int
    what: str
    goal: str
    measured: str
    #: ``None`` if it could not be judged: a peer is missing, or the size is too small
    met: bool | None


@attrs.frozen
class Bars:
    """A chart with one bar for each name."""

    title: str
    unit: str
    values: Mapping[str, float]
    #: a goal to draw as a line, if there is one
    goal: float | None = None


@attrs.frozen
class Curves:
    """A chart with one curve for each name."""

    title: str
    x: str
    y: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    logarithmic: Literal["", "x"] = ""


@attrs.frozen
class Table:
    """What was measured, in full."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


Chart = Bars | Curves


@attrs.define
class Bench:
    """Where a figure is measured."""

    dsn: str
    size: Size
    missing: dict[str, str] = attrs.field(factory=dict)
    versions: dict[str, str] = attrs.field(factory=dict)

    def say(self, text: str) -> None:
        """Tell how it goes."""
        print(f"  {text}", flush=True)

    def present(self, contenders: Iterable[Contender]) -> list[Contender]:
        """Those that can be measured; the others are reported."""
        found = []
        for one in contenders:
            try:
                version = one.version()
            except MeasurementError as error:
                self.lose(one.name, str(error))
                continue
            if version:
                self.versions[one.name] = version
            found.append(one)
        return found

    def measure_module(self, name: str, module: str, *arguments: str) -> dict[str, Any] | None:
        """Run a module of this package in a child process; its figures, or ``None`` if it gave none, which is noted.

        :param name: what is measured, for people
        """
        try:
            return measure_module(module, *arguments)
        except MeasurementError as error:
            self.lose(name, str(error))
            return None

    def lose(self, name: str, reason: str) -> None:
        """Note that something gave no figures."""
        self.missing[name] = reason
        self.say(f"{name}: no figures: {reason}")


class Figure(Protocol):
    """A module of this package that is a figure."""

    TITLE: str
    #: what is measured and how, for the documentation
    HOW: str
    QUICK: Size
    FULL: Size

    def measure(self, bench: Bench) -> Results:
        """Measure."""

    def judge(self, results: Results) -> list[Verdict]:
        """Compare with the goals."""

    def tables(self, results: Results) -> list[Table]:
        """All that was measured."""

    def charts(self, results: Results) -> list[Chart]:
        """What to draw."""


def median(values: Iterable[float]) -> float:
    """The median, or NaN of nothing."""
    found = list(values)
    return statistics.median(found) if found else float("nan")


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that this percentage is below."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def ratio(part: float | None, whole: float | None) -> float | None:
    """How many times, or ``None`` if one of them is missing."""
    return part / whole if part is not None and whole else None


def at_least(number: int, what: str, value: float | None, goal: float, *, unit: str = "×", digits: int = 2) -> Verdict:
    """A goal that the value is to reach."""
    return _verdict(number, what, "≥", value, goal, unit, digits)


def at_most(number: int, what: str, value: float | None, goal: float, *, unit: str = "×", digits: int = 2) -> Verdict:
    """A goal that the value is not to exceed."""
    return _verdict(number, what, "≤", value, goal, unit, digits)


def _verdict(
    number: int, what: str, sign: Literal["≥", "≤"], value: float | None, goal: float, unit: str, digits: int
) -> Verdict:
    wanted = f"{sign} {goal:,g} {unit}".rstrip()
    if value is None or math.isnan(value):
        return Verdict(number, what, wanted, "not judged", None)
    met = value >= goal if sign == "≥" else value <= goal
    return Verdict(number, what, wanted, f"{value:,.{digits}f} {unit}".rstrip(), met)

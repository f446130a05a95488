"""The command: measure figures, judge them, make the page of the documentation, install the peers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import _run
from ._figures import FIGURES
from ._peers import install_peers


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what was asked; 1 if something could not be measured, or a goal was not met."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure figures, all or those named, and compare them with their goals.",
        epilog="figures: " + ", ".join(FIGURES),
    )
    parser.add_argument(
        "what", nargs="*", metavar="FIGURE", help="figures to measure; or 'report', 'goals', 'peers'. Default: all"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: all figures in three minutes")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="another size, as jobs=50000")
    parser.add_argument("--left", action="store_true", help="measure only what has no results yet")
    parser.add_argument("--results", type=Path, help="where the JSON is kept. Default: .bench/full or .bench/quick")
    parser.add_argument("--dsn", help="a server of your own, on this machine, instead of the embedded one")
    args = parser.parse_args(arguments)
    place = args.results or Path(".bench") / ("quick" if args.quick else "full")
    try:
        sizes = {name: int(number) for name, _, number in (one.partition("=") for one in args.set)}
    except ValueError:
        parser.error("--set takes NAME=NUMBER")
    match args.what:
        case ["peers"]:
            missing = install_peers()
            for name, reason in missing.items():
                print(f"missing: {name}: {reason}")
            return 1 if missing else 0
        case ["goals"]:
            return _run.print_goals(place)
        case ["report"]:
            from ._page import write_page

            return write_page(place)
    if unknown := [name for name in args.what if name not in FIGURES]:
        parser.error(f"no figure is called {unknown[0]!r}; there are {', '.join(FIGURES)}")
    return _run.run_figures(
        args.what or list(FIGURES), place, quick=args.quick, sizes=sizes, only_left=args.left, dsn=args.dsn
    )


if __name__ == "__main__":
    sys.exit(main())

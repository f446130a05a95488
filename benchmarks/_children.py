"""Running one measurement in a child process, and reading the line of JSON that it prints last."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

LOOPS = ("asyncio", "uvloop", "trio")


class MeasurementError(Exception):
    """A measurement gave no figures."""


def measure(command: Sequence[str], *, timeout: float = 600.0) -> dict[str, Any]:
    """Run a command and return its figures.

    :raises MeasurementError: if it fails; with the end of what it said
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        raise MeasurementError(str(error)) from error
    if done.returncode != 0 or not done.stdout.strip():
        raise MeasurementError(done.stderr.strip()[-2000:] or f"exit status {done.returncode}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def measure_module(module: str, *arguments: str) -> dict[str, Any]:
    """Run a module of this package in a child process."""
    return measure([sys.executable, "-m", f"benchmarks.{module}", *arguments])


def loop_options(loop: str) -> dict[str, Any]:
    """What ``anyio.run`` is told to run on this event loop."""
    if loop == "trio":
        return {"backend": "trio"}
    return {"backend": "asyncio", "backend_options": {"use_uvloop": loop == "uvloop"}}

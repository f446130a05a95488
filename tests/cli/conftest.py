"""Fixtures for tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import Commands
from tests.worker.fleet import Fleet, open_fleet


@pytest.fixture(autouse=True)
def unmeasured_children() -> None:
    """Here they are measured: signals and the last resort end processes, so that no lighter test has them."""


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def loop(request: pytest.FixtureRequest) -> list[str]:
    """The options for each event loop."""
    options = {
        "asyncio": ["--backend=asyncio", "--no-uvloop"],
        "uvloop": ["--backend=asyncio", "--uvloop"],
        "trio": ["--backend=trio"],
    }
    return options[request.param]


@pytest.fixture
def fleet(dsn: str, schema: str) -> Iterator[Fleet]:
    """The test's schema, seen from outside."""
    with open_fleet(dsn, schema) as fleet:
        yield fleet


@pytest.fixture
def commands(dsn: str, tmp_path: Path) -> Iterator[Commands]:
    """Starts commands as processes; all have ended afterwards."""
    with Commands(dsn, tmp_path) as commands:
        yield commands

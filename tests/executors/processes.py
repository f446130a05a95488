"""What the tests of processes share: waiting for facts about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import psutil


def is_gone(pid: int) -> bool:
    """Return True if a process has ended, also if nobody has reaped it yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def wait_until(fact: Callable[[], bool], patience: float = 20) -> None:
    """Wait for something that no event tells of."""
    with anyio.fail_after(patience):
        while not fact():  # noqa: ASYNC110
            await anyio.sleep(0.005)


async def wait_for_pid(path: Path, patience: float = 20) -> int:
    """Wait for the file in which a process tells its id."""
    await wait_until(path.exists, patience)
    return int(path.read_text())  # noqa: ASYNC240


def children() -> list[int]:
    """Return the direct children of this process, zombies included."""
    return [child.pid for child in psutil.Process().children()]


def let_go(path: Path) -> None:
    """End a handler that holds its process (``process_handlers.hold_a_job``)."""
    path.with_name(path.name + ".go").touch()

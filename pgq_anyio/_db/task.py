"""What AnyIO cannot be asked about the calling task."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable


def rename_current_task(name: str) -> None:
    """Give the calling task another name, as task dumps show it."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        trio.lowlevel.current_task().name = name
    elif (task := asyncio.current_task()) is not None:
        task.set_name(name)


def cancel_requests() -> Callable[[], int]:
    """How to ask how often ``cancel()`` was called on the calling task and not taken back; trio's tasks have none."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return int
    task = asyncio.current_task()
    return int if task is None else task.cancelling

"""All figures, in the order of the list of goals."""

from __future__ import annotations

from typing import Final

from . import (
    backlog,
    ceiling,
    churn,
    drain,
    enqueue,
    idle,
    latency,
    limits,
    memory,
    processes,
    promptness,
    slots,
    snapshot,
    wal,
)
from ._figure import Figure

FIGURES: Final[dict[str, Figure]] = {
    "drain": drain,
    "ceiling": ceiling,
    "enqueue": enqueue,
    "latency": latency,
    "backlog": backlog,
    "snapshot": snapshot,
    "processes": processes,
    "slots": slots,
    "memory": memory,
    "idle": idle,
    "wal": wal,
    "churn": churn,
    "limits": limits,
    "promptness": promptness,
}

"""Bounds on times: what is promised, and what can be asked of a machine that is busy with ten other things."""

from __future__ import annotations

from typing import Final, Protocol

#: Within which time a busy machine does what a worker is told to do (in seconds). It is still less than it takes a
#: worker of default settings that was *not* told: the next heartbeat comes after nine seconds, the next poll after 30.
BUSY: Final = 8.0


class Within(Protocol):
    """Chooses the bound of a test."""

    def __call__(self, promised: float, otherwise: float = BUSY) -> float:
        """Return what is promised if figures are held exactly (``--figures``).

        :param otherwise: the bound on a busy machine, which only the mechanism under test keeps
        """

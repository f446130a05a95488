"""The connections of a term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .._db import PsycopgDriver
from .._db.line import Line
from .._services.claimer import DISPATCH_SETTINGS
from .._services.scheduler import SCHEDULE_SETTINGS

#: How long a registration that is interrupted may take to be cancelled on the server (in seconds).
REGISTRATION_CLEANUP: Final = 1.0
#: Claims of limited names are waited for: one that a crash of the server undid would break exactness.
LIMITED_SETTINGS: Final = {**DISPATCH_SETTINGS, "synchronous_commit": "on"}


class Lines:
    """One for each role, so that none waits for what another one does."""

    def __init__(self, driver: PsycopgDriver) -> None:
        self.heartbeat = Line(driver, "heartbeat", cleanup_timeout=REGISTRATION_CLEANUP)
        self.dispatch = Line(driver, "dispatch", dict(DISPATCH_SETTINGS), cleanup_timeout=0.5)
        self.limited = Line(driver, "dispatch limited", dict(LIMITED_SETTINGS), cleanup_timeout=0.5)
        self.maintenance = Line(driver, "maintenance")
        self.schedule = Line(driver, "schedule", dict(SCHEDULE_SETTINGS), cleanup_timeout=0.5)
        self.listen = Line(driver, "listen", direct=True, cleanup_timeout=0.0)

    def all(self) -> list[Line]:
        """Every line, open or not."""
        return [self.heartbeat, self.dispatch, self.limited, self.maintenance, self.schedule, self.listen]

    def on_reopened(self, call: Callable[[], None]) -> None:
        """Have it told when a connection had to be replaced, unless it is the heartbeat's, which is told by itself."""
        for line in self.all():
            if line is not self.heartbeat:
                line.on_reopened = call

    def close(self) -> None:
        """Close all at once, without waiting."""
        for line in self.all():
            line.close()

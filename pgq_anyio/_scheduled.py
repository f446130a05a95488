"""A run of a schedule: an occurrence that this worker has taken, from the claim to the stored end."""

from __future__ import annotations

import attrs

from ._context import Context
from ._models import Schedule
from ._registry import ScheduleEntry
from ._timetable import HeldSchedule


@attrs.define(eq=False)
class ScheduledRun:
    """An occurrence that runs here."""

    held: HeldSchedule
    entry: ScheduleEntry
    #: what the handler gets
    schedule: Schedule
    context: Context
    #: whether the handler has ended (or will never start): only the release is still to be stored
    ended: bool = False

    @property
    def title(self) -> str:
        """What logs call it."""
        return f"schedule {self.held.name!r} ({self.held.expression})"

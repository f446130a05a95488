"""How long records of finished jobs are kept: for each way in which a job ends."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import attrs

from ._durations import seconds
from ._errors import ConfigurationError

DAY: Final = 86400.0
WEEK: Final = 7 * DAY

#: One time for all, or one for each of ``successful``, ``failed`` and ``cancelled``.
RetentionLike = float | timedelta | Mapping[str, float | timedelta]


@attrs.frozen(kw_only=True)
class Retention:
    """How long records of finished jobs are kept (in seconds)."""

    successful: float = WEEK
    failed: float = WEEK
    cancelled: float = WEEK

    @classmethod
    def of(cls, value: float) -> Retention:
        """The same for all."""
        return cls(successful=value, failed=value, cancelled=value)

    @property
    def longest(self) -> float:
        """After this time nothing of a job is left."""
        return max(self.successful, self.failed, self.cancelled)

    @property
    def swept(self) -> list[float]:
        """The times that do not end with the dropping of a whole day: then single records are deleted.

        A day is dropped when the longest time has passed since its end. What has a shorter time goes before that, and
        so does everything if a day more would be out of proportion.
        """
        times = sorted({self.successful, self.failed, self.cancelled})
        return times if self.longest < DAY else times[:-1]


def check_retention(value: RetentionLike) -> Retention:
    """Check the option ``retention``. What a mapping leaves out is kept for seven days.

    :raises ConfigurationError: if it cannot be used; the message names the place
    """
    if not isinstance(value, Mapping):
        return Retention.of(seconds("retention", value))
    known = [field.name for field in attrs.fields(Retention)]
    checked: dict[str, Any] = {}
    for status, time in value.items():
        if status not in known:
            raise ConfigurationError(f"retention is for {', '.join(known)}, not for {status!r}")
        checked[status] = seconds(f"retention[{str(status)!r}]", time)
    return Retention(**checked)

"""How long a worker counts as alive without a sign of life, and what becomes of its jobs after that.

Usually the lease is a cancel scope around the jobs, which ends shortly before the lease does: no other worker may have
claimed one of them by then. A worker that lets its jobs go on instead learns from the first heartbeat that gets through
whether anybody has declared it dead. Until then it has lost nothing; after that nothing it says of these jobs counts.
"""

from __future__ import annotations

import anyio
import attrs
from anyio import CancelScope


@attrs.define(eq=False)
class Lease:
    """The lease of one term."""

    #: how long the worker counts as alive after a heartbeat (in seconds)
    duration: float
    #: how long before its end the jobs are cancelled (in seconds)
    margin: float
    #: whether jobs go on when the lease is lost
    spares_jobs: bool = False
    #: around everything that the lease holds together
    scope: CancelScope = attrs.field(factory=CancelScope, init=False)
    #: set when another worker has declared this one dead
    revoked: anyio.Event = attrs.field(factory=anyio.Event, init=False)

    @property
    def is_lost(self) -> bool:
        """Whether this term has ended, or is to end as soon as its jobs have."""
        return self.revoked.is_set() or self.scope.cancel_called

    def renew(self, asked_at: float) -> None:
        """The database has heard of us.

        :param asked_at: when it was asked (event loop's clock): the lease counts from before that
        """
        if not self.spares_jobs:
            self.scope.deadline = asked_at + self.duration - self.margin

    def revoke(self) -> None:
        """Another worker has declared us dead."""
        self.revoked.set()
        if not self.spares_jobs:
            self.scope.cancel()

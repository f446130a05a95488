"""How long a claim may take: it is shielded from cancellation, and no shield is without a bound."""

from __future__ import annotations

from typing import Final

import anyio
import attrs
from anyio import CancelScope

#: The longest a claim may take (in seconds): half a heartbeat's interval, but within these bounds.
CLAIM_TIMEOUT: Final = 30.0
SHORTEST_CLAIM_TIMEOUT: Final = 1.0
#: The longest once the worker stops (in seconds).
HURRIED_CLAIM: Final = 0.5


@attrs.define(eq=False)
class ClaimShield:
    """Bounds each claim, and the one that is under way when the worker stops even more."""

    #: the longest a claim may take (in seconds): what it took in vain is held by nobody meanwhile. One that took longer
    #: makes it twice as long for the next, in case that it is the server that is slow
    timeout: float = CLAIM_TIMEOUT
    #: but never longer than this, for what is held by nobody has to be found within one heartbeat
    longest: float = CLAIM_TIMEOUT
    _patience: float = attrs.field(init=False)
    _scope: CancelScope | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._patience = self.timeout

    def open(self) -> CancelScope:
        """A shielded scope for one claim."""
        self._scope = CancelScope(shield=True, deadline=anyio.current_time() + self._patience)
        return self._scope

    def answered(self, *, in_time: bool) -> None:
        """Learn how the last claim went."""
        self._patience = self.timeout if in_time else min(self._patience * 2, self.longest)

    def hurry(self) -> None:
        """Let the claim under way, if any, end soon."""
        if self._scope is not None:
            self._scope.deadline = min(self._scope.deadline, anyio.current_time() + HURRIED_CLAIM)

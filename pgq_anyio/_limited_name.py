"""When a worker asks for the jobs of a name again that has limits, or needs processes: decided by what the last claim
said, and by news since.
"""

from __future__ import annotations

import math
import random
from typing import Final

import attrs

from ._hints import Hints
from ._strict_hints import StrictHints

#: Pause before a lock that another worker holds is tried again (in seconds, jittered between the two).
LOCKED_PAUSE: Final = (0.005, 0.02)
#: Pause before rows that others have locked are tried again (in seconds): the first, and the longest.
FIRST_PAUSE: Final = 0.005
LONGEST_PAUSE: Final = 0.25
#: When a name that has nothing queued is looked at again (in seconds after the last look); then the poll interval.
LOOK_AGAIN: Final = (0.01, 0.05, 0.25, 1.0)


@attrs.define(eq=False)
class LimitedName:
    """What a worker knows of one such name. All times are those of the event loop's clock."""

    name: str
    #: whether the fleet limits it
    is_limited: bool = True
    #: whether its handlers run in processes
    in_process: bool = False
    #: where to look first
    hints: Hints | StrictHints = attrs.field(default=attrs.Factory(lambda self: Hints((self.name,)), takes_self=True))
    #: when it is to be asked for
    ready_at: float = -math.inf
    #: whether it waits for news, and ``ready_at`` is only the poll
    resting: bool = False
    #: whether nothing was queued when it was looked at last, and when that was
    empty: bool = False
    emptied_at: float = -math.inf
    #: whether there was news since the last claim began
    woken: bool = False
    #: how many slots our own jobs have freed that no claim has looked at yet
    freed: int = 0
    #: how many of them the claim under way looks at
    _in_question: int = 0
    _looks: int = 0
    _pause: float = 0.0

    def wake(self, *, in_front: bool = False) -> None:
        """There is news: ask for it at once.

        :param in_front: whether it may lie left of the hints
        """
        self.woken = True
        self.ready_at = -math.inf
        self.resting = False
        if in_front:
            self._sweep_next()

    def asked(self) -> None:
        """A claim begins: what comes from now on it may miss."""
        self.woken = False
        self._in_question, self.freed = self.freed, 0

    def unanswered(self) -> None:
        """The claim has failed, or tells nothing of this name."""
        self.freed += self._in_question
        self._in_question = 0

    def answered(
        self,
        now: float,
        *,
        locked: bool,
        slots_left: int | None,
        candidates: int,
        pause: float | None,
        got: int,
        swept: bool,
        has_room: bool,
        poll_interval: float,
    ) -> bool:
        """Decide when to ask again.

        :param locked: whether the lock was free; if not, the rest means nothing
        :param slots_left: how many more jobs may run, or ``None`` for any number
        :param candidates: how many queued jobs were in reach
        :param pause: seconds until the next token, or ``None``
        :param got: how many jobs the claim brought
        :param swept: whether it would have found a job wherever one was
        :param has_room: whether it might have brought more
        :param poll_interval: the longest pause (in seconds)
        :return: whether others had its rows locked
        """
        contended = False
        # Without room or a token for more, the claim has not looked how many more wait.
        until_token = max(pause or 0.0, 0.0)
        is_cut = candidates > got or ((not has_room or until_token > 0) and got < self._in_question)
        if not locked or (slots_left and is_cut):
            self.unanswered()  # others are still to be told: a slot went to no job
        self._in_question = 0
        if not locked:
            self._wait(now, random.uniform(*LOCKED_PAUSE))  # noqa: S311  (jitter, not a secret)
        elif slots_left is not None and slots_left <= 0:
            self._looks, self.empty, self.resting = 0, False, True
            self.ready_at = now + poll_interval
        elif not candidates and swept:
            self.look_again(now, poll_interval)
        elif not candidates:
            self._sweep_next()  # what lies left of the hint was not looked at
            self._wait(now, 0.0)
        elif until_token > 0:
            self._looks = 0
            # No longer than a poll: the token of a job that never started is given back in silence.
            self._wait(now, min(until_token, poll_interval))
        elif got or not has_room:
            self._looks, self._pause = 0, 0.0
            self._wait(now, 0.0)
            contended = has_room and got < candidates
            if has_room and not contended:
                self._sweep_next()
        else:
            # Others have locked all rows in reach: cancel requests in transactions that are still open.
            contended = True
            self._pause = min(max(self._pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            self._wait(now, self._pause * random.uniform(0.5, 1.0))  # noqa: S311  (jitter, not a secret)
        if self.woken:
            self.wake()
        return contended

    def look_again(self, now: float, poll_interval: float, *, first: bool = False) -> None:
        """Nothing is queued: look again soon, for what was being enqueued just now; then rest.

        :param first: whether enqueuers have only now been told to notify us
        """
        if first:
            self._looks = 0
        self.empty, self.emptied_at = True, now
        self.resting = self._looks == len(LOOK_AGAIN)
        self.ready_at = now + (poll_interval if self.resting else min(LOOK_AGAIN[self._looks], poll_interval))
        if not self.resting:
            self._looks += 1

    def _wait(self, now: float, pause: float) -> None:
        self.empty = self.resting = False
        self.ready_at = now + pause

    def _sweep_next(self) -> None:
        if isinstance(self.hints, Hints):  # a claim of a serialized name always finds everything
            self.hints.sweep_next()

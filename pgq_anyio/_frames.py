"""Where a suspended coroutine is, read from itself: that is the same on every backend, unlike its task."""

from __future__ import annotations

import traceback


def awaited_frames(awaitable: object) -> traceback.StackSummary:
    """The frames of a suspended coroutine, outermost first."""
    frames = []
    while awaitable is not None:
        frame = getattr(awaitable, "cr_frame", None) or getattr(awaitable, "gi_frame", None)
        if frame is not None:
            frames.append((frame, frame.f_lineno))
        awaitable = getattr(awaitable, "cr_await", None) or getattr(awaitable, "gi_yieldfrom", None)
    return traceback.StackSummary.extract(iter(frames))

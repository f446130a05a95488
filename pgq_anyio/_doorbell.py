"""A doorbell: wakes the one task that waits, remembers one ring, loses none."""

from __future__ import annotations

import anyio


class Doorbell:
    """Ring it from anywhere in the event loop's thread; many rings before a look are one."""

    __slots__ = ("_event", "_rang")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._rang = False

    def ring(self) -> None:
        """Wake the waiting task, or make its next wait return at once."""
        if not self._rang:  # it is rung for every job, and costs a tenth of what an event does
            self._rang = True
            self._event.set()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait for a ring.

        :param timeout: maximum time to wait (in seconds), or ``None`` to wait for ever
        :return: whether it rang
        """
        if timeout is None:
            await self._event.wait()
        else:
            with anyio.move_on_after(timeout):
                await self._event.wait()
        rang = self._rang
        if rang:
            self._event = anyio.Event()
            self._rang = False
        return rang

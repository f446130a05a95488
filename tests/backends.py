"""How the programs of the tests run their event loops."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio


def run_on(backend: str, function: Callable[[], Awaitable[object]]) -> None:
    """Run an async function on ``asyncio``, ``uvloop`` or ``trio``."""
    if backend == "uvloop":
        anyio.run(function, backend="asyncio", backend_options={"use_uvloop": True})
    else:
        anyio.run(function, backend=backend)

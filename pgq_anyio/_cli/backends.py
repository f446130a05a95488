"""Which event loop a command runs on: asyncio, with uvloop if it is installed, unless told otherwise."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Awaitable, Callable
from enum import StrEnum

import anyio
import attrs

from .._errors import first_leaf
from .containment import contain_child_tasks
from .interrupts import Interrupts
from .messages import UsageError


class BackendName(StrEnum):
    """The backends of AnyIO."""

    ASYNCIO = "asyncio"
    TRIO = "trio"


@attrs.frozen
class Backend:
    """A recipe for an event loop."""

    name: BackendName
    uvloop: bool

    def __str__(self) -> str:
        return f"{self.name.value} with uvloop" if self.uvloop else self.name.value


def choose_backend(name: BackendName, uvloop: bool | None) -> Backend:
    """Decide about uvloop.

    :param uvloop: whether it was asked for, or ``None`` to use it if it is there
    :raises UsageError: if it was asked for and cannot be had
    """
    if name is BackendName.TRIO:
        if uvloop:
            raise UsageError("--uvloop is a loop for asyncio: leave it out, or use --backend asyncio")
        return Backend(name, uvloop=False)
    installed = importlib.util.find_spec("uvloop") is not None
    if uvloop and not installed:
        raise UsageError(
            "uvloop is not installed: pip install 'pgq_anyio[uvloop]', or leave --uvloop out"
            + (" (it does not exist for Windows)" if os.name == "nt" else "")
        )
    return Backend(name, uvloop=installed if uvloop is None else uvloop)


def python_version() -> str:
    """``CPython 3.11.2``."""
    return f"{platform.python_implementation()} {platform.python_version()}"


def run_on(backend: Backend, function: Callable[[], Awaitable[None]], interrupts: Interrupts) -> None:
    """Run an async function to its end on a loop of its own.

    Ctrl-C and SIGTERM cancel it, until somebody receives signals in there: what was opened is closed again.

    :raises KeyboardInterrupt: if one of the two came
    """

    async def main() -> None:
        if backend.name is BackendName.ASYNCIO:
            contain_child_tasks()
        with interrupts.cancelling():
            await function()

    with interrupts.held_back():
        try:
            if backend.name is BackendName.ASYNCIO:
                anyio.run(main, backend="asyncio", backend_options={"use_uvloop": backend.uvloop})
            else:
                anyio.run(main, backend="trio")
        except BaseExceptionGroup as group:
            raise first_leaf(group) from None

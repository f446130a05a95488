"""What opens and closes a user's resources around all jobs: checked where it is given, and where it is called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final

from ._errors import ConfigurationError

Lifespan = Callable[[], AbstractAsyncContextManager[Any]]

_WANTED: Final = "lifespan must be a function that gives an async context manager"
_FIX: Final = "put @contextlib.asynccontextmanager above it"


def check_lifespan(lifespan: object) -> None:
    """See what can be seen without calling it.

    :raises ConfigurationError: if it cannot be called without arguments, or a call would give something else
    """
    # What @asynccontextmanager gives can be called, too.
    if isinstance(lifespan, AbstractAsyncContextManager) or not callable(lifespan):
        raise ConfigurationError(f"{_WANTED}, not one itself")
    function: object = lifespan
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"{_WANTED}, and this one is an async generator: {_FIX}")
    if inspect.isgeneratorfunction(function):
        raise ConfigurationError(f"{_WANTED}, and this one is a generator: write async def, and {_FIX}")
    if inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"{_WANTED}, and this one has to be awaited: let it yield its resources, and {_FIX}")
    try:
        signature = inspect.signature(lifespan)
    except (TypeError, ValueError):
        return  # a builtin without a signature
    try:
        signature.bind()
    except TypeError:
        raise ConfigurationError(f"{_WANTED}, and nobody passes arguments to it: this one takes {signature}") from None


def open_lifespan(lifespan: Lifespan | None) -> AbstractAsyncContextManager[Any]:
    """Call it; without one there is nothing to open, and ``ctx.resources`` is ``None``.

    :raises ConfigurationError: if it gives no async context manager
    """
    if lifespan is None:
        return nullcontext()
    given: object = lifespan()
    if isinstance(given, AbstractAsyncContextManager):
        return given
    if isinstance(given, Coroutine):
        given.close()  # or Python complains that nobody has awaited it
    raise ConfigurationError(f"{_WANTED}, and this one gave a {type(given).__qualname__}")

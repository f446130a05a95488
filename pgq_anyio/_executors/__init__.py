"""How a handler is called: directly, in a thread, in a process, or with retries around it."""

from ._backoff import RetryWithBackoffEntrypointExecutor
from ._base import AbstractEntrypointExecutor, EntrypointExecutor
from ._process import ProcessPool
from ._processes import ProcessExecutor
from ._thread import ThreadExecutor

__all__ = [
    "AbstractEntrypointExecutor",
    "EntrypointExecutor",
    "ProcessExecutor",
    "ProcessPool",
    "RetryWithBackoffEntrypointExecutor",
    "ThreadExecutor",
]

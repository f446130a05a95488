"""What an app has registered: entrypoints and schedules, checked when they are written down.

Handlers are looked at once, here: whether they are async (partials and objects with an async ``__call__`` count), and
whether they take a second positional parameter without a default, which then gets the ``Context``. Annotations are
never evaluated: they may name things that exist for type checkers only.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, Final, Protocol

import attrs

from ._context import Context
from ._cron import CronSchedule
from ._errors import ConfigurationError
from ._limits import UNLIMITED, Limits
from ._retry import RetryPolicy
from ._timetable import Missed

#: Longest name of an entrypoint or schedule (in characters): names stand in index entries and notifications.
MAX_NAME: Final = 500
#: Longest cron expression (in bytes): with the longest name it still fits into an index entry.
MAX_EXPRESSION: Final = 600
#: The shortest sign of life that can be asked for (in seconds): below it a busy machine looks dead.
MIN_LEASE: Final = 2.0

Handler = Callable[..., Any]


class HandlerKind(Enum):
    """How a handler is called, which decides how it can be cancelled."""

    ASYNC = "async"
    THREAD = "thread"
    PROCESS = "process"


class Executor(Protocol):
    """What the worker needs of an executor; users subclass ``AbstractEntrypointExecutor``."""

    kind: HandlerKind

    def check(self) -> None: ...

    def execute(self, job: Any, context: Context, /) -> Awaitable[object]: ...


@attrs.frozen(kw_only=True)
class ExecutorParameters:
    """What an ``executor_factory`` receives at registration."""

    #: the name of the entrypoint or schedule
    name: str
    #: the decorated function
    func: Handler
    #: whether ``func`` is to be awaited
    is_async: bool
    #: whether ``func`` takes the context as its second argument
    wants_context: bool
    #: seconds after which a run is cancelled, or ``None``
    timeout: float | None = None
    max_attempts: int = 1
    max_crashes: int = 5
    #: seconds within which the worker must show a sign of life, or ``None`` for the worker's lease
    retry_timer: float | None = None
    #: starts per second in the whole fleet, ``inf`` for any number
    requests_per_second: float = math.inf
    #: jobs at once in the whole fleet, 0 for any number
    concurrency_limit: int = 0
    #: whether jobs run one at a time, in order
    serialized_dispatch: bool = False
    #: the cron expression of a schedule, ``None`` for an entrypoint
    expression: str | None = None


ExecutorFactory = Callable[[ExecutorParameters], Executor]


@attrs.frozen(kw_only=True)
class Entrypoint:
    """A registered handler of jobs."""

    name: str
    executor: Executor
    timeout: float | None
    max_attempts: int
    max_crashes: int
    retry_timer: float | None
    retry_policy: RetryPolicy
    limits: Limits = UNLIMITED
    #: whether each job gets a task of its own in any case
    own_task: bool = False


@attrs.frozen(kw_only=True)
class ScheduleEntry:
    """A registered handler of a schedule."""

    name: str
    expression: str
    cron: CronSchedule
    missed: Missed
    executor: Executor


@attrs.define(eq=False)
class Registry:
    """Everything that an app has registered, by name."""

    entrypoints: dict[str, Entrypoint] = attrs.field(factory=dict)
    schedules: dict[tuple[str, str], ScheduleEntry] = attrs.field(factory=dict)

    def add_entrypoint(self, entrypoint: Entrypoint) -> None:
        """:raises RuntimeError: if the name is taken"""
        if entrypoint.name in self.entrypoints:
            raise RuntimeError(f"the entrypoint {entrypoint.name!r} is registered already; names are unique in an app")
        self.entrypoints[entrypoint.name] = entrypoint

    def add_schedule(self, schedule: ScheduleEntry) -> None:
        """:raises RuntimeError: if this name is registered with this expression"""
        key = (schedule.name, schedule.expression)
        if key in self.schedules:
            raise RuntimeError(f"the schedule {schedule.name!r} is registered with {schedule.expression!r} already")
        self.schedules[key] = schedule

    def executors(self) -> list[Executor]:
        """Everything that runs handlers."""
        entries: list[Entrypoint | ScheduleEntry] = [*self.entrypoints.values(), *self.schedules.values()]
        return [entry.executor for entry in entries]

    def names_in_process(self) -> frozenset[str]:
        """The entrypoints whose handlers run in processes."""
        return frozenset(name for name, e in self.entrypoints.items() if e.executor.kind is HandlerKind.PROCESS)

    def shortest_timeout(self) -> float:
        """The shortest ``timeout`` of all entrypoints (in seconds); infinite if there is none."""
        return min((e.timeout for e in self.entrypoints.values() if e.timeout is not None), default=math.inf)

    def shortest_lease(self, lease: float) -> float:
        """The lease of a worker: the smallest of its own and its entrypoints' ``retry_timer`` (in seconds)."""
        return min([lease, *(e.retry_timer for e in self.entrypoints.values() if e.retry_timer is not None)])


def check_name(what: str, name: str) -> str:
    """:raises ConfigurationError: if this cannot name an entrypoint or a schedule"""
    if not isinstance(name, str):
        raise ConfigurationError(f"the name of {what} must be a str, not {name!r}")
    if not name:
        raise ConfigurationError(f"the name of {what} must not be empty")
    if len(name) > MAX_NAME:
        raise ConfigurationError(f"the name of {what} has {len(name)} characters; at most {MAX_NAME} are allowed")
    if "\x00" in name:
        raise ConfigurationError(f"the name of {what} has a NUL character, which PostgreSQL cannot store: {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"the name of {what} is not valid Unicode: {name!r}") from None
    return name


def check_expression(expression: str) -> str:
    """:raises ConfigurationError: if this cron expression cannot be stored as part of a key"""
    if len(expression.encode()) > MAX_EXPRESSION:
        raise ConfigurationError(f"a cron expression must not be longer than {MAX_EXPRESSION} bytes: {expression!r}")
    return expression


def is_async_callable(function: Handler, what: str) -> bool:
    """Whether calling ``function`` gives something to await.

    :raises ConfigurationError: if it is a generator, of which a call would run nothing
    """
    while isinstance(function, functools.partial):
        function = function.func
    ways = (function, getattr(function, "__call__", None))  # noqa: B004  (a method of an object, or of a function)
    if any(inspect.isgeneratorfunction(way) or inspect.isasyncgenfunction(way) for way in ways):
        raise ConfigurationError(f"{what} must not have a yield: nothing would run it")
    return any(inspect.iscoroutinefunction(way) for way in ways)


def wants_context(function: Handler, what: str) -> bool:
    """Whether a handler takes a second positional argument.

    :raises ConfigurationError: if it cannot be called with one or two positional arguments
    """
    if not callable(function):
        raise ConfigurationError(f"{what} must be a function, not {function!r}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False  # a builtin without a signature
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if keywords:
        raise ConfigurationError(f"{what} requires the keyword argument {keywords[0]!r}, which nobody passes to it")
    if len(required) > 2 or (not positional and not variadic):
        raise ConfigurationError(
            f"{what} must take the job, or the job and its context; this function takes {inspect.signature(function)}"
        )
    return len(required) == 2

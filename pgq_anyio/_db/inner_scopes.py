"""What a handler has opened in its task and never closed: cancel scopes and task groups.

An async generator that yields inside of one and is left in the middle is enough. The scopes around it, which are ours,
can then not be closed in order: AnyIO and trio raise, and with that error the worker would end. And what is left open
would be around whatever runs next in this task. So it is cancelled for its owner, its tasks are waited for as those of
any handler are, it is closed, and the task takes no further job. Nobody is left to whom the errors of those tasks could
be raised: they are logged.

AnyIO cannot be asked which scope is the innermost one, nor for its tasks; the backends know. On asyncio none knows the
error of a task that had ended before: it is kept by the group, and a scope does not tell whose it is.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from anyio import CancelScope

logger = logging.getLogger("pgq_anyio.runner")


class InnerScopes(ABC):
    """What the calling task opens from now on."""

    __slots__ = ("own", "were_left")

    def __init__(self) -> None:
        #: the innermost scope of now
        self.own = self.innermost()
        #: whether any was left open: this task is to take no further job
        self.were_left = False

    @abstractmethod
    def innermost(self) -> Any:
        """The innermost scope, as the backend has it."""

    @abstractmethod
    def _around(self, scope: Any) -> Any:
        """The scope around this one, or ``None``."""

    @abstractmethod
    def _usable(self, scope: Any) -> Any:
        """What can be cancelled and left."""

    @abstractmethod
    async def _wait(self, scopes: list[Any]) -> list[BaseException]:
        """Wait for the tasks of these scopes; the errors that they have ended with."""

    async def close(self) -> None:
        """Cancel and close what is still open."""
        scopes = self._opened()
        if not scopes:
            return
        self.were_left = True
        for scope in scopes:
            self._usable(scope).cancel()
        try:
            for error in await self._wait(scopes):
                logger.warning("tasks in a task group that a handler has left open have failed", exc_info=error)
        finally:
            for scope in scopes:
                self._usable(scope).__exit__(None, None, None)

    @contextmanager
    def within(self) -> Iterator[None]:
        """Let the scopes of now be among those around, for the length of a block."""
        before, self.own = self.own, self.innermost()
        try:
            yield
        finally:
            self.own = before

    def _opened(self) -> list[Any]:
        """Those that are open, the innermost first."""
        scopes = []
        scope = self.innermost()
        while scope is not None and scope is not self.own:
            scopes.append(scope)
            scope = self._around(scope)
        return [] if scope is None else scopes


class _InnerScopesOnTrio(InnerScopes):
    __slots__ = ("_number", "_task")

    def __init__(self) -> None:
        self._task = sys.modules["trio"].lowlevel.current_task()
        self._number = len(self._task._child_nurseries)
        super().__init__()

    def innermost(self) -> Any:
        return self._task._cancel_status

    def _around(self, scope: Any) -> Any:
        return scope.parent

    def _usable(self, scope: Any) -> Any:
        return scope._scope

    async def _wait(self, scopes: list[Any]) -> list[BaseException]:
        errors = []
        for nursery in reversed(self._task._child_nurseries[self._number :]):
            finish = nursery._nested_child_finished
            # Whoever closes the generator now would wait as well, and for ever.
            nursery._nested_child_finished = _pass_on
            error = await finish(None)
            if isinstance(error, BaseExceptionGroup):
                error = error.split(anyio.get_cancelled_exc_class())[1]
            if error is not None:
                errors.append(error)
        return errors


class _InnerScopesOnAsyncio(InnerScopes):
    __slots__ = ("_state", "_task")

    def __init__(self) -> None:
        states: Any = getattr(sys.modules.get("anyio._backends._asyncio"), "_task_states", {})
        self._task = asyncio.current_task()
        self._state = states.get(self._task)
        super().__init__()

    def innermost(self) -> Any:
        return getattr(self._state, "cancel_scope", None)

    def _around(self, scope: Any) -> Any:
        return scope._parent_scope

    def _usable(self, scope: Any) -> Any:
        return scope

    async def _wait(self, scopes: list[Any]) -> list[BaseException]:
        waited: set[Any] = set()
        with CancelScope(shield=True):
            while tasks := _tasks_of(scopes[-1]) - {self._task}:
                waited |= tasks
                await asyncio.wait(tasks)
        return [error for task in waited if not task.cancelled() and (error := task.exception()) is not None]


async def _pass_on(error: BaseException | None) -> BaseException | None:
    return error


def _tasks_of(scope: Any) -> set[Any]:
    tasks = {task for task in scope._tasks if not task.done()}
    for inner in scope._child_scopes:
        tasks |= _tasks_of(inner)
    return tasks


def watch_inner_scopes() -> InnerScopes:
    """Know what the calling task opens from now on."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return _InnerScopesOnTrio()
    return _InnerScopesOnAsyncio()

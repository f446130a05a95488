"""The warm children of a worker.

Children are started when they are first needed and stay until the pool closes; the one that worked last is asked first,
so that the others' memory can be swapped out. The pool has no task of its own: a child is always owned by the call that
uses it, or idle.

A supervisor that signals the whole control group (systemd's default ``KillMode``) ends the children together with the
worker's first SIGTERM, and their handlers with them: use ``KillMode=mixed``.
"""

from __future__ import annotations

import math
import os
import sys
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import current_token

from ..._errors import ConfigurationError
from ._child import is_child
from ._errors import ProcessDied
from ._handle import ChildGone, ChildProcess, Garbled
from ._importable import MAIN_ALIAS, main_origin
from ._wire import RETURNED, MainUnpickler, pack_request, unpack_reply

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Any, Self

#: How long Python's own start and our imports may take (in seconds). On a machine that is very busy they take long.
READY_PATIENCE = 60.0


class ProcessPool:
    """Calls functions in child processes that are used again and again.

    Used as an async context manager. Leaving it closes the children: they are idle by then, if the calls were made
    inside. Async functions run on the backend of the event loop that has opened it: they may use it by its own name.

    :param max_workers: how many children there are at most; further calls wait. Defaults to the number of processors
        this process may use.
    """

    def __init__(self, max_workers: int | None = None) -> None:
        if max_workers is None:
            max_workers = _usable_processors()
        if type(max_workers) is not int or max_workers < 1:
            raise ConfigurationError(f"max_workers must be a positive int, not {max_workers!r}")
        self._max_workers = max_workers
        #: AnyIO backend that runs async functions in the children
        self._backend = "asyncio"
        self._idle: list[ChildProcess] = []
        self._working: set[ChildProcess] = set()
        self._slots: anyio.Semaphore | None = None
        self._opened_by = 0

    @property
    def max_workers(self) -> int:
        """How many children there are at most."""
        return self._max_workers

    async def __aenter__(self) -> Self:
        if is_child():
            raise RuntimeError(
                "a process of a pool cannot open a pool: put the part of the program that starts the worker "
                'under `if __name__ == "__main__":`'
            )
        if self._slots is not None:
            raise RuntimeError("this process pool is open already")
        self._slots = anyio.Semaphore(self._max_workers, fast_acquire=True)
        self._backend = _current_backend()
        self._opened_by = os.getpid()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self._slots = None
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                for child in self._idle:
                    group.start_soon(child.leave, name=f"leave process {child.pid}")
        self._idle.clear()
        # Calls made from outside of this block end as ProcessDied, and clean up themselves.
        for child in self._working:
            child.kill()

    async def run(
        self,
        target: str,
        arguments: tuple[object, ...] = (),
        *,
        waiting: AbstractContextManager[None] | None = None,
        patience: float = math.inf,
        on_impatient: Callable[[], None] | None = None,
        cancel_grace: float = 5.0,
        on_overdue: Callable[[], None] | None = None,
    ) -> object:
        """
        Call a function in a child process.

        If the surrounding scope is cancelled, the child and everything it has started gets SIGTERM, and SIGKILL after
        ``cancel_grace``; the cancellation goes on when the child has ended, unless the function still returned: it has
        done its work then, and its result is returned here. Programs that moved to a session of their own are not
        followed.

        :param target: what :func:`check_importable` returned for the function, sync or async
        :param arguments: positional arguments. They have to be picklable, and so has the result.
        :param waiting: entered for as long as the call waits for a free child, and for the start of a new one
        :param patience: how long to wait for a free child without complaint (in seconds). Defaults to any time.
        :param on_impatient: called after ``patience``, when no child has become free; the wait goes on, if this has not
            cancelled it
        :param cancel_grace: time between SIGTERM and SIGKILL (in seconds). Defaults to 5.
        :param on_overdue: called if the child still runs after ``cancel_grace``, just before SIGKILL
        :return: what the function returned
        :raises ProcessDied: if the child ended before the function did
        :raises RemoteError: if the function raised something that cannot be raised here
        :raises TimeoutError: if a new child is not ready after ``READY_PATIENCE``
        :raises TypeError: if arguments or result cannot be pickled
        :raises RuntimeError: if the pool is not open, or was opened before a fork

        Everything else that the function raises is raised here too, with the traceback of the child as its cause.
        """
        if self._slots is None:
            raise RuntimeError("this process pool is not open")
        if os.getpid() != self._opened_by:
            raise RuntimeError(f"this process pool was opened by process {self._opened_by}; a fork of it cannot use it")
        request = pack_request(target, arguments)
        with ExitStack() as wait:
            wait.enter_context(waiting or nullcontext())
            slots = self._slots
            await _acquire(slots, patience, on_impatient)
            try:
                kind, body = await self._ask(target, request, wait.close, cancel_grace, on_overdue)
            finally:
                slots.release()
        return unpack_reply(target, kind, body, _load)

    async def _ask(
        self,
        target: str,
        request: bytes,
        end_wait: Callable[[], None],
        cancel_grace: float,
        on_overdue: Callable[[], None] | None,
    ) -> tuple[int, bytes]:
        while True:
            warm = bool(self._idle)
            child = self._idle.pop() if warm else await self._start(target)
            self._working.add(child)
            try:
                end_wait()
                reply = await child.ask(request)  # looks first whether the wait was ended when it was over anyway
            except ChildGone:
                returncode = await child.bury()  # noqa: ASYNC120 - shielded inside
                # A child that died while it was idle has not seen the request, so nobody's handler ran.
                if warm and not child.started:
                    continue
                raise ProcessDied(target, returncode, started=child.started) from None
            except Garbled:
                await child.end(cancel_grace, on_overdue)  # noqa: ASYNC120 - shielded inside
                raise _garbled(target) from None
            except BaseException as error:  # noqa: ASYNC103  (work that is done is not undone by a cancellation)
                late = await child.end(cancel_grace, on_overdue) if child.busy else None  # noqa: ASYNC102 - as above
                # A handler that returns although it was asked to end has done its work, as an async one has.
                if late is None or late[0] != RETURNED or not isinstance(error, anyio.get_cancelled_exc_class()):
                    raise
                reply = late
            finally:
                self._working.discard(child)
                # One that was ended stays busy.
                if not child.busy:
                    await self._give_back(child)  # noqa: ASYNC102 - shielded inside
            return reply

    async def _start(self, target: str) -> ChildProcess:
        child = await ChildProcess.start(self._backend)
        self._working.add(child)
        try:
            await child.set_up(READY_PATIENCE)
        except ChildGone:
            returncode = await child.bury()  # noqa: ASYNC120 - shielded inside
            raise ProcessDied(target, returncode, started=False) from None
        except TimeoutError:
            await child.end(0.0)  # noqa: ASYNC120 - shielded inside
            raise TimeoutError(
                f"the process of {target} was not ready for the handler after {READY_PATIENCE:g} s: does something "
                "hang that Python runs at its start, such as a sitecustomize, or a directory of sys.path?"
            ) from None
        except Garbled:
            await child.end(0.0)  # noqa: ASYNC120 - shielded inside
            raise _garbled(target) from None
        except BaseException:
            await child.end(0.0)  # noqa: ASYNC102 - shielded inside
            raise
        finally:
            self._working.discard(child)
        return child

    async def _give_back(self, child: ChildProcess) -> None:
        if self._slots is None:
            # The pool was closed meanwhile.
            await child.end(0.0)
        else:
            self._idle.append(child)


def _garbled(target: str) -> RuntimeError:
    return RuntimeError(
        f"the process of {target} sent something that is no message of ours. Is anything printed when Python starts, "
        "such as by a sitecustomize? Its standard output is ours until the handler begins"
    )


async def _acquire(slots: anyio.Semaphore, patience: float, on_impatient: Callable[[], None] | None) -> None:
    with anyio.move_on_after(patience):
        await slots.acquire()
        return
    if on_impatient is not None:
        on_impatient()
    await slots.acquire()


def _load(data: bytes) -> Any:
    return MainUnpickler(data, _find_module).load()


def _find_module(module: str) -> str:
    """Say how a module of the child is called here: its copy of this program is ``__main__``."""
    if module == MAIN_ALIAS or (module == main_origin() and module not in sys.modules):
        return "__main__"
    return module


def _current_backend() -> str:
    """AnyIO's name for what runs this event loop. Its token is of trio's own class there, and a loop elsewhere."""
    return "trio" if type(current_token().native_token).__module__.startswith("trio.") else "asyncio"


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

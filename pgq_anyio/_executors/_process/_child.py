"""The child's program: take a request, call the handler, send the reply, until the pipe ends.

Standard input and output are the protocol when the process starts. Before anything of the user's is imported they are
moved to private descriptors, and replaced by ``/dev/null`` and the parent's own standard output: what a handler prints
goes where it went before. Programs that a handler starts do not inherit the private ones; a child that it forks closes
them, and never returns into the loop here.

**The parent's death** is seen as the end of the request pipe, whatever the parent died of, or as another parent than
before (if somebody's fork holds the pipe open). A child that is busy then kills its whole group at once: nobody waits
for its outcome, and by the time another worker may claim the job no handler may run. ``PR_SET_PDEATHSIG`` is not used:
it fires when the *thread* that forked ends, and trio forks in worker threads that end after ten idle seconds. What the
thread here cannot see is a handler in C code that never lets go of the GIL.

**Signals**: SIGTERM has its default action at the start of every job; a handler may install its own. SIGINT is for the
parent, which decides; it is caught and dropped, not ignored, because "ignored" would be inherited by programs that the
handler starts.
"""

from __future__ import annotations

import fcntl
import inspect
import os
import pickle
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from ._importable import import_origin, resolve
from ._wire import HEADER, READY, STARTED, MainUnpickler, Setup, pack, pack_error, pack_result

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from io import BufferedReader
    from types import FrameType

#: How long an idle child may take to leave after its parent has died (in seconds).
IDLE_PATIENCE = 5.0
#: How often the parent's process id is looked at (in milliseconds).
PARENT_CHECK = 1000

#: Descriptors below are standard streams.
FIRST_PRIVATE = 3

_serving = False


def is_child() -> bool:
    """Return True in a process that a pool has started."""
    return _serving


def main(stdout: int, parent: int) -> None:
    """
    Serve until the parent closes the pipe.

    :param stdout: descriptor of the standard output that handlers shall have
    :param parent: process id of the parent
    """
    global _serving  # noqa: PLW0603 - a fact about the process, set once
    _serving = True
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    _set_signals()
    _close_copies()
    requests = os.fdopen(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, FIRST_PRIVATE), "rb")
    replies = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, FIRST_PRIVATE)
    _replace_streams(stdout)
    child = Child(requests, replies)
    os.register_at_fork(after_in_child=child.let_go)
    threading.Thread(target=child.watch, args=(parent,), name="pgq_anyio parent watch", daemon=True).start()
    # The parent has died: see watch().
    with suppress(BrokenPipeError):
        child.serve()


class Child:
    """The loop over requests, and what the watching thread has to know of it."""

    def __init__(self, requests: BufferedReader, replies: int) -> None:
        self._requests = requests
        self._replies = replies
        self._pid = os.getpid()
        self._busy = False

    def serve(self) -> None:
        """Answer requests until there are no more."""
        setup = self._receive()
        if setup is None:
            return
        self._setup: Setup = pickle.loads(setup)  # noqa: S301 - from our parent
        sys.argv[:] = self._setup.argv
        self._send(pack(READY, None))
        while (request := self._receive()) is not None:
            self._busy = True
            self._send(pack(STARTED, None))
            reply = self._answer(*pickle.loads(request))  # noqa: S301 - from our parent
            _set_signals()
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            # Before the reply: the parent may close the pipe as soon as it has it.
            self._busy = False
            self._send(reply)

    def watch(self, parent: int) -> None:
        """Wait for the parent's end, and see to it that this process ends too."""
        poll = select.poll()
        # With no event asked for, poll reports only that the other end was closed.
        poll.register(self._requests.fileno(), 0)
        while os.getppid() == parent and not poll.poll(PARENT_CHECK):
            pass
        if not self._busy:
            time.sleep(IDLE_PATIENCE)
        os.killpg(self._pid, signal.SIGKILL)

    def let_go(self) -> None:
        """Close the protocol's descriptors, in a process that a handler has forked."""
        self._requests.close()
        os.close(self._replies)

    def _answer(self, target: str, arguments: bytes) -> bytes:
        try:
            function = resolve(target)
            result = function(*MainUnpickler(arguments, self._find_module).load())
            if inspect.iscoroutine(result):
                result = anyio.run(_wait_for, result, backend=self._setup.backend)
            self._leave_if_forked(0)
            return pack_result(target, result)
        except BaseException as error:  # noqa: ASYNC103, BLE001 - sync code: whatever it is, it is the job's
            self._leave_if_forked(error.code if isinstance(error, SystemExit) else 1)
            # The first frame is this one.
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                error.__traceback__ = error.__traceback__.tb_next
            return pack_error(error)  # noqa: ASYNC104

    def _leave_if_forked(self, code: object) -> None:
        if os.getpid() != self._pid:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            os._exit(code if isinstance(code, int) else int(code is not None))

    def _find_module(self, module: str) -> str:
        """Say how the parent's module is called here."""
        main = self._setup.main
        if module != "__main__" or main is None:
            return module
        return import_origin(main).__name__

    def _receive(self) -> bytes | None:
        header = self._requests.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        length, _ = HEADER.unpack(header)
        body = self._requests.read(length)
        return body if len(body) == length else None

    def _send(self, frame: bytes) -> None:
        rest = memoryview(frame)
        while rest:
            rest = rest[os.write(self._replies, rest) :]


async def _wait_for(result: Coroutine[Any, Any, object]) -> object:
    return await result


def _set_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, _drop)


def _drop(number: int, frame: FrameType | None) -> None:
    """Do nothing: the parent decides."""


def _close_copies() -> None:
    """Close other descriptors of the protocol's streams: uvloop leaves some, and programs and forks would hold them."""
    for descriptor in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
        # The one that lists the directory is closed already.
        with suppress(OSError):
            if descriptor >= FIRST_PRIVATE and any(os.path.sameopenfile(descriptor, stream) for stream in (0, 1)):
                os.close(descriptor)


def _replace_streams(stdout: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(stdout, 1)
    os.close(stdout)
    # Python has taken the pipe for a file and buffers whole blocks: a killed handler's last lines would be lost.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(line_buffering=True)

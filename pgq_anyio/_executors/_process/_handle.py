"""One child process, seen from its parent.

Every child leads a session and process group of its own, so that a terminal's Ctrl-C does not reach it and so that what
a handler has started can be ended with it. It is started by ``exec`` of the interpreter with the parent's ``sys.path``
written into the command: no state is inherited by fork, and the environment stays as it is.

A group's id is its leader's process id, which is free again when the leader has been reaped *and* the group is empty.
Signals that are sent to the rest of a group right after that rely on process ids being handed out in turn: a whole
round of them would have to pass in between. Later none is sent: not after ``end`` or ``bury``, and not to what is left
of a child that died while it was idle, for nobody knows when that was.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from ._importable import main_origin
from ._wire import HEADER, RAISED, READY, SETUP, STARTED, Setup, pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import Process

logger = logging.getLogger(__name__)

#: How long fork and exec may take (in seconds). Python's own start is not part of it.
START_PATIENCE = 30.0
#: How long a child may take to end after it closed its end of the pipe (in seconds).
EXIT_PATIENCE = 1.0
#: How long an idle child may take to leave, and again after SIGTERM (in seconds).
LEAVE_PATIENCE = 2.0
#: How long a process may take to end after SIGKILL before that is worth a warning (in seconds).
KILL_PATIENCE = 10.0
#: How often an orphaned group is looked at (in seconds). The kernel tells nobody when a group becomes empty.
GROUP_CHECK = 0.01

CHUNK = 1 << 18
#: No body is as long as this (in bytes), and every text that is read as a header says that it is longer.
LONGEST_BODY = 1 << 48

PROGRAM = "import sys; sys.path[:] = {path!r}; from {module} import main; main({stdout}, {parent})"


class ChildGone(Exception):  # noqa: N818 - not an error until somebody says so
    """Raised if the child has closed its end of the pipe: it has ended, or is about to."""


class Garbled(Exception):  # noqa: N818 - as above
    """Raised if the child has sent something that is no message of ours."""


class ChildProcess:
    """A child that answers one request at a time. Made by :meth:`start`."""

    def __init__(self, process: Process, setup: bytes) -> None:
        self._process = process
        self._received = bytearray()
        self._setup = setup
        #: whether a request is under way, or was when the child was ended
        self.busy = False
        #: whether the handler of the latest request was reached
        self.started = False
        #: whether the group's id may be somebody else's by now
        self._is_over = False

    @classmethod
    async def start(cls, backend: str) -> ChildProcess:
        """
        Start a child. Its own start is waited for by :meth:`set_up`.

        :param backend: AnyIO backend for async handlers
        :raises OSError: if no process could be started
        """
        stdout = _copy_stdout()
        program = PROGRAM.format(path=sys.path, module=f"{__package__}._child", stdout=stdout, parent=os.getpid())
        try:
            # Shielded: a start that is cancelled half-way could leave a process that nobody knows.
            with anyio.fail_after(START_PATIENCE, shield=True):
                process = await anyio.open_process(
                    [sys.executable, "-c", program],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=None,
                    start_new_session=True,
                    pass_fds=(stdout,),
                )
        finally:
            os.close(stdout)
        return cls(process, pack(SETUP, Setup(main=main_origin(), argv=sys.argv, backend=backend)))

    @property
    def pid(self) -> int:
        """Process id, and id of the process group."""
        return self._process.pid

    async def set_up(self, patience: float) -> None:
        """
        Tell the child what it has to know, and wait until it can be sent requests.

        :param patience: maximum time to wait (in seconds)
        :raises ChildGone: if the child ended instead
        :raises Garbled: if it said something else
        :raises TimeoutError: if it said nothing in time
        """
        with anyio.fail_after(patience):
            await self._send(self._setup)
            kind, _ = await self._receive()
        if kind != READY:
            raise Garbled

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """
        Send a request and wait for the reply.

        :return: kind and body of the reply
        :raises ChildGone: if the child ended instead of answering
        :raises Garbled: if it said something else
        """
        await checkpoint_if_cancelled()
        self.busy, self.started = True, False
        self._is_over = self._process.returncode is not None  # it has died while it was idle
        if self._is_over:
            raise ChildGone
        await self._send(request)
        reply = await self._receive_reply()
        self.busy = False
        return reply

    def kill(self) -> None:
        """Send SIGKILL to the group. Whoever waits for a reply gets :exc:`ChildGone`."""
        self._signal_group(signal.SIGKILL)

    async def end(self, grace: float, on_overdue: Callable[[], None] | None = None) -> tuple[int, bytes] | None:
        """
        End the process and its group: SIGTERM, and SIGKILL after ``grace`` seconds. Shielded.

        Returns when the process has ended. That has no time limit, because the job's row must not leave before: if
        even SIGKILL does not help (a process that hangs in the kernel), a warning says so.

        :param on_overdue: called if the process is still there after ``grace``
        :return: the reply to the request that was under way, if there was one and it was still answered
        """
        reply: tuple[int, bytes] | None = None
        with anyio.CancelScope(shield=True):
            self._signal_group(signal.SIGTERM)
            with anyio.move_on_after(grace) as patience:
                # A handler may catch the signal and return in its own time, or has returned already.
                if self.busy:
                    with suppress(ChildGone, Garbled):
                        reply = await self._receive_reply()
                await self._close_requests()
                await self._process.wait()
                await self._until_group_is_empty()
            try:
                if patience.cancelled_caught and self._process.returncode is None and on_overdue is not None:
                    on_overdue()
            finally:
                if patience.cancelled_caught:
                    self._signal_group(signal.SIGKILL)
                await self._reap()  # noqa: ASYNC102 - shielded; no deadline, see above
        return reply

    async def bury(self) -> int:
        """
        Clean up after a child that has gone by itself, with what it leaves of its group. Shielded.

        :return: the return code as in :mod:`subprocess`
        """
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(EXIT_PATIENCE):
                await self._process.wait()
            self._signal_group(signal.SIGKILL)
            await self._reap()
        assert self._process.returncode is not None
        return self._process.returncode

    async def leave(self) -> None:
        """Let an idle child end by itself, and end it if it does not. Shielded."""
        with anyio.CancelScope(shield=True):
            self._is_over = self._process.returncode is not None  # it has died while it was idle
            with anyio.move_on_after(LEAVE_PATIENCE):
                await self._close_requests()
                await self._process.wait()
            await self.end(LEAVE_PATIENCE)

    async def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            raise ChildGone from error

    async def _receive_reply(self) -> tuple[int, bytes]:
        while True:
            kind, body = await self._receive()
            if kind != STARTED:
                return kind, body
            self.started = True

    async def _receive(self) -> tuple[int, bytes]:
        data = self._received
        assert self._process.stdout is not None
        while True:
            if len(data) >= HEADER.size:
                length, kind = HEADER.unpack_from(data)
                if length > LONGEST_BODY or kind > RAISED:
                    raise Garbled
                end = HEADER.size + length
                if len(data) >= end:
                    with memoryview(data) as view:
                        body = bytes(view[HEADER.size : end])
                    del data[:end]
                    return kind, body
            try:
                data += await self._process.stdout.receive(CHUNK)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
                raise ChildGone from error

    async def _close_requests(self) -> None:
        assert self._process.stdin is not None
        with suppress(anyio.BrokenResourceError, OSError):
            await self._process.stdin.aclose()

    async def _until_group_is_empty(self) -> None:
        while self._signal_group(0):
            # In a container whose first process we are, orphans of the group are ours, and zombies until we reap them.
            with suppress(ChildProcessError):
                while os.waitpid(-self.pid, os.WNOHANG) != (0, 0):  # noqa: ASYNC222 - does not wait
                    pass
            await anyio.sleep(GROUP_CHECK)

    def _signal_group(self, number: int) -> bool:
        """Send a signal to the group while it is ours, and return whether it had any members."""
        if self._is_over:
            return False
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            # macOS answers EPERM for a group of zombies.
            return False
        return True

    async def _reap(self) -> None:
        with anyio.move_on_after(KILL_PATIENCE):
            await self._process.wait()
        if self._process.returncode is None:
            logger.warning("process %d does not end although it was sent SIGKILL; still waiting for it", self.pid)
        await self._process.wait()
        self._is_over = True
        await self._process.aclose()


def _copy_stdout() -> int:
    """Return a descriptor of this process's standard output that a child can be given."""
    try:
        return fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:
        # Closed, as in some daemons.
        return os.open(os.devnull, os.O_WRONLY)

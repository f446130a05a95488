"""What can go wrong with a handler in another process, apart from its own exceptions.

Those come back as themselves if both sides can pickle them, with the remote traceback as their cause.
"""

from __future__ import annotations

import signal

from ..._errors import PgqError


class ProcessDied(PgqError):  # noqa: N818 - named as WorkerDied is
    """Raised if a child process ended before its handler did: ``os._exit``, a crash, the kernel's OOM killer.

    :param target: name of the handler
    :param returncode: as in :mod:`subprocess`: the exit code, or the negated number of the signal
    :param started: whether the handler had been reached
    """

    def __init__(self, target: str, returncode: int, *, started: bool = True) -> None:
        #: exit code, or ``None`` if a signal ended the process
        self.exit_code = returncode if returncode >= 0 else None
        #: name of the signal that ended the process (``"SIGSEGV"``), or ``None``
        self.signal_name = _signal_name(-returncode) if returncode < 0 else None
        how = f"was killed by {self.signal_name}" if returncode < 0 else f"ended with exit code {returncode}"
        before = "before its handler returned" if started else "before it could start the handler (its stderr says why)"
        super().__init__(f"the process of {target} {how} {before}")


class RemoteError(PgqError):
    """Raised in place of a handler's exception that cannot travel, or that must not be raised here.

    ``SystemExit``, ``KeyboardInterrupt`` and a leaked ``CancelledError`` are of the second kind: raised in the worker
    they would end it, or be taken for a cancellation of its own.

    :param type_name: qualified name of the exception's type
    :param message: what ``str()`` made of the exception
    """

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(f"{type_name}: {message}" if message else type_name)
        self.type_name = type_name
        self.message = message


class RemoteTraceback(Exception):  # noqa: N818 - it is what the name says
    """The cause of every exception that came from a child: the traceback as the child saw it, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        # Real-time signals have no names.
        return f"signal {number}"

"""What travels between parent and child: frames of a length, one byte of kind, and a body.

Bodies are pickles. Both ends are our own processes, connected by anonymous pipes; nothing that came from the database
is unpickled. Arguments and results are pickles inside the pickle, so that one which cannot be read becomes an error of
its job and not of the protocol.
"""

from __future__ import annotations

import io
import pickle
import struct
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs

from ..._lifecycle import find_answer, plain_answer, tell_answer, text_of_answer
from ._errors import RemoteError, RemoteTraceback
from ._importable import MAIN_ALIAS

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER = struct.Struct("!QB")

SETUP, READY, REQUEST, STARTED, RETURNED, RAISED = range(6)


@attrs.frozen
class Setup:
    """What a child has to know before its first job."""

    #: where the parent's program can be imported from, or ``None``
    main: str | None
    argv: list[str]
    #: AnyIO backend for async handlers
    backend: str


def pack(kind: int, value: object) -> bytes:
    """Make a frame of a value that consists of built-in types and our own."""
    body = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(body), kind) + body


def pack_request(target: str, arguments: tuple[object, ...]) -> bytes:
    """
    Make the frame that asks for a call.

    :raises TypeError: if the arguments cannot be pickled
    """
    try:
        pickled = pickle.dumps(arguments, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise TypeError(f"the arguments of {target} cannot be sent to its process: {error}") from error
    return pack(REQUEST, (target, pickled))


def pack_result(target: str, result: object) -> bytes:
    """
    Make the frame that brings a result back.

    :raises TypeError: if the result cannot be pickled
    """
    try:
        return pack(RETURNED, pickle.dumps(result, pickle.HIGHEST_PROTOCOL))
    except Exception as error:
        kind = type(result).__qualname__
        raise TypeError(f"{target} returned a {kind}, which cannot be sent back from its process: {error}") from error


def pack_error(error: BaseException) -> bytes:
    """Make the frame that brings an exception back, as text and, if it can travel, as itself. An answer of the handler
    can always travel, if only as what its subclass stands for, and says what is to be recorded: its cause stays here.
    """
    pickled = _pickled(error) if isinstance(error, Exception) else None
    told = None
    with suppress(Exception):  # a subclass may be broken; that is found where the answer is read
        if (answer := find_answer(error)) is not None:
            told = text_of_answer(answer)
            pickled = pickled or _pickled(plain_answer(answer))
    try:
        message = str(error)
    except Exception as broken:  # noqa: BLE001 - a handler's __str__ may raise anything
        message = f"<str() of the exception raised {type(broken).__qualname__}>"
    text = "".join(traceback.format_exception(error))
    return pack(RAISED, (_type_name(error), message, text, pickled, told))


def _pickled(error: Exception) -> bytes | None:
    """``None`` for one that cannot be built again: many pickle, but their __init__ takes other arguments than args."""
    with suppress(Exception):
        attempt = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
        if type(pickle.loads(attempt)) is type(error):  # noqa: S301 - our own
            return attempt
    return None


def unpack_reply(target: str, kind: int, body: bytes, load: Callable[[bytes], Any]) -> object:
    """
    Return what the handler returned, or raise what it raised.

    :param load: unpickles results and exceptions
    :raises TypeError: if the result cannot be unpickled
    :raises RemoteError: if the handler's exception cannot be raised here
    """
    if kind == RETURNED:
        try:
            return load(pickle.loads(body))  # noqa: S301 - from our child
        except Exception as problem:
            raise TypeError(f"the result of {target} cannot be read: {problem}") from problem
    type_name, message, text, pickled, told = pickle.loads(body)  # noqa: S301 - from our child
    error = None
    if pickled is not None:
        with suppress(Exception):
            error = load(pickled)
    if not isinstance(error, Exception):
        error = RemoteError(type_name, message)
    if told is not None:
        tell_answer(error, told)
    raise error from RemoteTraceback(text)


class MainUnpickler(pickle.Unpickler):
    """Reads pickles made by a process whose program has another module name than here."""

    def __init__(self, data: bytes, find_module: Callable[[str], str]) -> None:
        super().__init__(io.BytesIO(data))
        self._find_module = find_module

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(self._find_module(module), name)


def _type_name(error: BaseException) -> str:
    kind = type(error)
    if kind.__module__ in ("builtins", "__main__", MAIN_ALIAS):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"

"""A TCP proxy on loopback that misbehaves as networks do: it is slow, goes silent, loses answers, cuts, and comes back.

It knows the connections by their role, the last word of a service's ``application_name`` (``heartbeat``, ``dispatch``,
``completion``, ``listen`` ...). Threads do the work, so that tests on every event loop and tests of processes use it
in the same way.
"""

from __future__ import annotations

import ctypes
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import attrs
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_ROLE = re.compile(rb"application_name\x00(?:pgq_anyio )?([^\x00]*)\x00")
Loss = Literal["silent", "cut"]
#: Linux's number for a socket's packet filter, and the filter that keeps none ("return 0").
_SO_ATTACH_FILTER = 26
_KEEP_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)


def _keep_nothing(connection: socket.socket) -> None:
    program = ctypes.create_string_buffer(_KEEP_NOTHING)
    connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))


def _can_vanish() -> bool:
    """Whether this system has packet filters and lets this user set one: some leave that to root."""
    if sys.platform != "linux":
        return False
    with socket.socket() as connection:
        try:
            _keep_nothing(connection)
        except PermissionError:
            return False
    return True


#: Marks tests that let the proxy vanish.
VANISHES = pytest.mark.skipif(not _can_vanish(), reason="needs Linux's packet filters, and the right to set one")


def executes(statement: str) -> re.Pattern[bytes]:
    """Matches the message that executes (and does not only prepare) the named statement."""
    return re.compile(rb"B....\x00" + statement.encode() + rb"_", re.DOTALL)


@attrs.define(eq=False)
class Passage:
    """One connection through the proxy."""

    role: str
    client: socket.socket
    server: socket.socket
    silent: bool = False
    #: what becomes of the connection instead of the next answer
    loss: Loss | None = None
    closed: bool = False

    def close(self) -> None:
        """Reset both sides."""
        self.closed = True
        for one in (self.client, self.server):
            with suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@attrs.define(eq=False)
class Proxy:
    """What lies between a worker and its database."""

    #: the DSN of the server
    target: str
    _listener: socket.socket = attrs.field(factory=socket.socket, init=False)
    _changed: threading.Condition = attrs.field(factory=threading.Condition, init=False)
    _passages: list[Passage] = attrs.field(factory=list, init=False)
    #: roles whose new connections are silent, ``None`` among them for all
    _silent: set[str | None] = attrs.field(factory=set, init=False)
    _losses: list[tuple[re.Pattern[bytes], Loss]] = attrs.field(factory=list, init=False)
    #: how long everything takes, in each direction (in seconds)
    delay: float = attrs.field(default=0.0, init=False)
    #: called with everything that clients send
    _watcher: Callable[[str, bytes], None] | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def dsn(self) -> str:
        """The server's DSN, through the proxy."""
        port = self._listener.getsockname()[1]
        return make_conninfo(self.target, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")

    def roles(self) -> list[str]:
        """The roles of the connections that are open."""
        with self._changed:
            return sorted(one.role for one in self._passages if not one.closed)

    # -- misbehaviour --------------------------------------------------------------------------------------------------

    def silence(self, *roles: str, new: bool = True) -> None:
        """Pass nothing on in either direction, and close nothing; for all connections if no role is named.

        :param new: whether connections that are opened from now on are silent too
        """
        with self._changed:
            for one in self._passages:
                one.silent = one.silent or not roles or one.role in roles
            if new:
                self._silent |= set(roles) or {None}

    def vanish(self) -> None:
        """As ``silence``, and what clients send is not even acknowledged, as if the machine were gone (Linux)."""
        self.silence()
        with self._changed:
            for one in self._passages:
                if not one.closed:
                    _keep_nothing(one.client)

    def resume(self) -> None:
        """The network is back: what was held is passed on."""
        with self._changed:
            self._silent.clear()
            for one in self._passages:
                one.silent = False
            self._changed.notify_all()

    def forget(self) -> None:
        """The network is back for new connections: those that are silent stay so for ever."""
        with self._changed:
            self._silent.clear()

    def cut(self, *roles: str) -> int:
        """Reset connections, all if no role is named; how many."""
        with self._changed:
            cut = [one for one in self._passages if not one.closed and (not roles or one.role in roles)]
            for one in cut:
                one.close()
            self._changed.notify_all()
            return len(cut)

    def half_close(self, *roles: str, side: Literal["client", "server"]) -> int:
        """Say to one side of connections that the other one sends nothing more, all if no role is named; how many."""
        with self._changed:
            open_ones = [one for one in self._passages if not one.closed and (not roles or one.role in roles)]
            for one in open_ones:
                with suppress(OSError):
                    (one.client if side == "client" else one.server).shutdown(socket.SHUT_WR)
            return len(open_ones)

    def lose_answer(self, pattern: re.Pattern[bytes], loss: Loss) -> None:
        """Pass on the next message that matches, once, and lose its answer: the server has done what it was asked."""
        with self._changed:
            self._losses.append((pattern, loss))

    @property
    def has_lost(self) -> bool:
        """Whether every answer that was to be lost has been."""
        with self._changed:
            return not self._losses and not any(one.loss for one in self._passages if not one.closed)

    def watch(self, watcher: Callable[[str, bytes], None] | None) -> None:
        """Call ``watcher`` with (role, data) of everything that clients send, before it is passed on."""
        self._watcher = watcher

    def close(self) -> None:
        """End everything."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    # -- threads -------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._open, args=(client,), daemon=True).start()

    def _open(self, client: socket.socket) -> None:
        try:
            first = client.recv(65536)
            server = _connect(self.target)
        except OSError:
            client.close()
            return
        found = _ROLE.search(first)
        passage = Passage(found[1].decode() if found else "", client, server)
        with self._changed:
            passage.silent = None in self._silent or passage.role in self._silent
            self._passages.append(passage)
        threading.Thread(target=self._pump, args=(passage, server, client, b""), daemon=True).start()
        self._pump(passage, client, server, first)

    def _pump(self, passage: Passage, source: socket.socket, sink: socket.socket, data: bytes) -> None:
        from_client = source is passage.client
        with suppress(OSError):
            while data or (data := source.recv(65536)):
                if from_client and self._watcher is not None:
                    self._watcher(passage.role, data)
                if not self._admit(passage, data, from_client=from_client):
                    return
                if self.delay:
                    time.sleep(self.delay)
                sink.sendall(data)
                data = b""
        with self._changed:  # a silent network does not say that a side has closed either
            self._changed.wait_for(lambda: not passage.silent or passage.closed)
            passage.close()
            self._changed.notify_all()

    def _admit(self, passage: Passage, data: bytes, *, from_client: bool) -> bool:
        """Wait until data may pass; whether it may at all."""
        with self._changed:
            if from_client:
                for index, (pattern, loss) in enumerate(self._losses):
                    if pattern.search(data):
                        passage.loss = loss
                        del self._losses[index]
                        break
            elif passage.loss is not None:
                loss, passage.loss = passage.loss, None
                if loss == "cut":
                    passage.close()
                    self._changed.notify_all()
                    return False
                passage.silent = True
            self._changed.wait_for(lambda: not passage.silent or passage.closed)
            return not passage.closed


def _connect(dsn: str) -> socket.socket:
    where = conninfo_to_dict(dsn)
    host, port = str(where.get("host") or "127.0.0.1"), int(str(where.get("port") or 5432))
    if host.startswith("/"):
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(f"{host}/.s.PGSQL.{port}")
        except OSError:
            server.close()
            raise
        return server
    return socket.create_connection((host, port))


@contextmanager
def open_proxy(dsn: str) -> Iterator[Proxy]:
    """A proxy before the server of ``dsn``, for the length of a block."""
    proxy = Proxy(dsn)
    try:
        yield proxy
    finally:
        proxy.close()

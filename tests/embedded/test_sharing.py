"""One server for all processes of a project: started by the first, stopped by the last, however that ends."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import Mock

import psutil
import psycopg
import pytest

from pgq_anyio._embedded import EmbeddedServer, ServerStartError, _guardian
from pgq_anyio._embedded._account import find_account
from pgq_anyio._embedded._server import find_binaries
from pgq_anyio._errors import ConfigurationError
from tests.embedded.children import Holder, guardian_of, postmaster_of, processes_of, query, started_at, wait_until


def test_ephemeral_leaves_nothing() -> None:
    """After `with`, an ephemeral server has no process and no directory."""
    server = EmbeddedServer(ephemeral=True)
    with server as dsn:
        room = server.directory
        assert "1" == query(dsn, "select 1")
        assert processes_of(room)
    assert not room.exists()
    wait_until(lambda: not processes_of(room))


def test_data_survives(place: Path) -> None:
    """A server that is not ephemeral keeps its data; stopped, it leaves no process, no socket and no pid file."""
    room = place / "room"
    with EmbeddedServer(room) as dsn:
        with_table(dsn)
    assert not (room / "socket").exists()
    assert not (room / "data" / "postmaster.pid").exists()
    wait_until(lambda: not processes_of(room))
    with EmbeddedServer(room) as dsn:
        assert "42" == query(dsn, "select answer from kept")


def test_five_start_at_once(place: Path) -> None:
    """Five processes that come at once share one server, which ends with the last of them."""
    room = place / "room"
    with ExitStack() as stack:
        holders = [stack.enter_context(Holder(room)) for _ in range(5)]
        dsns = [holder.dsn() for holder in holders]
        assert 1 == len(set(dsns))
        before = started_at(dsns[0])
        for holder in holders[:4]:
            holder.leave()
        assert before == started_at(dsns[0])
        holders[4].leave()
        wait_until(lambda: not processes_of(room))


def test_one_holder_killed(place: Path) -> None:
    """SIGKILL of the process that started the server does not disturb the other one."""
    room = place / "room"
    with Holder(room) as first, Holder(room) as second:
        dsn = first.dsn()
        assert dsn == second.dsn()
        before = started_at(dsn)
        first.kill()
        assert before == started_at(dsn)
        second.leave()
        wait_until(lambda: not processes_of(room))


@pytest.mark.parametrize("ephemeral", [False, True])
def test_last_holder_killed(place: Path, ephemeral: bool) -> None:
    """SIGKILL of the last holder: the server stops in order, and an ephemeral directory is removed."""
    with Holder(place / "room", ephemeral=ephemeral) as holder:
        dsn = holder.dsn()
        room = Path(query(dsn, "show data_directory")).parent
        holder.kill()
        wait_until(lambda: not processes_of(room))
        if ephemeral:
            assert not room.exists()
        else:
            assert not (room / "data" / "postmaster.pid").exists()
            assert not (room / "socket").exists()


def test_guardian_killed_then_left(place: Path) -> None:
    """With its guardian killed, the server goes on, and the last holder to leave stops it."""
    room = place / "room"
    with EmbeddedServer(room) as dsn:
        before = started_at(dsn)
        os.kill(guardian_of(room), signal.SIGKILL)
        assert before == started_at(dsn)
    assert [] == processes_of(room)


def test_guardian_and_holder_killed(place: Path) -> None:
    """With guardian and holder killed, the next holder stops the server left over and starts its own."""
    room = place / "room"
    with Holder(room) as holder:
        before = started_at(holder.dsn())
        os.kill(guardian_of(room), signal.SIGKILL)
        holder.kill()
    assert processes_of(room)
    with EmbeddedServer(room) as dsn:
        assert before != started_at(dsn)
    wait_until(lambda: not processes_of(room))


def test_ephemeral_guardian_killed() -> None:
    """With its guardian killed, an ephemeral server is stopped and removed by its holder."""
    server = EmbeddedServer(ephemeral=True)
    with server:
        room = server.directory
        os.kill(guardian_of(room), signal.SIGKILL)
    assert not room.exists()
    assert [] == processes_of(room)


def test_guardian_terminated(place: Path) -> None:
    """SIGTERM to the guardian, as at the end of a session, stops the server in order; the next holder starts anew."""
    room = place / "room"
    with EmbeddedServer(room):
        os.kill(guardian_of(room), signal.SIGTERM)
        wait_until(lambda: not processes_of(room))
        with EmbeddedServer(room) as dsn:
            assert "1" == query(dsn, "select 1")


def test_come_and_go(place: Path) -> None:
    """Whoever comes while the last one leaves waits and gets a server that works."""
    room = place / "room"
    failures: list[BaseException] = []

    def come_and_go() -> None:
        try:
            for _ in range(8):
                with EmbeddedServer(room) as dsn:
                    assert "1" == query(dsn, "select 1")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == failures
    wait_until(lambda: not processes_of(room))


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart(place: Path, mode: str) -> None:
    """A restart, in order or as a crash, gives a new server at the same place with the committed data."""
    server = EmbeddedServer(place / "room")
    with server as dsn:
        with_table(dsn)
        before = started_at(dsn)
        server.restart(mode)  # type: ignore[arg-type]
        assert before != started_at(dsn)
        assert "42" == query(dsn, "select answer from kept")


def test_server_killed(place: Path) -> None:
    """SIGKILL of the server while it is held: it is started again, though its processes linger for a moment."""
    room = place / "room"
    with EmbeddedServer(room) as dsn:
        before = started_at(dsn)
        postmaster = postmaster_of(room)
        os.kill(postmaster, signal.SIGKILL)
        wait_until(lambda: not psutil.pid_exists(postmaster))
        with EmbeddedServer(room) as again:
            assert dsn == again
            assert before != started_at(again)


def test_second_guardian(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second guardian gives up and touches nothing of the first one's."""
    server = EmbeddedServer(place, ephemeral=True)
    monkeypatch.setattr(_guardian, "OWN_TIMEOUT", 0.1)
    with server as dsn:
        before = started_at(dsn)
        second = _guardian.Guardian(server.directory, find_binaries(), {}, account=find_account(), ephemeral=True)
        with pytest.raises(ServerStartError, match="another process guards"):
            second.run()
        assert before == started_at(dsn)


def test_failed_restart(place: Path) -> None:
    """A server that does not come up again is tried again, and comes back when what stopped it has been mended."""
    server = EmbeddedServer(place / "room")
    with server as dsn:
        before = started_at(dsn)
        settings = server.directory / "data" / "postgresql.conf"
        good = settings.read_text()
        settings.write_text(good + "\nshared_buffers = 'much'\n")
        os.kill(postmaster_of(server.directory), signal.SIGINT)
        wait_until(lambda: "invalid value" in server.log.read_text())
        settings.write_text(good)
        with EmbeddedServer(server.directory) as again:
            assert dsn == again
            assert before != started_at(again)


@pytest.mark.parametrize("error", [ServerStartError, ConfigurationError, OSError])
def test_a_held_server_is_never_given_up(place: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """While it cannot be started, as on a full disk, it is tried again and again, until it can, or nobody holds it."""
    guardian = _guardian.Guardian(place, place, {}, account=None, ephemeral=False)
    pauses: list[float] = []
    monkeypatch.setattr(guardian, "_server", Mock())
    monkeypatch.setattr(guardian, "_leaving", Mock(is_set=lambda: len(pauses) == 40, wait=pauses.append))
    attempts = iter([*[error("no space left")] * 20, None, *[error("once more")] * 20])
    monkeypatch.setattr(guardian, "_start", Mock(side_effect=attempts))
    guardian._supervise(Mock(), Mock())
    assert [0.4, 0.8, 1.6, 3.2, *[5.0] * 16] * 2 == pauses


@pytest.mark.parametrize("name", ["room", "r" * 120])
def test_same_place_after_crashes(place: Path, name: str) -> None:
    """The DSN holds as long as the server is held, through restarts and a lost guardian, on a long path too."""
    room = place / name
    server = EmbeddedServer(room)
    with server as dsn:
        server.restart("immediate")
        assert "1" == query(dsn, "select 1")
        os.kill(guardian_of(room), signal.SIGKILL)
        with EmbeddedServer(room) as again:
            assert dsn == again
            assert "1" == query(dsn, "select 1")


def test_fork_does_not_hold(place: Path) -> None:
    """A forked child that outlives its parent's `with` does not keep the server."""
    room = place / "room"
    reading, writing = os.pipe()
    with EmbeddedServer(room):
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    try:
        wait_until(lambda: not processes_of(room))
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)


@pytest.mark.parametrize("ephemeral", [False, True])
def test_a_forked_child_that_unwinds_leaves_the_server(place: Path, ephemeral: bool) -> None:
    """As after ``sys.exit()`` inside ``with``: the server is its parent's, and goes on. The child may have it, too."""
    server = EmbeddedServer(place, ephemeral=True) if ephemeral else EmbeddedServer(place / "room")
    with server as dsn:
        before = started_at(dsn)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                server.__exit__(None, None, None)
                with EmbeddedServer(place / "room"):
                    pass
                status = 0
            finally:
                os._exit(status)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert before == started_at(dsn)


def test_entered_twice(place: Path) -> None:
    """One object holds the server once; it can hold it again after it left."""
    server = EmbeddedServer(place / "room")
    with server, pytest.raises(RuntimeError, match="entered already"), server:
        pass
    with server as dsn:
        assert "1" == query(dsn, "select 1")
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.dsn


def with_table(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table kept as select 42 as answer")


def test_whatever_the_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Path among the places of modules, which Python passes by, and more open files than ``select`` takes."""
    monkeypatch.syspath_prepend("/nowhere")
    places: list[object] = sys.path  # type: ignore[assignment]  # the point of the test
    places.insert(0, Path("/nowhere"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        null = stack.enter_context(Path(os.devnull).open("rb"))
        for _ in range(1100):
            stack.callback(os.close, os.dup(null.fileno()))
        dsn = stack.enter_context(EmbeddedServer(ephemeral=True))
        assert "1" == query(dsn, "select 1")

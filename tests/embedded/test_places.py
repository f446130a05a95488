"""Where a server may be kept, and that nothing else is touched."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pgq_anyio._embedded import EmbeddedServer, ServerStartError, _account, _room, _server
from pgq_anyio._embedded._account import Account, can_reach, find_account, hand_over, identity
from pgq_anyio._embedded._room import default_directory, temporary_directory
from pgq_anyio._errors import ConfigurationError
from tests.embedded.children import Holder, belongs_to, matching, modes, processes_of, query, wait_until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has another account run the server")


@pytest.mark.parametrize("name", ["with space", 'it\'s "so"', "comma, too", "back\\slash", "größe", "x" * 200])
def test_names(place: Path, name: str) -> None:
    """A path may have spaces, quotes, commas, other scripts and any length; its parents' modes stay as they are."""
    room = place / name / "room"
    room.parent.mkdir(mode=0o711)
    before = modes(room)
    with EmbeddedServer(room) as dsn:
        assert str(room / "data") == query(dsn, "show data_directory")
        sockets = query(dsn, "show unix_socket_directories")
    assert before == modes(room)
    assert not Path(sockets.strip('"')).exists()


def test_network(place: Path) -> None:
    """No process of the server has a network socket, whatever the environment says."""
    room = place / "room"
    with Holder(room, env={**os.environ, "PGPORT": "54399", "PGDATA": "/nonexistent"}) as holder:
        dsn = holder.dsn()
        assert "" == query(dsn, "show listen_addresses")
        assert "5432" == query(dsn, "show port")
        assert len(processes_of(room)) > 3
        assert [] == matching(lambda process: belongs_to(process, room) and process.net_connections("inet") != [])
        holder.leave()


def test_private(place: Path) -> None:
    """Data, socket and log are closed to everybody but us and the account of the server."""
    room = place / "room"
    server = EmbeddedServer(room)
    with server as dsn:
        socket_directory = Path(query(dsn, "show unix_socket_directories").strip('"'))
        assert 0o700 == stat.S_IMODE((room / "data").stat().st_mode)
        assert 0o700 == stat.S_IMODE(socket_directory.stat().st_mode)
        assert stat.S_IMODE(room.stat().st_mode) in ((0o710,) if os.geteuid() == 0 else (0o700,))
        assert os.geteuid() == room.stat().st_uid
        assert 0 == stat.S_IMODE((socket_directory / ".s.PGSQL.5432").stat().st_mode) & 0o077


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_umask(place: Path, umask: int) -> None:
    """A strict umask does not stop it, and a loose one opens nothing."""
    room = place / "room"
    with Holder(room, umask=umask) as holder:
        assert "1" == query(holder.dsn(), "select 1")
        assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in room.iterdir() if path.is_file()}
        assert 0 == room.stat().st_mode & 0o007
        holder.leave()


def test_stranger_has_the_pid(place: Path) -> None:
    """A pid file left by a crash does not stop a start, even if another process has its process id now."""
    room = place / "room"
    account = find_account()
    with EmbeddedServer(room):
        pid_file = (room / "data" / "postmaster.pid").read_text()
    stranger = subprocess.Popen(["sleep", "60"], **identity(account))
    try:
        stale = room / "data" / "postmaster.pid"
        stale.write_text("\n".join([str(stranger.pid), *pid_file.splitlines()[1:]]) + "\n")
        if account is not None:
            os.chown(stale, account.uid, account.gid)
        with EmbeddedServer(room) as dsn:
            assert "1" == query(dsn, "select 1")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_started_by_hand(place: Path) -> None:
    """A server that somebody started on the same data is not disturbed: the error shows what PostgreSQL says."""
    from pgq_anyio._embedded import PostgresBinaries

    room = place / "room"
    with EmbeddedServer(room):
        pass
    sockets = place / "sockets"
    sockets.mkdir()
    hand_over(sockets, find_account())
    binaries = PostgresBinaries(_server.find_binaries())
    server = binaries.start(room / "data", socket_directory=sockets)
    try:
        with pytest.raises(ServerStartError, match=r"postmaster\.pid"), EmbeddedServer(room):
            pass
        assert "1" == query(f"host='{sockets}' user=postgres dbname=postgres", "select 1")
    finally:
        binaries.stop(server)


def test_other_major(place: Path) -> None:
    """Data of another PostgreSQL is refused: the message names the directory and what to do."""
    room = place / "room"
    with EmbeddedServer(room):
        pass
    (room / "data" / "PG_VERSION").write_text("15\n")
    with pytest.raises(ConfigurationError, match=r"PostgreSQL 15.*pg_dump") as caught, EmbeddedServer(room):
        pass
    assert str(room / "data") in str(caught.value)


def test_initdb_interrupted(place: Path) -> None:
    """What an interrupted initdb left is made anew."""
    room = place / "room"
    with EmbeddedServer(room):
        pass
    shutil.rmtree(room / "data")
    (room / "data.new").mkdir()
    (room / "data.new" / "half").touch()
    with EmbeddedServer(room) as dsn:
        assert "1" == query(dsn, "select 1")


def test_does_not_start(place: Path) -> None:
    """The error of a server that does not start has the end of its log, and an ephemeral one is removed."""
    with (
        pytest.raises(ServerStartError, match='invalid value for parameter "shared_buffers"'),
        EmbeddedServer(place, ephemeral=True, options={"shared_buffers": "much"}),
    ):
        pass
    assert [] == list(place.iterdir())


def test_options(place: Path) -> None:
    """Options reach the server, with spaces too; those that would open it to others are refused by name."""
    with EmbeddedServer(place / "room", options={"search_path": '"a b", public', "max_connections": "7"}) as dsn:
        assert '"a b", public' == query(dsn, "show search_path")
        assert "7" == query(dsn, "show max_connections")
    with pytest.raises(ConfigurationError, match="listen_addresses"):
        EmbeddedServer(place / "room", options={"listen_addresses": "*"})


def test_durability(place: Path) -> None:
    """Only an ephemeral server does without fsync."""
    with EmbeddedServer(place / "room") as dsn:
        assert "on" == query(dsn, "show fsync")
    with EmbeddedServer(ephemeral=True) as dsn:
        assert "off" == query(dsn, "show fsync")


def test_encoding(place: Path) -> None:
    """The cluster is UTF-8, knows the letters of other scripts, and sorts by code point."""
    with EmbeddedServer(place, ephemeral=True) as dsn:
        assert "UTF8" == query(dsn, "show server_encoding")
        assert "ÄÉ" == query(dsn, "select upper('äé')")
        assert "True" == query(dsn, "select 'Z' < 'a'")


def test_not_ours(place: Path) -> None:
    """A directory with something else in it is refused and left alone; an empty one becomes ours."""
    other = place / "other"
    other.mkdir(mode=0o755)
    (other / "letter.txt").write_text("dear")
    before = modes(other / "letter.txt")
    with pytest.raises(ConfigurationError, match="not empty"), EmbeddedServer(other):
        pass
    assert ["letter.txt"] == [path.name for path in other.iterdir()]
    assert before == modes(other / "letter.txt")
    (other / "letter.txt").unlink()
    with EmbeddedServer(other):
        assert 0 == other.stat().st_mode & 0o007


def test_open_to_others(place: Path) -> None:
    """A server's directory that others can write to is refused, and so is a path that leads through a file."""
    room = place / "room"
    with EmbeddedServer(room):
        pass
    room.chmod(0o777)
    with pytest.raises(ConfigurationError, match="written by others"), EmbeddedServer(room):
        pass
    (place / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be used"), EmbeddedServer(place / "file" / "room"):
        pass


@as_root
def test_closed_parent(place: Path) -> None:
    """As root, a directory that the server's account cannot reach is refused by name, and nothing is opened to it."""
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    before = modes(closed / "room")
    with pytest.raises(ConfigurationError, match="cannot get into") as caught, EmbeddedServer(closed / "room"):
        pass
    assert str(closed / "room") in str(caught.value)
    with pytest.raises(ConfigurationError, match="cannot get into"), EmbeddedServer(closed, ephemeral=True):
        pass
    assert before == modes(closed / "room")
    assert ["room"] == [path.name for path in closed.iterdir()]


@as_root
def test_account_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, who owns the data goes on with it, though an account that is preferred has been added since."""
    room = place / "room"
    monkeypatch.setattr(_account, "CANDIDATES", ("nobody",))
    with EmbeddedServer(room):
        pass
    monkeypatch.undo()
    assert find_account() != _account.account_for(room)
    with EmbeddedServer(room) as dsn:
        assert "1" == query(dsn, "select 1")


@as_root
def test_closed_programs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, programs that the account cannot reach are copied into the room, once a version; nothing is opened."""
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    installed = _server.find_binaries()
    package = installed.parent.parent
    for name in (package.name, package.name + ".libs"):
        if (package.parent / name).exists():
            shutil.copytree(package.parent / name, closed / name, symlinks=True)
    monkeypatch.setattr(_server, "find_binaries", lambda: closed / package.name / "pginstall" / "bin")
    before = modes(closed / package.name)
    room = place / "room"
    with EmbeddedServer(room) as dsn:
        assert "1" == query(dsn, "select 1")
        copied = (room / "binaries").stat()
    with EmbeddedServer(room) as dsn:
        assert "1" == query(dsn, "select 1")
        assert copied.st_ino == (room / "binaries").stat().st_ino
    os.utime(closed / package.name / "pginstall" / "bin" / "postgres", (1, 1))
    with EmbeddedServer(room) as dsn:
        assert "1" == query(dsn, "select 1")
        assert copied.st_ino != (room / "binaries").stat().st_ino
    assert before == modes(closed / package.name)


def test_default_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each project has a directory of its own, which does not depend on how its path was written."""
    monkeypatch.setenv("XDG_STATE_HOME", str(place))
    monkeypatch.setattr(_room, "ROOT_STATE", place)
    (place / "a").mkdir()
    (place / "b").mkdir()
    (place / "link").symlink_to(place / "a")
    account = find_account()
    assert default_directory(account, place / "a") == default_directory(account, place / "link")
    assert default_directory(account, place / "a") != default_directory(account, place / "b")
    monkeypatch.chdir(place / "b")
    assert default_directory(account) == default_directory(account, place / "b")
    assert place / "pgq_anyio" == default_directory(account).parent


def test_no_state_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no state can be kept, the temporary directory is used, unless somebody else was there first."""
    (place / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "file"))
    monkeypatch.setattr(_room, "ROOT_STATE", place / "file")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    account = find_account()
    base = default_directory(account).parent
    assert place / f"pgq_anyio-{os.geteuid()}" == base
    assert stat.S_IMODE(base.stat().st_mode) in ((0o711,) if account else (0o700,))
    base.chmod(0o777)
    with pytest.raises(ConfigurationError, match="written by others"):
        default_directory(account)
    base.rmdir()
    (place / "theirs").mkdir(mode=0o711)
    base.symlink_to(place / "theirs")
    with pytest.raises(ConfigurationError, match="not a directory"):
        default_directory(account)


def test_link(place: Path) -> None:
    """A directory named by a link is one server with the directory itself."""
    (place / "disk").mkdir()
    (place / "link").symlink_to(place / "disk")
    with EmbeddedServer(place / "disk") as one, EmbeddedServer(place / "link") as other:
        assert one == other


def test_long_temporary_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary directory too long for a socket is not used for one."""
    long = place / ("t" * 120)
    long.mkdir(mode=0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert long != temporary_directory(find_account())
    with EmbeddedServer(place / ("r" * 120)) as dsn:
        assert "1" == query(dsn, "select 1")
    assert [] == list(long.iterdir())


@pytest.mark.parametrize("length", range(85, 95))
def test_longest_socket(place: Path, length: int) -> None:
    """Around the longest possible path of a socket there is no gap between the two ways of placing it."""
    room = place / ("s" * (length - len(os.fsencode(place / "x" / "socket")) + 1))
    room.mkdir()
    directory = _room.make_socket_directory(room, find_account())
    try:
        assert len(os.fsencode(directory / ".s.PGSQL.5432")) <= 103
        assert directory == _room.socket_directory(room)
        assert (length <= _room.LONGEST_SOCKET_DIRECTORY) == (room in directory.parents)
    finally:
        _room.remove_socket_directory(room)
    assert not directory.exists()


@as_root
def test_another_user(place: Path) -> None:
    """An ordinary user has a server too: as a directory of its own, and an ephemeral one."""
    python = "/usr/bin/python3"
    if not usable(python):
        pytest.skip("no Python that an ordinary user can run")
    home = place / "home"
    home.mkdir(mode=0o700)
    os.chown(home, 65534, 65534)
    arguments: dict[str, Any] = {
        "python": python,
        "user": 65534,
        "group": 65534,
        "extra_groups": [],
        "env": {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": python_path()},
    }
    with Holder(home / "room", **arguments) as holder:
        assert "1" == query(holder.dsn(), "select 1")
        assert processes_of(home / "room")
        assert [] == matching(lambda process: belongs_to(process, home / "room") and process.uids().real != 65534)
        holder.leave()
    wait_until(lambda: not processes_of(home / "room"))
    with Holder(None, **arguments) as holder:
        assert str(home / ".local" / "state" / "pgq_anyio") in holder.dsn()
        holder.leave()
    with Holder(None, ephemeral=True, **arguments) as holder:
        assert "1" == query(holder.dsn(), "select 1")
        holder.leave()


def python_path() -> str:
    import attrs

    repository = Path(__file__).parent.parent.parent
    return f"{repository}:{Path(attrs.__file__).parent.parent}"


def usable(python: str) -> bool:
    """Whether a user can run this Python with what the embedded server imports."""
    done = subprocess.run(
        [python, "-c", "import sys; assert sys.version_info >= (3, 11); import pgq_anyio._embedded"],
        check=False,
        cwd="/",
        env={"PYTHONPATH": python_path()},
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
    )
    return done.returncode == 0


def test_root_that_may_not_become_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container without CAP_SETUID: the message says what to do, before anything is made."""

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("pgq_anyio._embedded._account.subprocess.run", refuse)
    with pytest.raises(ConfigurationError, match=r"the account 'postgres' \(Operation not permitted\).*ordinary user"):
        can_reach(Account("postgres", 26, 26), Path("/"))

"""The room of an embedded server: the private directory with its data, socket, locks and log.

::

    room/                0700, ours; as root 0710 with the group of the account that runs the server
    ├─ gate              lock: held while somebody looks whether a server runs, or starts one
    ├─ holders           lock: shared by every process that uses the server; alone by the guardian that stops it
    ├─ guardian          lock: held by the guardian
    ├─ server            lock: held by the guardian and every process of the server
    ├─ log  log.old      what the server said
    ├─ data              the cluster
    ├─ socket            directory of the unix socket, or a link to one in the temporary directory
    └─ binaries          as root: a copy of the programs, if the account cannot reach the installed ones

Where it is by default: ``$XDG_STATE_HOME/pgq_anyio`` (``~/.local/state/pgq_anyio``), as root ``/var/lib/pgq_anyio``
(another account must get through, and ``/root`` is closed), and below the temporary directory if that cannot be
written. One room per project, which is the current directory: its name and a hash of its path.

The path of a unix socket has at most 107 bytes (103 on macOS), and libpq takes a comma for the end of a host. Where
the room's own path does not allow for that, ``socket`` is a link to a fresh private directory.

A directory is used only if it is ours or empty, and no mode of a directory that was there before is changed, but for
an empty one that we were told to use.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from .._errors import ConfigurationError
from ._account import Account, can_reach, hand_over

#: Room left for ``/.s.PGSQL.5432`` in the shortest limit (macOS: 104 bytes with the final zero).
LONGEST_SOCKET_DIRECTORY = 103 - len("/.s.PGSQL.5432")

#: Where the system keeps state, for root.
ROOT_STATE = Path("/var/lib")

#: What tells a directory of ours from another one.
MARK = "gate"


def default_directory(account: Account | None, project: Path | None = None) -> Path:
    """Where the room of a project is, unless the user names a directory. It is not created, but its parent is.

    :param account: the account that runs the server, ``None`` if we do
    :param project: the project's directory. Defaults to the current one.
    """
    project = (project or Path.cwd()).resolve()
    digest = hashlib.sha256(os.fsencode(project)).hexdigest()[:12]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", project.name)[:24].strip("-") or "project"
    return _base(account) / f"{name}-{digest}"


def _base(account: Account | None) -> Path:
    if account is not None:
        state = ROOT_STATE
    else:
        home = Path(os.environ.get("HOME") or "/nonexistent")
        named = Path(os.environ.get("XDG_STATE_HOME") or ".")
        state = named if named.is_absolute() else home / ".local" / "state"
    mode = 0o700 if account is None else 0o711
    for base in (state / "pgq_anyio", temporary_directory(account) / f"pgq_anyio-{os.geteuid()}"):
        try:
            base.mkdir(mode=mode, parents=True)
            base.chmod(mode)
        except FileExistsError:
            pass
        except OSError:
            continue
        check_private(base)
        if os.access(base, os.W_OK | os.X_OK) and can_reach(account, base):
            return base
    raise ConfigurationError(
        f"no place for the embedded database: neither {str(state)!r} nor the temporary directory can be written; "
        "name a directory, or a database with --dsn or PGQ_ANYIO_DSN"
    )


def temporary_directory(account: Account | None) -> Path:
    """The temporary directory, or the system's if that one is too long for a socket or closed to the account."""
    for name in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - what is made inside is private
        path = Path(name).resolve()
        fits = len(os.fsencode(path / "pgq-12345678")) <= LONGEST_SOCKET_DIRECTORY and "," not in str(path)
        if fits and os.access(path, os.W_OK | os.X_OK) and can_reach(account, path):
            return path
    raise ConfigurationError("no temporary directory with a short path can be written: set TMPDIR")


def check_private(path: Path) -> None:
    """Check that nobody else can put something into a directory.

    :raises ConfigurationError: if it is no directory, belongs to somebody else, or others may write to it
    """
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigurationError(
            f"{str(path)!r} is not a directory, so that the embedded database cannot be kept there"
        )
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ConfigurationError(
            f"{str(path)!r} belongs to somebody else or can be written by others, "
            "so that the embedded database cannot be kept there; name another directory"
        )


def open_room(room: Path, account: Account | None) -> None:
    """Create the room, or check that it is one.

    :param room: its absolute path
    :raises ConfigurationError: if the directory holds something else, is not private, or is closed to the account
    """
    try:
        room.mkdir(mode=0o700, parents=True, exist_ok=True)
        empty = not any(room.iterdir())
        if not (room / MARK).exists() and room.stat().st_uid == os.geteuid():
            if not empty:  # looked at first: the mark is the first thing that others who come now put there
                raise ConfigurationError(
                    f"{str(room)!r} is not empty and holds no embedded database of pgq_anyio; name an empty directory"
                )
            close_to_others(room, account)
        check_private(room)
    except OSError as error:
        raise ConfigurationError(
            f"the directory {str(room)!r} of the embedded database cannot be used: {error.strerror}"
        ) from error
    if not can_reach(account, room):
        raise ConfigurationError(
            f"PostgreSQL does not run as root, and the account {account and account.name!r} cannot get into "
            f"{str(room)!r}: a directory on the way is closed to others; name a directory elsewhere, such as "
            "one below /var/lib"
        )


def make_temporary_room(parent: Path | None, account: Account | None) -> Path:
    """Create a fresh directory for a room.

    :param parent: where; ``None`` means the temporary directory
    """
    if parent is None:
        parent = temporary_directory(account)
    else:
        parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="pgq-", dir=parent))


def close_to_others(path: Path, account: Account | None) -> None:
    """Make a directory private; as root let the account through, but not look around or write."""
    if account is None:
        path.chmod(0o700)
    else:
        os.chown(path, 0, account.gid)
        path.chmod(0o710)


def make_socket_directory(room: Path, account: Account | None) -> Path:
    """Create the directory for the socket, in the room if its path allows for that.

    One that is there is emptied and used again: whoever holds the server after a crash knows it under that name, and
    its lock file would stop PostgreSQL if another process had the crashed one's id now.
    """
    link = room / "socket"
    there = socket_directory(room)
    if _is_own(there, account):
        for path in there.iterdir():
            path.unlink()
        return there
    remove_socket_directory(room)
    if len(os.fsencode(link)) <= LONGEST_SOCKET_DIRECTORY and "," not in str(link):
        made = link
        made.mkdir(mode=0o700)
    else:
        made = Path(tempfile.mkdtemp(prefix="pgq-", dir=temporary_directory(account)))
        link.symlink_to(made)
    hand_over(made, account)
    return made


def _is_own(path: Path, account: Account | None) -> bool:
    """Whether a directory is still the one that we made: one in the temporary directory may have been replaced."""
    try:
        found = path.lstat()
    except OSError:
        return False
    owner = os.geteuid() if account is None else account.uid
    return stat.S_ISDIR(found.st_mode) and (owner, 0o700) == (found.st_uid, stat.S_IMODE(found.st_mode))


def socket_directory(room: Path) -> Path:
    """Where the socket is: the path that clients use."""
    link = room / "socket"
    return link.readlink() if link.is_symlink() else link


def remove_socket_directory(room: Path) -> None:
    """Remove the directory of the socket, wherever it is."""
    link = room / "socket"
    shutil.rmtree(socket_directory(room), ignore_errors=True)
    if link.is_symlink():
        link.unlink()


def remove_room(room: Path) -> None:
    """Remove an ephemeral room. The locks go last: who waits for the guardian's end waits for this, too."""
    remove_socket_directory(room)
    with contextlib.suppress(OSError):
        for path in room.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(room, ignore_errors=True)

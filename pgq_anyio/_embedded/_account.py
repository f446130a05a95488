"""Which account the server runs as: PostgreSQL refuses to run as root.

As a user: that user. As root: the existing account ``postgres``, else ``nobody``; nothing is added to the system.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import attrs

from .._errors import ConfigurationError

if sys.platform != "win32":
    import pwd

#: The accounts tried in this order when we are root.
CANDIDATES = ("postgres", "nobody")


class Identity(TypedDict, total=False):
    """Arguments for ``subprocess`` that make a child run as somebody else."""

    user: int
    group: int
    extra_groups: Sequence[int]


@attrs.frozen
class Account:
    """An unprivileged account to run the server as, because we are root."""

    name: str
    uid: int
    gid: int


def find_account() -> Account | None:
    """Choose the account to run the server as.

    :return: ``None`` for "as we are", that is, unless we are root
    :raises ConfigurationError: if we are root and the system has none of the accounts known to be unprivileged
    """
    if os.geteuid() != 0:
        return None
    for name in CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise ConfigurationError(
        "PostgreSQL does not run as root, and there is no account 'postgres' or 'nobody' to run it as: "
        "start this as an ordinary user, or name a database with --dsn or PGQ_ANYIO_DSN"
    )


def account_for(room: Path) -> Account | None:
    """Choose the account for a server whose directory may exist: who owns the data goes on with it.

    Otherwise an account ``postgres`` that was added to the system after the first start would be refused its data.

    :param room: the server's directory
    """
    account = find_account()
    try:
        owner = (room / "data").stat()
    except OSError:
        return account
    if account is None or owner.st_uid in (0, account.uid):
        return account
    return Account(name=str(owner.st_uid), uid=owner.st_uid, gid=owner.st_gid)


def identity(account: Account | None) -> Identity:
    """What ``subprocess`` needs to run a child as this account."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def can_reach(account: Account | None, path: Path) -> bool:
    """Whether the account gets through to a directory or a program. The kernel is asked, so that ACLs count too.

    :raises ConfigurationError: if the system does not let root run anything as this account (a container without
        CAP_SETUID)
    """
    if account is None:
        return os.access(path, os.X_OK)
    try:
        done = subprocess.run(["test", "-x", str(path)], check=False, cwd="/", **identity(account))
    except OSError as error:
        raise ConfigurationError(
            f"cannot run anything as the account {account.name!r} ({error.strerror}), and PostgreSQL does not run as "
            "root: start this as an ordinary user, or name a database with --dsn or PGQ_ANYIO_DSN"
        ) from error
    return done.returncode == 0


def hand_over(path: Path, account: Account | None) -> None:
    """Make a directory of ours the account's own.

    :raises ConfigurationError: if the system does not let root do that (a user namespace without that account)
    """
    if account is None:
        return
    try:
        os.chown(path, account.uid, account.gid)
    except OSError as error:
        raise ConfigurationError(
            f"cannot give {str(path)!r} to the account {account.name!r} ({error.strerror}), and PostgreSQL does not "
            "run as root: start this as an ordinary user, or name a database with --dsn or PGQ_ANYIO_DSN"
        ) from error

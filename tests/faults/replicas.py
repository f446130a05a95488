"""A primary and its streaming standby, which can take turns."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import psycopg
from psycopg.conninfo import make_conninfo

from pgq_anyio._embedded import PostgresBinaries
from pgq_anyio._embedded._account import hand_over
from tests.worker.fleet import wait_until
from tests.worker.own_server import OPTIONS, OwnServer

_PROMOTE = "select case when pg_is_in_recovery() then pg_promote(true, 10) else true end"


@attrs.define(eq=False)
class Replicas:
    """Two servers on unix sockets."""

    primary: OwnServer
    standby: OwnServer

    @property
    def dsn(self) -> str:
        """Leads to whichever of both can be written to."""
        hosts = ",".join(sorted(str(server.data) for server in (self.primary, self.standby)))
        return make_conninfo(host=hosts, user="postgres", dbname="postgres", target_session_attrs="read-write")

    def build_standby(self, *, synchronous: bool) -> None:
        """Make the standby anew, as a copy of the primary that follows it.

        :param synchronous: whether the primary waits with each commit until the standby has it
        """
        self.standby.stop("immediate")
        shutil.rmtree(self.standby.data, ignore_errors=True)
        self.standby.data.mkdir(mode=0o700)
        hand_over(self.standby.data, self.standby.binaries.account)
        self.standby.binaries._run(
            "pg_basebackup",
            f"--host={self.primary.data}",
            "--username=postgres",
            f"--pgdata={self.standby.data}",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--write-recovery-conf",
            "--no-sync",
        )
        for socket in self.standby.data.glob(".s.PGSQL*"):
            socket.unlink()  # the primary's, with its lock
        self.standby.start()
        if synchronous:
            # After the copy was made: once it is a primary it has nobody to wait for.
            self.ask(self.primary, "alter system set synchronous_standby_names = '*'")
            self.ask(self.primary, "select pg_reload_conf()")
            wait_until(lambda: self.ask(self.primary, "select 1 from pg_stat_replication where sync_state = 'sync'"))

    def catch_up(self) -> None:
        """Wait until the standby shows all that has been committed on the primary."""
        ((position,),) = self.ask(self.primary, "select pg_current_wal_flush_lsn()::text")
        query = f"select 1 where pg_last_wal_replay_lsn() >= '{position}'"
        wait_until(lambda: self.ask(self.standby, query), what="the standby has caught up")

    def part(self) -> None:
        """The standby hears no more of the primary."""
        self.ask(self.standby, "alter system set primary_conninfo = ''")
        self.ask(self.standby, "select pg_reload_conf()")
        wait_until(lambda: not self.ask(self.primary, "select 1 from pg_stat_replication"))

    def kill_primary(self) -> None:
        """End the primary without a word, and with it all its connections."""
        process = self.primary._process
        assert process is not None
        process.kill()
        process.wait(20)

    def promote(self) -> None:
        """Make the standby the primary; it has no standby then."""
        # The server was seen to overhear the first request, once in thirty promotions.
        wait_until(lambda: self.ask(self.standby, _PROMOTE) == [(True,)], timeout=60, what="the standby is promoted")
        self.primary, self.standby = self.standby, self.primary

    @staticmethod
    def ask(server: OwnServer, query: str) -> list[tuple[object, ...]]:
        """Execute a statement on one of the servers."""
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []


@contextmanager
def open_replicas(dsn: str) -> Iterator[Replicas]:
    """A primary of the same binaries as the server of ``dsn``; its standby is not built yet."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute("select setting from pg_config where name = 'BINDIR'").fetchone()
    assert row is not None
    binaries = PostgresBinaries(Path(row[0]))
    options = {**OPTIONS, "log_statement": "none", "wal_keep_size": "256MB"}
    root = Path(tempfile.mkdtemp(prefix="pgq-replicas-"))
    root.chmod(0o711)
    servers = []
    for name in ("a", "b"):
        (root / name).mkdir(mode=0o711)
        servers.append(OwnServer(binaries, root / name / "data", options))
        servers[-1].log.touch()
    try:
        binaries.initdb(servers[0].data, sync=False)
        servers[0].start()
        yield Replicas(*servers)
    finally:
        for server in servers:
            server.stop("immediate")
        shutil.rmtree(root, ignore_errors=True)

"""What the server, the network and the DSN can do to a connection; every wait is bounded."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import subprocess

import anyio
import anyio.lowlevel
import psycopg
import pytest
from anyio.abc import TaskGroup
from psycopg import errors

from pgq_anyio._db import Connection, Statement, batch, is_transient
from pgq_anyio._db import _connecting as connecting
from tests.bounds import Within
from tests.db.conftest import OwnServer, Proxy
from tests.db.steps import at_suspension
from tests.servers import free_port

pytestmark = pytest.mark.anyio

COUNT = Statement("count", "select count(*) from generate_series(1, 10)")
ECHO = Statement("echo", "select %(value)s::text")
SLEEP = Statement("sleep", "select pg_sleep(30)")


async def test_tcp(own_server: OwnServer) -> None:
    """A connection over TCP carries more than any socket buffer holds, both ways at once."""
    async with await Connection.connect(own_server.dsn) as conn:
        big = "x" * 20_000_000
        assert [(big,)] == await (await conn.execute("select %s::text", [big])).fetchall()
        await conn.execute("create temp table t (a text)")
        async with conn.cursor() as cursor:
            await cursor.executemany("insert into t values (%s) returning a", [("y" * 3_000_000,)] * 8, returning=True)
        assert [(8,)] == await (await conn.execute("select count(*) from t")).fetchall()
    assert conn.closed
    assert not conn.broken


@pytest.mark.parametrize("k", range(1, 4))
@pytest.mark.parametrize("way", ["execute", "statement", "batch", "transaction", "pipeline", "copy"])
async def test_terminated_at_every_await(own_server: OwnServer, way: str, k: int) -> None:
    """pg_terminate_backend while an operation is under way: a transient error, and the connection is closed."""
    conn = await Connection.connect(own_server.dsn)
    pid = conn.info.backend_pid

    async def work() -> None:
        match way:
            case "execute":
                await conn.execute("select pg_sleep(0.2)")
            case "statement":
                await COUNT.fetch(conn)
            case "batch":
                await batch(conn, (COUNT, {}), (COUNT, {}))
            case "transaction":
                async with conn.transaction():
                    await conn.execute("select 1")
            case "pipeline":
                async with conn.pipeline():
                    await conn.execute("select pg_sleep(0.2)")
            case _:
                async with conn.cursor() as cursor, cursor.copy("copy (select pg_sleep(0.2)) to stdout") as copy:
                    while await copy.read():
                        pass
        # However few suspensions the way had: the next statement meets the closed connection.
        own_server.ask("select pg_terminate_backend(%s, 5000)", pid)
        await conn.execute("select 1")

    with anyio.fail_after(10), pytest.raises(psycopg.OperationalError) as caught:
        await at_suspension(work(), k, lambda: own_server.ask("select pg_terminate_backend(%s, 5000)", pid))
    assert is_transient(caught.value)
    assert conn.closed
    with pytest.raises(psycopg.OperationalError):
        await conn.execute("select 1")
    conn.abort()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_server_stopped_mid_statement(own_server: OwnServer, mode: str) -> None:
    """A server that stops or is killed ends the statement at once with an error that passes; then it works again."""
    conn = await Connection.connect(own_server.dsn)
    await COUNT.fetch(conn)
    async with anyio.create_task_group() as tasks:

        async def stop() -> None:
            await anyio.wait_all_tasks_blocked()
            own_server.stop(mode)

        tasks.start_soon(stop)
        with anyio.fail_after(10), pytest.raises(psycopg.OperationalError) as caught:
            await SLEEP.fetch(conn)
    assert is_transient(caught.value)
    assert conn.closed
    own_server.end()
    with pytest.raises(psycopg.OperationalError, match=r"refused|starting|shutting") as refused:
        await Connection.connect(own_server.dsn)
    assert is_transient(refused.value)
    own_server.start()
    async with await Connection.connect(own_server.dsn) as again:
        assert [(10,)] == await COUNT.fetch(again)


async def test_the_last_statement_outlives_its_connection(own_server: OwnServer) -> None:
    """The server carries it out when its client has gone. A connection that cannot take it says so."""
    own_server.ask("create table last_words (word int)")
    conn = await Connection.connect(own_server.dsn, autocommit=True)
    text = "select pg_sleep(%(after)s); insert into last_words values (1), (%(two)s)"
    conn.send_last(text, {"after": 0.2, "two": 2})
    with pytest.raises(psycopg.OperationalError, match="already in progress"):
        conn.send_last("select 1", {})
    conn.abort()
    with pytest.raises(psycopg.OperationalError):
        conn.send_last("select 1", {})
    with anyio.fail_after(10):
        while not (words := own_server.ask("select word from last_words order by 1")):  # noqa: ASYNC110  (the database tells no event)
            await anyio.sleep(0.02)
    assert [(1,), (2,)] == words
    own_server.ask("drop table last_words")


async def test_silent_network(proxy: Proxy, within: Within) -> None:
    """A peer that goes silent: the cancelled scope is left within the cleanup's limit, the connection closed."""
    conn = await Connection.connect(proxy.dsn)
    conn.cleanup_timeout = 0.3
    proxy.stalled = True
    started = anyio.current_time()
    with anyio.move_on_after(0.1) as scope:
        await conn.execute("select 1")
    assert scope.cancelled_caught
    assert conn.closed
    assert 0.35 < anyio.current_time() - started < within(2)


async def test_silent_network_in_a_transaction(proxy: Proxy) -> None:
    """Rolling back over a silent network is bounded too, and the block's own error is not lost."""
    conn = await Connection.connect(proxy.dsn)
    conn.cleanup_timeout = 0.3
    with anyio.fail_after(5), pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with conn.transaction():
            proxy.stalled = True
            raise ZeroDivisionError
    assert conn.closed


async def test_closed_by_another_task(conn: Connection) -> None:
    """``abort`` wakes the task that waits, and may be called twice."""
    async with anyio.create_task_group() as tasks:

        async def close() -> None:
            await anyio.wait_all_tasks_blocked()
            conn.abort()
            conn.abort()

        tasks.start_soon(close)
        with anyio.fail_after(5), pytest.raises(psycopg.OperationalError):
            await conn.execute("select pg_sleep(30)")
    assert conn.closed
    assert not conn.broken


@pytest.mark.parametrize("way", ["execute", "statement", "copy"])
async def test_closed_while_writing(own_server: OwnServer, way: str) -> None:
    """A task that waits for a server which reads nothing is woken in the same way, with an error that passes."""
    conn = await Connection.connect(own_server.dsn)
    pid, big = conn.info.backend_pid, "x" * 20_000_000
    await conn.execute("create temp table big (a text)")
    assert [("",)] == await ECHO.fetch(conn, value="")

    async def close() -> None:
        await anyio.wait_all_tasks_blocked()
        conn.abort()

    async def write(tasks: TaskGroup) -> None:
        def stop_reading() -> None:
            os.kill(pid, signal.SIGSTOP)
            tasks.start_soon(close)

        if way == "copy":
            async with conn.cursor() as cursor, cursor.copy("copy pg_temp.big from stdin") as copy:
                stop_reading()
                while True:
                    await copy.write(big)
        stop_reading()
        if way == "execute":
            await conn.execute("select %s::text", [big])
        await ECHO.fetch(conn, value=big)

    try:
        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(10), pytest.raises(psycopg.OperationalError, match="closed while") as caught:
                await write(tasks)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert is_transient(caught.value)
    assert conn.closed
    assert not conn.broken


async def test_wrong_password(own_server: OwnServer) -> None:
    """A wrong password and an unknown database are errors that do not pass."""
    hba = own_server.data / "pg_hba.conf"
    before = hba.read_text()
    own_server.ask("create role guest login password 'right'")
    hba.write_text("host all guest all scram-sha-256\n" + before)
    own_server.ask("select pg_reload_conf()")
    try:
        guest = own_server.dsn.replace("user=postgres", "user=guest")
        with anyio.fail_after(10):
            while True:
                with pytest.raises(psycopg.OperationalError) as caught:  # noqa: PT012
                    await Connection.connect(guest, password="wrong-secret", application_name="guest")
                    raise psycopg.OperationalError("not reloaded yet")
                if "not reloaded" not in str(caught.value):
                    break
        assert not is_transient(caught.value)
        assert "wrong-secret" not in str(caught.value)
        async with await Connection.connect(guest, password="right") as conn:
            assert "right" not in repr(conn)
    finally:
        hba.write_text(before)
        own_server.ask("select pg_reload_conf()")
        own_server.ask("drop role guest")
    with pytest.raises(psycopg.OperationalError, match="does not exist") as unknown:
        await Connection.connect(own_server.dsn, dbname="nowhere")
    assert not is_transient(unknown.value)


async def test_no_such_host() -> None:
    """A host name that cannot be resolved, and a port that nobody listens on, are told by name."""
    with pytest.raises(psycopg.OperationalError, match=r"no-such-host\.invalid"):
        await Connection.connect("host=no-such-host.invalid user=postgres connect_timeout=5")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        await Connection.connect(f"host=127.0.0.1 port={free_port()} user=postgres")
    with pytest.raises(psycopg.OperationalError, match="No such file"):
        await Connection.connect("host=/nowhere user=postgres")


async def test_connect_timeout(within: Within) -> None:
    """A host that accepts and never answers is given up after ``connect_timeout``, or when cancelled."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        dsn = f"host=127.0.0.1 port={listener.getsockname()[1]} user=postgres"
        started = anyio.current_time()
        with pytest.raises(errors.ConnectionTimeout):
            await Connection.connect(dsn, connect_timeout=2)
        assert 1.9 < anyio.current_time() - started < within(4)
        with anyio.move_on_after(0.05) as scope:
            await Connection.connect(dsn)
        assert scope.cancelled_caught


async def test_several_hosts(own_server: OwnServer) -> None:
    """The first host that answers is taken; if none does, every reason is told."""
    down = free_port()
    hosts = "host=127.0.0.1,localhost user=postgres dbname=postgres"
    async with await Connection.connect(f"{hosts} port={down},{own_server.port}") as conn:
        assert own_server.port == conn.info.port
    with pytest.raises(psycopg.OperationalError, match="none of the hosts"):
        await Connection.connect(f"{hosts} port={down},{own_server.port} target_session_attrs=standby")
    async with await Connection.connect(
        f"{hosts} port={down},{own_server.port} target_session_attrs=prefer-standby"
    ) as conn:
        assert not conn.closed


async def test_hosts_are_judged_one_by_one(own_server: OwnServer) -> None:
    """What one host will always refuse says nothing about another one, which may come back. But an address of the same
    host at which nobody listens is not such another one.
    """
    down, up = free_port(), own_server.port
    for hosts, ports, expected in (
        ("one,two", f"{down},{up}", True),
        ("one,two", f"{up},{down}", True),
        ("one,two", f"{up},{up}", False),
        ("one,one", f"{down},{up}", False),
        ("one,one", f"{up},{down}", False),
    ):
        dsn = f"host={hosts} hostaddr=127.0.0.1,127.0.0.1 port={ports} user=postgres dbname=nowhere"
        with pytest.raises(
            psycopg.OperationalError, match=r"(?s)none of the hosts.*does not exist|does not exist"
        ) as caught:
            await Connection.connect(dsn)
        assert expected == is_transient(caught.value)
        assert expected == is_transient(pickle.loads(pickle.dumps(caught.value)))


@pytest.mark.parametrize("where", ["DSN", "environment"])
async def test_prefer_standby_takes_two_rounds(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Every host is tried as a standby, and once more as whatever it is."""
    wanted = {"target_session_attrs": "prefer-standby"} if where == "DSN" else {}
    if where == "environment":
        monkeypatch.setenv("PGTARGETSESSIONATTRS", "prefer-standby")
    attempts = await connecting._attempts({**wanted, "host": "127.0.0.1,127.0.0.1", "port": "1,2"}, 5)
    expected = [("1", "standby"), ("2", "standby"), ("1", None), ("2", None)]
    assert expected == [(attempt["port"], attempt.get("target_session_attrs")) for attempt in attempts]


async def test_a_silent_host_comes_after_the_others(own_server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gives up before the host's own time is over comes to the next one with the next attempt. Not for ever."""
    monkeypatch.setattr(connecting, "SILENCE", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        ports = f"{silent.getsockname()[1]},{own_server.port}"
        dsn = f"host=127.0.0.1,localhost port={ports} user=postgres dbname=postgres connect_timeout=60"

        async def is_silent() -> bool:
            with anyio.move_on_after(0.5) as scope:
                await Connection.connect(dsn)
            return scope.cancelled_caught

        assert await is_silent()
        for _ in range(2):
            with anyio.fail_after(20):
                async with await Connection.connect(dsn) as conn:
                    assert own_server.port == conn.info.port
        monkeypatch.setattr(connecting, "SILENT_FOR", 0.0)
        assert await is_silent()


async def test_fork(dsn: str) -> None:
    """A forked child cannot use the connection, and closing it there does not touch the parent's session."""
    conn = await Connection.connect(dsn)
    await conn.execute("create temporary sequence numbers")
    number = Statement("number", "select nextval('numbers')")
    assert [(1,)] == await number.fetch(conn)  # it is prepared now
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # no event loop may run here: only the first step is taken
        try:
            for step in (conn.execute("select 1"), number.fetch(conn)):
                try:
                    step.send(None)
                except RuntimeError as error:
                    os.write(writer, f"{error}\n".encode())
            conn.abort()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        refusals = said.read().splitlines()
        assert (2, True) == (len(refusals), "forked" in refusals[0])
    os.waitpid(child, 0)  # noqa: ASYNC222  (it has ended)
    assert [(2,)] == await number.fetch(conn)
    conn.abort()


async def test_tls(own_server: OwnServer) -> None:
    """An encrypted connection works, and a cancelled statement leaves it usable."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl program to make a certificate")
    key, certificate = own_server.data / "server.key", own_server.data / "server.crt"
    options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made = [openssl, "req", *options, "-keyout", str(key), "-out", str(certificate)]
    await anyio.run_process(made, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    owner = own_server.data.stat()
    for path in (key, certificate):
        path.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(path, owner.st_uid, owner.st_gid)
    try:
        own_server.ask("alter system set ssl = on")
    except psycopg.errors.InvalidParameterValue:
        pytest.skip("the server was built without TLS: use --postgres-bin")
    own_server.ask("select pg_reload_conf()")
    try:
        with anyio.fail_after(10):
            while [("on",)] != own_server.ask("show ssl"):
                await anyio.lowlevel.checkpoint()
        async with await Connection.connect(own_server.dsn, sslmode="require") as conn:
            with anyio.move_on_after(0.05) as scope:
                await conn.execute("select pg_sleep(30)")
            assert scope.cancelled_caught
            encrypted = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
            assert [(True,)] == await (await conn.execute(encrypted)).fetchall()
    finally:
        own_server.ask("alter system reset ssl")
        own_server.ask("select pg_reload_conf()")


async def test_refused_generators(conn: Connection) -> None:
    """What cannot be made correct is refused, with what to use instead."""
    with pytest.raises(psycopg.NotSupportedError, match="wait_notifies"):
        conn.notifies()
    with pytest.raises(psycopg.NotSupportedError, match="server-side"):
        conn.cursor().stream("select 1")

"""Schedules from the command line."""

from __future__ import annotations

import json

import pytest

from tests.cli.processes import Commands
from tests.cli.test_commands import Invoke, invoke
from tests.worker.fleet import Fleet, wait_until

__all__ = ["invoke"]

YEARLY, DAILY = "0 0 1 1 *", "30 4 * * *"


@pytest.fixture
def schedules(fleet: Fleet) -> Fleet:
    """What code that is gone has left: a name with two expressions."""
    for expression in (YEARLY, DAILY):
        fleet.rows(
            "insert into {schema}.schedule (name, expression, timezone) values ('report', %s, 'UTC')", expression
        )
    return fleet


def test_list(invoke: Invoke, fleet: Fleet) -> None:
    """As a table, and as JSON with every field."""
    nothing = invoke("schedules", "list")
    assert (0, "", "no schedules\n") == (nothing.exit_code, nothing.stdout, nothing.stderr)
    fleet.rows(
        "insert into {schema}.schedule (name, expression, timezone, paused, last_status, last_finished_at, "
        "last_error_type, last_error_message) values ('report', %s, 'UTC', true, 'failed', now(), 'ValueError', %s)",
        YEARLY,
        "no\npaper",
    )
    shown = invoke("schedules", "list").stdout
    for text in ("report", YEARLY, "UTC", "paused; no worker has its code", "failed", "ValueError: no paper"):
        assert text in shown
    (line,) = invoke("schedules", "list", "--json").stdout.splitlines()
    fields = json.loads(line)
    assert ("report", YEARLY, True, True, None) == (
        fields["name"],
        fields["expression"],
        fields["paused"],
        fields["is_orphaned"],
        fields["next_due_at"],
    )


def test_texts_are_shown_as_they_are(invoke: Invoke, fleet: Fleet) -> None:
    """Brackets and colons mean nothing, and what a terminal would obey is written out."""
    fleet.rows(
        "insert into {schema}.schedule (name, expression, timezone, last_status, last_finished_at, "
        "last_error_type, last_error_message) values (%s, %s, 'UTC', 'failed', now(), 'ValueError', %s)",
        "sync[eu]:key:\x1b[31m",
        YEARLY,
        "cannot read [/etc/app.conf]\x07",
    )
    shown = invoke("schedules", "list")
    assert 0 == shown.exit_code
    for text in ("sync[eu]:key:\\x1b[31m", "ValueError: cannot read [/etc/app.conf]\\x07"):
        assert text in shown.stdout
    assert f"paused: sync[eu]:key:\\x1b[31m {YEARLY}\n" == invoke("schedules", "pause", "sync[eu]:key:\x1b[31m").stdout


def test_every_command_says_what_it_did(invoke: Invoke, schedules: Fleet) -> None:
    """One expression or all of a name; what was left alone, and why, is told on standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        done = invoke("schedules", *arguments)
        return done.exit_code, done.stdout, done.stderr

    daily, yearly = f"report {DAILY}", f"report {YEARLY}"
    assert (0, f"paused: {daily}\n", "") == call("pause", "report", DAILY)
    assert (0, f"paused: {yearly}\n", f"{daily} is paused already\n") == call("pause", "report")
    assert (0, f"will run: {yearly}\n", "") == call("run", "report", YEARLY)
    assert (0, f"resumed: {yearly}\n", "") == call("resume", "report", "0  0 1 1 *")
    assert (0, f"will run: {yearly}\nwill run: {daily}\n", "") == call("run", "report")
    assert (0, "", f"{yearly} is not paused\n") == call("resume", "report", YEARLY)
    schedules.rows("update {schema}.schedule set worker_id = 1, claim_no = 1 where expression = %s", YEARLY)
    kept = f"{yearly} is running: stop its worker first, or use --force\n"
    assert (0, f"removed: {daily}\n", kept) == call("remove", "report")
    assert (0, f"removed: {yearly}\n", "") == call("remove", "report", "--force")
    for command in ("pause", "resume", "run", "remove"):
        unknown = "there is no schedule 'report': pgq-anyio schedules list shows all\n"
        assert (1, "", unknown) == call(command, "report")


def test_a_worker_in_another_process(commands: Commands, fleet: Fleet) -> None:
    """Run now, and listed while it runs with the place where it does."""
    (commands.directory / "shop.py").write_text(
        "import time, pathlib\nfrom pgq_anyio import PgQueuer\n"
        f"app = PgQueuer(schema={fleet.schema!r})\n"
        f"@app.schedule('report', {YEARLY!r})\n"
        "def report(schedule):\n    print('report runs', flush=True)\n"
        "    while not pathlib.Path('paper').exists(): time.sleep(0.01)\n"
    )
    options = (f"--dsn={fleet.dsn}", f"--schema={fleet.schema}")
    worker = commands.start("run", "shop:app", *options)
    worker.wait_said("ready: registered and listening")
    wait_until(lambda: fleet.rows("select from {schema}.schedule"))
    assert (0, f"will run: report {YEARLY}") == commands.run("schedules", "run", "report", *options)
    worker.wait_said("report runs")
    assert "running since 2" in commands.run("schedules", "list", *options)[1]
    (commands.directory / "paper").touch()
    wait_until(lambda: fleet.rows("select from {schema}.schedule where last_status = 'successful'"))
    assert "waiting" in commands.run("schedules", "list", *options)[1]

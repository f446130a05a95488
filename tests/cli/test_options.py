"""What is read from the command line, and how it is logged."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pgq_anyio._cli.backends import Backend, BackendName, choose_backend
from pgq_anyio._cli.interrupts import stop_signals
from pgq_anyio._cli.logs import JsonFormatter
from pgq_anyio._cli.messages import UsageError
from pgq_anyio._cli.options import check_ids, describe, parse_duration
from pgq_anyio._cli.program import app
from pgq_anyio._cli.show import counted, name_list
from pgq_anyio._retention import check_retention
from pgq_anyio._run_settings import RunSettings
from pgq_anyio._settings import find_database


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        ("2.5", 2.5),
        ("0", 0.0),
        ("90s", 90.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        ("1.5h", 5400.0),
        ("2d", 172800.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """Durations are numbers of seconds, or carry units."""
    assert seconds == parse_duration(text)


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "inf", "1x", "m5", "1h 30"])
def test_bad_durations(text: str) -> None:
    """What is no duration is refused and named."""
    with pytest.raises(typer.BadParameter, match="is no duration: write"):
        parse_duration(text)


def test_run_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the command line says is what the worker runs with."""
    (tmp_path / "app_with_settings.py").write_text("import pgq_anyio\napp = pgq_anyio.PgQueuer()\n")
    monkeypatch.syspath_prepend(tmp_path)
    ran: list[RunSettings] = []
    monkeypatch.setattr("pgq_anyio._cli.run.set_up_logging", lambda *_: None)
    monkeypatch.setattr("pgq_anyio._cli.run.run_on", lambda _, serve, __: ran.append(serve.__self__.settings))
    options = ["max-concurrency=7", "dequeue-timeout=1m", "lease=5s", "on-lease-lost=continue", "shutdown-grace=2s"]
    options += ["cancel-grace=250ms", "block-warning=3s", "retention=1h"]
    asked = [f"--{option}" for option in options]
    assert 0 == CliRunner().invoke(app, ["run", "app_with_settings:app", "--drain", *asked]).exit_code
    expected = RunSettings(
        dequeue_timeout=60.0,
        batch_size=500,
        max_concurrency=7,
        mode="drain",
        lease=5.0,
        on_lease_lost="continue",
        shutdown_grace=2.0,
        cancel_grace=0.25,
        signals=stop_signals(),
        block_warning=3.0,
        retention=check_retention(3600.0),
        exit_process=True,
    )
    assert [expected] == ran
    refused = CliRunner().invoke(app, ["run", "app_with_settings:app", "--on-lease-lost=keep"])
    assert (2, True) == (refused.exit_code, "'keep' is not one of" in refused.output)


def test_ids() -> None:
    """Job ids are positive numbers of 64 bits."""
    assert [1, 2**63 - 1] == check_ids(["1", str(2**63 - 1)])
    for text in ("0", "-1", "x", "1.0", str(2**63), "²", "9" * 5000):
        with pytest.raises(UsageError, match="is no job id") as caught:
            check_ids([text])
        assert len(str(caught.value)) < 200


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """On asyncio uvloop is used if it is there; asking for it where it cannot be had is an error with the fix."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert Backend(BackendName.ASYNCIO, uvloop=True) == choose_backend(BackendName.ASYNCIO, None)
    assert Backend(BackendName.ASYNCIO, uvloop=False) == choose_backend(BackendName.ASYNCIO, False)
    assert Backend(BackendName.TRIO, uvloop=False) == choose_backend(BackendName.TRIO, None)
    with pytest.raises(UsageError, match="use --backend asyncio"):
        choose_backend(BackendName.TRIO, True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert Backend(BackendName.ASYNCIO, uvloop=False) == choose_backend(BackendName.ASYNCIO, None)
    with pytest.raises(UsageError, match=r"pip install 'pgq_anyio\[uvloop\]'"):
        choose_backend(BackendName.ASYNCIO, True)


def test_databases_are_shown_without_their_secrets() -> None:
    """How a database is called says where it is and who said so, and never the password."""
    shown = describe(find_database("postgresql://me:secret@db/jobs?sslpassword=hidden", {}))
    assert "from --dsn" in shown
    assert "host=db" in shown
    assert "secret" not in shown
    assert "hidden" not in shown
    assert "the database of the PG* variables" == describe(find_database(None, {"PGHOST": "db"}))
    assert "the embedded database" == describe(find_database(None, {}))


def test_json_lines() -> None:
    """A record is one line of JSON, with the traceback inside."""
    try:
        raise ValueError("no\nluck")
    except ValueError:
        record = logging.LogRecord("shop", logging.ERROR, __file__, 1, "job %d\nfailed", (7,), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    fields = json.loads(line)
    assert ("error", "shop", "job 7\nfailed") == (fields["level"], fields["logger"], fields["message"])
    assert "ValueError: no\nluck" in fields["error"]
    assert fields["time"].endswith("Z")


def test_words() -> None:
    """Counts and lists read as a person would write them."""
    assert ["1 job", "2,000 jobs"] == [counted(1, "job"), counted(2000, "job")]
    assert "a, b" == name_list(["a", "b"])
    assert name_list([str(number) for number in range(20)]).endswith("10 and 9 more")

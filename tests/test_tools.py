"""The command that needs only Python has to start under an old one, if only to find a newer one or to say so."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["noxfile.py", "tools/bootstrap.py", "tools/machine.py"])
def test_no_newer_syntax(name: str) -> None:
    """What runs before anything is installed has no syntax that Python 3.7 does not know."""
    ast.parse((ROOT / name).read_text("utf-8"), feature_version=(3, 7))

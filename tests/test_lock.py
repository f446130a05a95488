"""The lock names all that the tests need, in versions that the package allows, and nothing without a hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LOCK = (ROOT / "tools" / "tests.lock").read_text("utf-8")
#: A name, a version, perhaps a condition, and hashes.
ENTRY = r"^([a-z0-9.-]+)==(\S+)(?: ; [^\\]+)? \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\\n|\n))+"
ENTRIES = dict(re.findall(ENTRY, LOCK, re.MULTILINE))


def test_every_line_is_an_entry() -> None:
    """A version with hashes, or a comment: no file from elsewhere, no address, no option."""
    lines = [line for line in LOCK.splitlines() if line and line[0] not in "# "]
    assert len(ENTRIES) == len(lines) > 40
    assert "://" not in LOCK


def test_it_fits_the_package() -> None:
    """What the package, its extras and the tests require, as pyproject.toml says it now."""
    groups = PROJECT["dependency-groups"]
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *groups["test"], *groups["build"]]
    wanted += [*extras["embedded"], *extras["uvloop"], *PROJECT["build-system"]["requires"]]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        assert name in ENTRIES, f"{requirement} is not in the lock: python3 noxfile.py -s lock"
        assert requirement.specifier.contains(ENTRIES[name], prereleases=True), f"{requirement}: {ENTRIES[name]}"

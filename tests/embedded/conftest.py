"""A place for servers, which must be as it was when the test ends."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.embedded.children import matching, wait_until


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the account which runs the server gets through (as root it does not through ``tmp_path``)."""
    directory = Path(tempfile.mkdtemp(prefix="pgq test ")).resolve()
    directory.chmod(0o711)
    yield directory
    # A test that failed may have left a guardian at work.
    wait_until(lambda: not matching(lambda process: directory in Path(process.cwd()).parents))
    shutil.rmtree(directory)

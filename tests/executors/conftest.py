"""Fixtures for tests of executors."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


@pytest.fixture(
    params=[
        "asyncio",
        pytest.param(
            ("asyncio", {"use_uvloop": True}),
            id="uvloop",
            marks=pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed"),
        ),
        "trio",
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Run the tests of executors on uvloop too: it leaves a child more descriptors than the others do."""
    return request.param

"""Each bug that a peer had is looked for by a test that exists."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.peer_bugs.rows import ROWS, Row

pytestmark = pytest.mark.heavy

TESTS = Path(__file__).parents[1]


def test_every_row_is_here_once() -> None:
    assert 36 == len({row.bug for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.bug[:50])
def test_a_row_has_its_tests_or_its_reason(row: Row) -> None:
    """A test that is renamed or removed is missed here."""
    assert bool(row.tests) != bool(row.reason)
    for place in row.tests:
        module, name = place.split("::")
        tree = ast.parse((TESTS / f"{module}.py").read_text("utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in functions, place

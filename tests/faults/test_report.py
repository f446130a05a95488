"""The table of the documentation."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from tests.faults import report, rows
from tests.faults.rows import Row

ROW = Row(
    number=2,
    title="b",
    times=3,
    jobs=1000,
    lost=0,
    doubled=1,
    allowed="why",
    interrupted=4,
    recovered=1.23,
    bound=7,
)


def test_rows_are_saved_and_listed_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By number and title, with their sums."""
    monkeypatch.setattr(rows, "ROWS", str(tmp_path))
    other = attrs.evolve(ROW, number=1, title="a/c", doubled=0)
    ROW.save()
    other.save()
    assert [other, ROW] == report.read(tmp_path)
    text = report.table(report.read(tmp_path))
    assert "| a/c | 3 | 1,000 | 0 | 0 | 4 | 1.2 s | 7 s |" == text.splitlines()[2]
    assert "| b | 3 | 1,000 | 0 | 1: why | 4 | 1.2 s | 7 s |" == text.splitlines()[3]
    assert "| all | 6 | 2,000 | 0 | 1 |  |  |  |" == text.splitlines()[4]


def test_scenarios_that_did_not_run_keep_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that did, the page shows the newest row; after a whole run nothing else is left."""
    page, kept = tmp_path / "page.md", tmp_path / "page.json"
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "KEPT", kept)
    monkeypatch.setattr(rows, "ROWS", str(tmp_path / "rows"))
    (tmp_path / "rows").mkdir()
    page.write_text(f"{report.BEGIN}{report.END}")
    ROW.save()
    attrs.evolve(ROW, number=1, title="a", jobs=7).save()
    report.main(str(tmp_path / "rows"), "--whole")
    (tmp_path / "rows" / "02 b.json").unlink()
    newer = attrs.evolve(ROW, number=1, title="a", jobs=8)
    newer.save()
    report.main(str(tmp_path / "rows"))
    assert [newer, ROW] == report.read_kept()
    assert "| a | 3 | 8 | 0 |" in page.read_text()
    assert "| b | 3 | 1,000 | 0 |" in page.read_text()
    report.main(str(tmp_path / "rows"), "--whole")
    assert [newer] == report.read_kept()
    assert "| b |" not in page.read_text()


def test_the_page_shows_the_rows_that_are_kept() -> None:
    """Nobody has changed one and not the other."""
    assert report.table(report.read_kept()) in report.PAGE.read_text("utf-8")


def test_the_table_replaces_the_last_one() -> None:
    """What is around it stays; the page of the documentation has the place for it."""
    page = f"before\n{report.BEGIN}old\n{report.END}after\n"
    assert f"before\n{report.BEGIN}\nnew\n{report.END}after\n" == report.put_in(page, "new")
    assert report.BEGIN in report.PAGE.read_text("utf-8")
    assert report.END in report.PAGE.read_text("utf-8")

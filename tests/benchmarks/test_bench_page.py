"""docs/performance.md holds the tables of the newest results."""

from __future__ import annotations

from benchmarks.page import BLOCK, PAGE, controller_table, current_tables, make_tables, render
from benchmarks.scale import predict_large


def test_the_page_is_what_the_generator_writes() -> None:
    """If not: ``python -m benchmarks.page``."""
    text = PAGE.read_text(encoding="utf-8")
    assert render(text, current_tables()) == text


def test_every_table_has_a_block() -> None:
    names = [block[1] for block in BLOCK.findall(PAGE.read_text(encoding="utf-8"))]
    assert sorted(names) == sorted(make_tables(None, []))


def test_blocks_are_replaced_and_the_rest_stays() -> None:
    page = "a\n<!-- numbers:x -->\nold\n<!-- /numbers -->\nb\n<!-- numbers:y-z -->\n<!-- /numbers -->\n"
    expected = "a\n<!-- numbers:x -->\n1\n<!-- /numbers -->\nb\n<!-- numbers:y-z -->\n2\n<!-- /numbers -->\n"
    assert render(page, {"x": "1\n", "y-z": "2\n"}) == expected


def test_without_results_nothing_is_claimed() -> None:
    tables = make_tables(None, [])
    unmeasured = {name for name, table in tables.items() if table == "Unmeasured.\n"}
    assert unmeasured == {"steps", "ratios", "held-out", "gpu"}


def test_the_controllers_seconds() -> None:
    """100 µs for each of 512 samples."""
    assert "| 70B on 64, 512 samples | 0.05 | " in controller_table([predict_large(64, 512)], 100.0)
